"""Errors that torch raises for a user's model, in one line that says what to change."""

from __future__ import annotations

from dpeval.errors import users_line

_PX = "the model may require another image size; set dataset.image_px"
HINTS = {
    "Expected to have finished reduction": (
        "the loss does not depend on some parameters; set strategy.find_unused_parameters=true, or "
        "strategy.static_graph=true if they are the same in every step"
    ),
    "mark a variable ready only once": (
        "parameters are used several times in a step; set strategy.static_graph=true, or "
        "use_reentrant=False where the model calls torch.utils.checkpoint"
    ),
    "Your training graph has changed": (
        "a step uses other parameters than the first; set strategy.static_graph=false and "
        "strategy.find_unused_parameters=true"
    ),
    "SyncBatchNorm": "use hardware=gpu, or BatchNorm in place of SyncBatchNorm",
    "more than 1 value per channel": (
        "batch normalisation cannot train on one image; set batch to at least 2 per device"
    ),
    "Wrong image height": _PX,
    "Wrong image width": _PX,
    "shapes cannot be multiplied": _PX,
    "Kernel size can't be greater": _PX,
    "Output size is too small": _PX,
    "doesn't match model": _PX,
    "is out of bounds": "labels exceed the model's classes; give it dataset.num_classes of them",
    "uninitialized parameter": "run a batch through the lazy layers when the model is built",
    "parameter that requires a gradient": "all parameters of the model are frozen",
    "does not require grad": (
        "the loss does not depend on any trainable parameter: all are frozen, or run in "
        "torch.no_grad() or in a reentrant checkpoint (set use_reentrant=False)"
    ),
    "should be the same": (
        "the model has tensors of another dtype than the images, which are float32; "
        "use precision=bf16 (on GPUs also fp16) instead of casting"
    ),
    "Cannot copy out of meta tensor": (
        "the model creates weights on the device meta, where they have no values; create them on "
        "the CPU"
    ),
}
"""What to do, by the words in the message."""
MOST_MESSAGE = 1_000


def told(error: BaseException) -> str:
    """`error` on one line: its type, its message, and the line of the user's code, if any.

    Known messages are cut to one sentence, with a hint.
    """
    message = str(error).strip()
    hint = next((hint for words, hint in HINTS.items() if words in message), "")
    if hint:
        # torch's messages continue after the first sentence.
        message = message.splitlines()[0].partition(". ")[0].rstrip(".!")
    line = ": ".join(filter(None, [type(error).__name__, " ".join(message.split())]))
    if len(line) > MOST_MESSAGE:
        line = f"{line[:MOST_MESSAGE]}…"
    return f"{line}{users_line(error)}" + f"; {hint}" * bool(hint)
