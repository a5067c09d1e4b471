"""Errors that torch raises in a user's model, in one line with what to change in dpeval."""

from __future__ import annotations

_PX = "the model may be made for another size of images; set dataset.image_px"
HINTS = {
    "Expected to have finished reduction": (
        "some parameters take no part in the loss; set strategy.find_unused_parameters=true, or "
        "strategy.static_graph=true if they are the same in every step"
    ),
    "mark a variable ready only once": (
        "parameters are used several times in a step; set strategy.static_graph=true, or "
        "use_reentrant=False where the model calls torch.utils.checkpoint"
    ),
    "Your training graph has changed": (
        "other parameters are used than in the first step; set strategy.static_graph=false and "
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
    "is out of bounds": "labels reach dataset.num_classes; give the model as many classes",
    "uninitialized parameter": "run a batch through lazy layers when the model is built",
    "parameter that requires a gradient": "all parameters of the model are frozen",
    "does not require grad": (
        "the loss depends on no parameter that can be trained: not all may be frozen, or run in "
        "torch.no_grad() or in a reentrant checkpoint (use_reentrant=False)"
    ),
    "should be the same": (
        "the model holds or makes tensors of another type than the images, which are float32; "
        "leave types to precision=bf16 (on GPUs also fp16)"
    ),
    "Cannot copy out of meta tensor": (
        "the model creates weights on the device meta, where they have no values; create them on "
        "the CPU"
    ),
}
"""What to do, by words of the message."""
MOST_MESSAGE = 1_000


def told(error: BaseException) -> str:
    """The message of `error` on one line; known ones are cut to their first, with a hint."""
    message = str(error).strip()
    for words, hint in HINTS.items():
        if words in message:
            first = message.splitlines()[0]
            # torch goes on after its first sentence.
            return f"{first.partition('. ')[0].rstrip('.!')}; {hint}"
    kind = type(error).__name__
    line = " ".join(message.split()) or kind
    if message and not isinstance(error, RuntimeError):
        line = f"{kind}: {line}"  # such as KeyError, whose message is a key alone
    return line if len(line) <= MOST_MESSAGE else f"{line[:MOST_MESSAGE]}…"
