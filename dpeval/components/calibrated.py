"""Training with known durations, to check the measurements against.

``model=calibrated`` sleeps instead of computing, so dozens of ranks fit on two cores. Its gradients
have a set size, so communication over a known link takes a known time. It can inject faults: a
straggler, jitter, a cold start, a drift, a slow loader.
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dpeval.config import DatasetConfig
from dpeval.data.loading.loaders import Shard
from dpeval.data.sources.progress import Report
from dpeval.data.sources.source import Source
from dpeval.util.display.units import MIB

PR_SET_TIMERSLACK = 29


@dataclass(frozen=True)
class Faults:
    """The faults to inject."""

    straggler_rank: int | None = None
    straggler_factor: float = 1.0
    """Compute time of `straggler_rank` relative to the other ranks."""
    jitter: float = 0.0
    """Standard deviation of the logarithm of a lognormal factor per step, whose mean is 1."""
    cold_steps: int = 0
    cold_factor: float = 1.0
    """The first `cold_steps` steps take this many times as long."""
    drift_per_step: float = 0.0
    """Each step takes longer than the one before it by this fraction of the first step's time."""
    fail_at_step: int | None = None
    """Raise in this step, on `straggler_rank` or, without one, on every rank."""

    def factor(self, step: int, rank: int, generator: np.random.Generator) -> float:
        """The duration of a step relative to its nominal time.

        Args:
            step: index of the step, from 0.
            rank: the rank that takes it.
            generator: source of the jitter.
        """
        factor = 1.0 + self.drift_per_step * step
        if self.jitter:
            factor *= generator.lognormal(-(self.jitter**2) / 2, self.jitter)
        if step < self.cold_steps:
            factor *= self.cold_factor
        if rank == self.straggler_rank:
            factor *= self.straggler_factor
        return float(factor)


def calibrated_model(
    forward_s: float = 0.004,
    backward_s: float = 0.006,
    layers: int = 4,
    gradient_mib: float = 0.25,
    num_classes: int = 10,
    faults: dict[str, Any] | None = None,
) -> nn.Module:
    """The calibrated model: `layers` equal layers.

    Args:
        forward_s: duration of the forward pass, in seconds.
        backward_s: duration of the backward pass, in seconds.
        layers: number of layers among which times and gradients are split.
        gradient_mib: size of all gradients together, in MiB.
        num_classes: columns of the logits.
        faults: fields of :class:`Faults`.
    """
    return CalibratedModel(
        forward_s, backward_s, layers, gradient_mib, num_classes, Faults(**(faults or {}))
    )


class CalibratedModel(nn.Module):
    """Layers that take a set time; outputs logits of shape [batch, num_classes]."""

    def __init__(
        self,
        forward_s: float,
        backward_s: float,
        layers: int,
        gradient_mib: float,
        num_classes: int,
        faults: Faults,
    ) -> None:
        """See :func:`calibrated_model`.

        Args:
            forward_s: duration of the forward pass, in seconds.
            backward_s: duration of the backward pass, in seconds.
            layers: number of layers among which times and gradients are split.
            gradient_mib: size of all gradients together, in MiB.
            num_classes: columns of the logits.
            faults: the faults to inject.
        """
        super().__init__()
        self._forward_s, self._backward_s = forward_s / layers, backward_s / layers
        self._faults, self._step = faults, 0
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self._generator = np.random.default_rng(self._rank)
        per_layer = max(1, int(gradient_mib * MIB / 4 / layers))
        self.layers = nn.ParameterList([torch.zeros(per_layer) for _ in range(layers)])
        self.head = nn.Parameter(torch.zeros(num_classes))
        _exact_sleep()

    def forward(self, images: Tensor) -> Tensor:
        if self._faults.fail_at_step == self._step and self._rank == (
            self._faults.straggler_rank or self._rank
        ):
            raise RuntimeError(f"injected failure in step {self._step} on rank {self._rank}")
        factor = self._faults.factor(self._step, self._rank, self._generator)
        self._step += self.training
        signal = images.flatten(1)[:, :1].float() * 0 + self.head
        forward = _Schedule(self._forward_s * factor)
        backward = _Schedule(self._backward_s * factor)
        for weight in self.layers:
            signal = _Timed.apply(signal, weight, forward, backward)
        return signal


class _Schedule:
    """When each layer of a pass ends. The times are absolute, so late wake-ups do not add up."""

    def __init__(self, layer_s: float) -> None:
        self._layer_s = layer_s
        self._next_s: float | None = None

    def wait(self, begin_s: float) -> None:
        """Sleep until the next layer ends; the first layer begins at `begin_s`."""
        self._next_s = (begin_s if self._next_s is None else self._next_s) + self._layer_s
        sleep_until(self._next_s)


class _Timed(torch.autograd.Function):
    """The identity, which takes a set time in the forward and in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, signal: Tensor, weight: Tensor, forward: _Schedule, backward: _Schedule
    ) -> Tensor:
        begin_s = time.perf_counter()
        ctx.save_for_backward(weight)
        ctx.backward_schedule = backward
        result = signal.clone()
        forward.wait(begin_s)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        begin_s = time.perf_counter()
        (weight,) = ctx.saved_tensors
        gradient = torch.zeros_like(weight)
        ctx.backward_schedule.wait(begin_s)
        return gradients[0], gradient, None, None


class TimedSGD(torch.optim.SGD):
    """SGD whose step takes `step_s` seconds: ``optimizer.name=dpeval.components.TimedSGD``."""

    def __init__(self, params: Any, step_s: float = 0.0, **arguments: Any) -> None:
        super().__init__(params, **arguments)
        self._step_s = step_s

    def step(self, closure: Any = None) -> Any:
        begin_s = time.perf_counter()
        loss = super().step(closure)
        sleep_until(begin_s + self._step_s)
        return loss


def sleep_until(moment_s: float) -> None:
    """Sleep until ``perf_counter`` shows `moment_s`."""
    left_s = moment_s - time.perf_counter()
    if left_s > 0:
        time.sleep(left_s)


def _exact_sleep() -> None:
    """Ask Linux to wake this process on time; by default, it may be 50 µs late (prctl(2))."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)


@dataclass
class CalibratedLoader:
    """A loader of one-pixel images that makes the rank wait a set time per batch."""

    batch: int
    num_classes: int
    delay_s: float
    device: torch.device
    images_read: int = 0

    def next(self) -> tuple[Tensor, Tensor]:
        sleep_until(time.perf_counter() + self.delay_s)
        self.images_read += self.batch
        return torch.zeros(self.batch, 3, 1, 1), torch.arange(self.batch) % self.num_classes

    def put(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return batch[0].to(self.device), batch[1].to(self.device)

    def close(self) -> None:
        pass


def calibrated_source(config: DatasetConfig, root: Path, report: Report) -> Source:
    """A source without images, loaded by :func:`calibrated_loader`.

    Args:
        config: the keys of ``dataset``.
        root: unused.
        report: unused.
    """
    return Source(
        root="",
        num_classes=config.num_classes,
        loader="dpeval.components.calibrated_loader",
    )


def calibrated_loader(shard: Shard) -> CalibratedLoader:
    """The loader of one rank; see :class:`CalibratedLoader`."""
    return CalibratedLoader(
        batch=shard.batch,
        num_classes=shard.config.num_classes,
        delay_s=shard.config.delay_s,
        device=shard.device.torch_device,
    )
