"""Training that a user's function defines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dpeval.components.tasks.base import Loss, Rank
from dpeval.config import Config
from dpeval.data.loading.loaders import Loader, Shard
from dpeval.errors import DpevalError, ModelError, raised_at
from dpeval.system.oom import is_out_of_memory
from dpeval.util.importing import check_arguments, locate


@dataclass(frozen=True)
class Training:
    """What ``task.function`` returns on every rank.

    >>> import dpeval, torch
    >>> batches = [torch.ones(8, 4)]
    >>> training = dpeval.Training(torch.nn.Linear(4, 1), batches, lambda f, x: f(x).mean())
    >>> training.unit
    'samples'
    """

    model: nn.Module
    """The model, not wrapped: ``strategy`` wraps it."""
    batches: Iterable[Any]
    """This rank's batches, on the host or on the device. At their end, iteration starts over, so
    give a loader rather than a generator, unless it is endless."""
    loss: Callable[[Callable[..., Any], Any], Tensor]
    """Called as ``loss(model, batch)`` with the wrapped model and a batch on the device; returns
    the mean over the batch."""
    samples: Callable[[Any], int] | int | None = None
    """Number of samples in a batch, or a function of the batch that returns it; None: the
    per-device batch."""
    unit: str = "samples"
    """What a sample is, as tables and figures call it: graphs, pairs, …"""


def check_function(config: Config) -> None:
    """Check, without calling it, that the function exists and accepts its arguments.

    Raises:
        ConfigError: it does not.
    """
    target = _target(config)
    check_arguments(target, ("rank",), config.task.kwargs, key="task.kwargs")


def _target(config: Config) -> Callable[..., Any]:
    assert config.task.function is not None  # checked with the rules of `task`
    return locate(config.task.function, key="task.function")


class UserFunction:
    """The task that a user's function defines; its memory is not forecast."""

    samples_per_item: float | None = None
    """Known once the function has been called."""

    def __init__(self, config: Config) -> None:
        self._config, self._name = config, f"task.function={config.task.function}"
        self.unit = config.task.unit
        self._made: Training | None = None

    def model(self, rank: Rank) -> nn.Module:
        target = _target(self._config)
        try:
            made = target(rank, **self._config.task.kwargs)
        except DpevalError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(_told(f"{self._name} fails with", error)) from error
        self._made = _checked(self._name, made)
        self.unit = made.unit
        self.samples_per_item = _samples_per_item(made.samples, rank.per_device_batch_size)
        return self._made.model

    @property
    def _training(self) -> Training:
        assert self._made is not None  # the model comes first
        return self._made

    def loader(self, shard: Shard) -> Loader:
        return FunctionLoader(self._name, self._training, shard)

    def loss(self, model: nn.Module, rank: Rank) -> Loss:
        own, weight, name = self._training.loss, rank.weight, self._name
        is_checked = False

        def loss(module: Callable[..., Any], batch: Any) -> Tensor:
            nonlocal is_checked
            found = own(module, batch)
            if not is_checked:
                _check_loss(name, found)
                is_checked = True
            # Gradients are summed over the ranks.
            return found * weight

        return loss


class FunctionLoader:
    """Passes on the user's batches and counts their samples."""

    def __init__(self, name: str, training: Training, shard: Shard) -> None:
        """Start with the first batch.

        Args:
            name: name of the function, for messages.
            training: what the function returned.
            shard: this rank.
        """
        self._name, self._batches = name, training.batches
        self._samples = shard.batch if training.samples is None else training.samples
        self._device = shard.device.torch_device
        self._iterator: Iterator[Any] = iter(training.batches)
        self.images_read = 0

    def next(self) -> Any:
        for _ in range(2):
            for batch in self._iterator:
                return batch
            self._iterator = iter(self._batches)
        raise ModelError(
            f"{self._name}: its batches have ended, and iterating again yields none; return a "
            "loader that can be iterated over again, or an endless generator"
        )

    def put(self, batch: Any) -> Any:
        count = self._samples(batch) if callable(self._samples) else self._samples
        if not isinstance(count, int) or count < 1:
            raise ModelError(
                f"{self._name}: samples of a batch is {count!r}; it must be a positive integer"
            )
        self.images_read += count
        if hasattr(batch, "to"):
            return batch.to(self._device)
        return tree_map(self._there, batch)

    def _there(self, leaf: Any) -> Any:
        return leaf.to(self._device, non_blocking=True) if isinstance(leaf, Tensor) else leaf

    def close(self) -> None:
        # An iterator of a DataLoader stops its workers when it is deleted.
        self._iterator = iter(())


def _samples_per_item(samples: object, batch: int) -> float | None:
    """Samples in each of the `batch` items of a batch; None if only the batches themselves show it.

    Progress can show samples and their unit only if this is known before the first step.
    """
    if samples is None:
        return 1.0
    # An exact quotient only, as the record multiplies it by `batch` again.
    return samples / batch if isinstance(samples, int) and samples % batch == 0 else None


def _checked(name: str, made: object) -> Training:
    if not isinstance(made, Training):
        raise ModelError(
            f"{name} returned a {type(made).__name__}; it must return a dpeval.Training"
        )
    if not isinstance(made.model, nn.Module):
        raise ModelError(
            f"{name}: model is a {type(made.model).__name__}; it must be a torch.nn.Module"
        )
    if not isinstance(made.batches, Iterable):
        raise ModelError(
            f"{name}: batches is a {type(made.batches).__name__}; it must be a loader or another "
            "iterable"
        )
    if not callable(made.loss):
        raise ModelError(f"{name}: loss must be a function of the model and a batch")
    unit = made.unit
    if not isinstance(unit, str) or not 0 < len(unit) <= 20 or not unit.isprintable():
        raise ModelError(f"{name}: unit={unit!r}; give a short name, such as graphs or pairs")
    return made


def _check_loss(name: str, found: object) -> None:
    is_scalar = isinstance(found, torch.Tensor) and found.numel() == 1
    if not is_scalar:
        what = (
            f"a tensor of shape {list(found.shape)}"
            if isinstance(found, torch.Tensor)
            else f"a {type(found).__name__}"
        )
        raise ModelError(f"{name}: loss returned {what}; it must return the mean, one number")
    assert isinstance(found, torch.Tensor)
    if not found.requires_grad:
        raise ModelError(f"{name}: its loss does not depend on any trainable parameter")


def _told(what: str, error: Exception) -> str:
    """`error` in one line, with the file and line where it was raised."""
    words = " ".join(str(error).split())[:300]
    return f"{what} {type(error).__name__}: {words}{raised_at(error)}"
