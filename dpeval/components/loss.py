"""What is minimised. The only place that knows what a model's forward may return.

A model may return a tensor, or a tuple, list, dict, named tuple or dataclass of tensors, as
torchvision's GoogLeNet and the models of Hugging Face do. :class:`GlobalMeanLoss` finds the main
output in it, and the auxiliary outputs whose losses are to be added.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpeval.errors import ConfigError

AUXILIARY_WEIGHT = 0.3
"""Weight of an auxiliary classifier's loss beside the main one's (Szegedy et al. 2015, "Going
deeper with convolutions", arXiv:1409.4842, section 5)."""


def auxiliary_weight(model: nn.Module) -> float:
    """The model's own ``aux_loss_weight`` where it has one, else :data:`AUXILIARY_WEIGHT`."""
    return float(getattr(model, "aux_loss_weight", AUXILIARY_WEIGHT))


class GlobalMeanLoss(nn.Module):
    """Cross entropy in which every image counts ``1 / global_batch_size``.

    Summed over micro-batches and ranks it is the mean over the global batch, however that was
    dealt out, and its gradient is that mean's. The factor goes in as class weights, which the
    loss's own kernel applies: a multiplication more, or a gradient for backward to begin with,
    shows in a step of 10 ms.

    Args:
        global_batch: images of all ranks in one step.
        num_classes: classes of the labels; a model may have more.
        auxiliary_weight: factor of the losses of auxiliary outputs.
    """

    def __init__(
        self, global_batch_size: int, num_classes: int, auxiliary_weight: float = AUXILIARY_WEIGHT
    ) -> None:
        super().__init__()
        self._share = 1 / global_batch_size
        self._num_classes, self._auxiliary_weight = num_classes, auxiliary_weight
        self._weights: Tensor | None = None

    def forward(self, output: object, labels: Tensor) -> Tensor:
        """The part of this micro-batch in the loss.

        Args:
            output: what the model returned; its logits are of shape [b, classes].
            labels: int64 of shape [b].

        Raises:
            ConfigError: `output` holds no logits.
        """
        if isinstance(output, Tensor) and self._weights is not None:
            return self._cross_entropy(output, labels)  # checked in the first step
        main, auxiliary = find_logits(output, len(labels), self._num_classes)
        loss = self._cross_entropy(main, labels)
        for logits in auxiliary if self._auxiliary_weight else ():
            loss = loss + self._auxiliary_weight * self._cross_entropy(logits, labels)
        return loss

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self._weights is None:
            # Half precision would round the share; autocast computes this loss in float32.
            precise = torch.promote_types(logits.dtype, torch.float32)
            self._weights = logits.new_full(logits.shape[1:], self._share, dtype=precise)
        return functional.cross_entropy(logits, labels, self._weights, reduction="sum")


def find_logits(output: object, batch: int, num_classes: int) -> tuple[Tensor, list[Tensor]]:
    """The main output and the auxiliary ones, each of shape [batch, classes].

    The main output is the one named ``logits``; else the first with exactly `num_classes`
    columns; else the first with more. Auxiliary are further outputs of its shape: where outputs
    have names, those whose name begins with ``aux``; where they have none, all of them.

    Args:
        output: what the model returned.
        batch: images that it was given.
        num_classes: classes of the data set.

    Raises:
        ConfigError: there is no tensor of such a shape.
    """
    named = _named_outputs(output)
    fitting = {
        name: item
        for name, item in named.items()
        if isinstance(item, Tensor) and _are_logits(item, batch, num_classes)
    }
    if not fitting:
        returned = ", ".join(f"{name} {_shown(item)}".strip() for name, item in named.items())
        raise ConfigError(
            f"the model returns {returned or _shown(output)} for {batch} images; training needs a "
            f"floating-point tensor of shape [batch, classes], here [{batch}, {num_classes}], "
            "alone or in a tuple, a dict or a dataclass"
        )
    exact = [name for name, item in fitting.items() if item.shape[1] == num_classes]
    chosen = "logits" if "logits" in fitting else (exact or list(fitting))[0]
    main = fitting.pop(chosen)
    auxiliary = [
        item
        for name, item in fitting.items()
        if item.shape == main.shape and (name.startswith("aux") or not name.isidentifier())
    ]
    return main, auxiliary


def _named_outputs(output: object) -> dict[str, object]:
    """The parts of a model's output by name; those without a name by their number in brackets."""
    if isinstance(output, Mapping):
        return {str(name): item for name, item in output.items()}
    if dataclasses.is_dataclass(output):
        return {item.name: getattr(output, item.name) for item in dataclasses.fields(output)}
    if isinstance(output, tuple | list):
        names = getattr(output, "_fields", None) or [f"[{at}]" for at in range(len(output))]
        return dict(zip(names, output, strict=True))
    return {"": output}


def _are_logits(item: Tensor, batch: int, num_classes: int) -> bool:
    fits = item.ndim == 2 and item.shape[0] == batch and item.shape[1] >= num_classes
    return fits and item.is_floating_point()


def _shown(item: object) -> str:
    if isinstance(item, Tensor):
        kind = "" if item.is_floating_point() else f" of {str(item.dtype).removeprefix('torch.')}"
        return f"a tensor of shape {list(item.shape)}{kind}"
    return f"a {type(item).__name__}"
