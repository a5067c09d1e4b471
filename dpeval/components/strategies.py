"""How ranks agree on one update. A strategy is one function and one YAML file.

A strategy receives the model on its device and wraps it. In a rank's loss every image counts
``1 / global_batch_size``, so the ranks' gradients are *summed*: the sum is the gradient of the mean
loss over the global batch, however it was split.
"""

# No postponed annotations here: DDP checks the types that a communication hook declares.

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import GradBucket
from torch.nn.parallel import DistributedDataParallel

from dpeval.config import StrategyConfig
from dpeval.devices.base import Device
from dpeval.errors import ConfigError
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.util.importing import check_arguments, locate


@dataclass(frozen=True)
class WrappedModel:
    """A model ready to train: call `module`, and enter `no_sync` where gradients stay local."""

    module: Callable[..., Any]
    """Takes images [b, 3, px, px], returns logits [b, classes]."""
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Left as it is where the strategy cannot keep gradients on their rank: there is then no
    ablation."""

    @property
    def can_keep_gradients(self) -> bool:
        """Whether a step without synchronisation can be taken."""
        return self.no_sync is not nullcontext


class WrapModel(Protocol):
    """What ``strategy._target_`` names."""

    def __call__(
        self,
        model: nn.Module,
        config: StrategyConfig,
        device: Device,
        clock: PhaseClock,
        **args: Any,
    ) -> WrappedModel:
        """Wrap the model so that gradients are summed over all ranks in backward.

        Called in every rank, after the process group was joined.

        Args:
            model: on its device, in training mode.
            config: the keys of ``strategy``.
            device: the rank's device.
            clock: to be told when a bucket's gradients are complete and when it is reduced.
            args: ``strategy.args``.
        """


def check(config: StrategyConfig) -> None:
    """Check, before any rank starts, that the strategy can be called as asked.

    Raises:
        ConfigError: its target cannot be imported or does not accept ``strategy.args``.
    """
    target = locate(config._target_, key="strategy._target_")
    given = ("model", "config", "device", "clock")
    check_arguments(target, given, config.args, key="strategy.args")


def wrap(
    model: nn.Module, config: StrategyConfig, device: Device, clock: PhaseClock
) -> WrappedModel:
    """Wrap `model` as `config` asks; see :class:`WrapModel`.

    Raises:
        ConfigError: the target cannot be imported or returns something else.
    """
    target = locate(config._target_, key="strategy._target_")
    wrapped = target(model, config, device, clock, **config.args)
    if not isinstance(wrapped, WrappedModel):
        raise ConfigError(
            f"strategy={config.name}: {config._target_} returned a {type(wrapped).__name__}; "
            "it must return a dpeval.components.WrappedModel"
        )
    return wrapped


def single_device(
    model: nn.Module, config: StrategyConfig, device: Device, clock: PhaseClock
) -> WrappedModel:
    """One device without a wrapper."""
    return WrappedModel(model, nullcontext)


def ddp(
    model: nn.Module, config: StrategyConfig, device: Device, clock: PhaseClock
) -> WrappedModel:
    """DistributedDataParallel (Li et al. 2020, VLDB 13(12)) with its all-reduces timed.

    The hook replaces DDP's all-reduce by the same one, with a stamp where a bucket's gradients
    are complete and one where its future is. It works alike on gloo and NCCL: a CUDA future
    runs its callbacks on a stream that waits for the collective, where an event can be recorded.
    """
    # Passing the default would draw a deprecation warning from recent releases of torch.
    buffers: dict[str, Any] = {} if config.broadcast_buffers else {"broadcast_buffers": False}
    wrapped = DistributedDataParallel(
        model,
        device_ids=[device.torch_device.index] if device.is_cuda else None,
        bucket_cap_mb=config.bucket_cap_mb,
        **buffers,
        gradient_as_bucket_view=config.gradient_as_bucket_view,
        static_graph=config.static_graph,
        find_unused_parameters=config.find_unused_parameters,
    )
    group = dist.group.WORLD
    assert group is not None  # DDP has just used it
    wrapped.register_comm_hook(_Timed(clock, group), timed_all_reduce)
    return WrappedModel(wrapped, wrapped.no_sync)


@dataclass
class _Timed:
    """What the hook needs and keeps."""

    clock: PhaseClock
    group: dist.ProcessGroup
    _finished: torch.futures.Future[torch.Tensor] | None = None
    _steps: int = 0

    def completed(self, buffer: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
        """A future that holds `buffer` already: one for all steps, for making it costs 20 µs."""
        self._steps += 1
        kept = self._finished
        if kept is not None and kept.value() is buffer:
            return kept
        made: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        made.set_result(buffer)
        # DDP makes its buckets anew after the first step; those of before must not be held.
        self._finished = made if self._steps > 1 else None
        return made


def timed_all_reduce(timed: _Timed, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Sum one bucket over all ranks, timed from its last gradient to the end of its all-reduce.

    Nothing is left of backward behind the last bucket (DDP starts them in order), so it is waited
    for here: a callback would have to take the interpreter's lock from this waiting thread, and
    that shows in a step of 10 ms. On CUDA the wait holds up the stream, not the host.
    """
    buffer = bucket.buffer()
    clock, is_last = timed.clock, bucket.is_last()
    reduce = clock.bucket_ready(bucket.index(), buffer.nbytes, is_last=is_last)
    # The group's own method, as DDP calls it: dist.all_reduce checks arguments for 20 µs.
    work = timed.group.allreduce([buffer])
    if is_last:
        work.wait()
        clock.bucket_done(reduce)
        return timed.completed(buffer)

    def done(future: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
        clock.bucket_done(reduce)
        return future.value()[0]

    return work.get_future().then(done)
