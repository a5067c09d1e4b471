"""The loss. The only module that knows what a model's forward pass may return.

A model may return a tensor, or a tuple, list, dict, named tuple or dataclass of tensors, as
torchvision's GoogLeNet and Hugging Face models do. :class:`GlobalMeanLoss` picks the main output
and the auxiliary outputs, whose losses it adds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpeval.errors import ModelError

AUXILIARY_WEIGHT = 0.3
"""Weight of an auxiliary classifier's loss relative to the main one's, as in GoogLeNet (Szegedy et
al. 2015, "Going deeper with convolutions", arXiv:1409.4842, section 5)."""


def auxiliary_weight(model: nn.Module) -> float:
    """The model's ``aux_loss_weight`` if it has one, else :data:`AUXILIARY_WEIGHT`."""
    return float(getattr(model, "aux_loss_weight", AUXILIARY_WEIGHT))


class GlobalMeanLoss(nn.Module):
    """Cross entropy in which every label has the weight ``1 / labels``.

    An image has one label, a sequence one per token. Summed over micro-batches and ranks, the loss
    is the mean over the global batch, however that is split, and the same holds for its gradient.
    The factor is applied as class weights inside the loss kernel: a separate multiplication would
    be noticeable in a step of 10 ms.

    Args:
        labels: number of labels per step, of all ranks.
        num_classes: number of classes of the labels; the model may have more.
        auxiliary_weight: factor of the losses of auxiliary outputs.
    """

    def __init__(
        self, labels: int, num_classes: int, auxiliary_weight: float = AUXILIARY_WEIGHT
    ) -> None:
        super().__init__()
        self._share = 1 / labels
        self._num_classes, self._auxiliary_weight = num_classes, auxiliary_weight
        self._weights: Tensor | None = None

    def forward(self, output: object, labels: Tensor) -> Tensor:
        """The contribution of this micro-batch to the loss.

        Args:
            output: what the model returned; its logits have the shape [*labels, classes].
            labels: int64 [b], or [b, tokens].

        Raises:
            ModelError: `output` contains no logits.
        """
        if isinstance(output, Tensor) and self._weights is not None:
            return self._cross_entropy(output, labels)  # the first step has checked its shape
        main, auxiliary = find_logits(output, labels.shape, self._num_classes)
        loss = self._cross_entropy(main, labels)
        for logits in auxiliary if self._auxiliary_weight else ():
            loss = loss + self._auxiliary_weight * self._cross_entropy(logits, labels)
        return loss

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self._weights is None:
            # Half precision would round the weight; autocast computes this loss in float32.
            precise = torch.promote_types(logits.dtype, torch.float32)
            self._weights = logits.new_full(logits.shape[-1:], self._share, dtype=precise)
        if labels.ndim > 1:
            logits, labels = logits.flatten(0, -2), labels.flatten()
        return functional.cross_entropy(logits, labels, self._weights, reduction="sum")


def find_logits(
    output: object, labels: Sequence[int], num_classes: int
) -> tuple[Tensor, list[Tensor]]:
    """The main output and the auxiliary ones, each of shape [*labels, classes].

    The main output is the one named ``logits``; otherwise the first with exactly `num_classes`
    columns; otherwise the first with more. Other outputs of the same shape are auxiliary: if
    outputs have names, those whose names begin with ``aux``; otherwise all of them.

    Args:
        output: what the model returned.
        labels: shape of the labels: [batch], or [batch, tokens].
        num_classes: number of classes in the dataset.

    Raises:
        ModelError: no output has such a shape.
    """
    named = _named_outputs(output)
    fitting = {
        name: item
        for name, item in named.items()
        if isinstance(item, Tensor) and _are_logits(item, labels, num_classes)
    }
    if not fitting:
        returned = ", ".join(f"{name} {_shown(item)}".strip() for name, item in named.items())
        raise ModelError(
            f"the model returns {returned or _shown(output)} for {_input(labels)}; training needs "
            f"a floating-point tensor of shape {_wanted(labels)}, here "
            f"{[*labels, num_classes]}, alone or in a tuple, a dict or a dataclass"
        )
    exact = [name for name, item in fitting.items() if item.shape[-1] == num_classes]
    chosen = "logits" if "logits" in fitting else (exact or list(fitting))[0]
    main = fitting.pop(chosen)
    auxiliary = [
        item
        for name, item in fitting.items()
        if item.shape == main.shape and (name.startswith("aux") or not name.isidentifier())
    ]
    return main, auxiliary


def _named_outputs(output: object) -> dict[str, object]:
    """The parts of a model's output by name, or by index in brackets if they have none."""
    if isinstance(output, Mapping):
        return {str(name): item for name, item in output.items()}
    if dataclasses.is_dataclass(output):
        return {item.name: getattr(output, item.name) for item in dataclasses.fields(output)}
    if isinstance(output, tuple | list):
        names = getattr(output, "_fields", None) or [f"[{at}]" for at in range(len(output))]
        return dict(zip(names, output, strict=True))
    return {"": output}


def _are_logits(item: Tensor, labels: Sequence[int], num_classes: int) -> bool:
    if item.ndim != len(labels) + 1 or not item.is_floating_point():
        return False
    return tuple(item.shape[:-1]) == tuple(labels) and item.shape[-1] >= num_classes


def _input(labels: Sequence[int]) -> str:
    return f"{labels[0]} images" if len(labels) == 1 else f"{labels[0]} sequences of {labels[1]}"


def _wanted(labels: Sequence[int]) -> str:
    return "[batch, classes]" if len(labels) == 1 else "[batch, tokens, vocabulary]"


def _shown(item: object) -> str:
    if isinstance(item, Tensor):
        kind = "" if item.is_floating_point() else f" of {str(item.dtype).removeprefix('torch.')}"
        return f"a tensor of shape {list(item.shape)}{kind}"
    return f"a {type(item).__name__}"
