"""How ranks synchronise their gradients. A strategy is one function and one YAML file.

A strategy receives the model on its device and wraps it. In a rank's loss every image has the
weight ``1 / global_batch_size``, so gradients are *summed* over ranks: the sum is the gradient of
the mean loss over the global batch, however that was split.
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
from torch.nn.parallel.distributed import _BufferCommHookLocation

from dpeval.config import StrategyConfig
from dpeval.devices.base import Device
from dpeval.errors import ConfigError
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.util.display.units import MIB
from dpeval.util.importing import check_arguments, locate


@dataclass(frozen=True)
class WrappedModel:
    """A model ready to train."""

    module: Callable[..., Any]
    """Takes images [b, 3, px, px] and returns logits [b, classes]."""
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext
    """A context in which gradients stay local. Leave the default if the strategy has none; there
    is then no ablation."""
    follow: Callable[[bool], None] | None = None
    """Makes the next step start as it would after a step that synchronised gradients (True) or kept
    them local (False); None: only such a step can do that."""

    @property
    def can_keep_gradients(self) -> bool:
        """Whether steps without synchronisation are possible."""
        return self.no_sync is not nullcontext


class WrapModel(Protocol):
    """The signature of what ``strategy._target_`` names."""

    def __call__(
        self,
        model: nn.Module,
        config: StrategyConfig,
        device: Device,
        clock: PhaseClock,
        **args: Any,
    ) -> WrappedModel:
        """Wrap the model so that the backward pass sums gradients over all ranks.

        Called on every rank, after it has joined the process group.

        Args:
            model: on its device, in training mode.
            config: the keys of ``strategy``.
            device: the rank's device.
            clock: call it when the gradients of a bucket are complete and when the bucket is
                reduced, and around communication outside the backward pass:
                ``clock.mark("forward")`` before it and ``clock.mark("comm_exposed")`` after it.
            args: ``strategy.args``.
        """


def check(config: StrategyConfig) -> None:
    """Check that the strategy can be called as configured.

    Raises:
        ConfigError: its target cannot be imported or does not accept ``strategy.args``.
    """
    target = locate(config._target_, key="strategy._target_")
    given = ("model", "config", "device", "clock")
    check_arguments(target, given, config.args, key="strategy.args")


def wrap(
    model: nn.Module, config: StrategyConfig, device: Device, clock: PhaseClock
) -> WrappedModel:
    """Wrap `model` with the strategy that `config` names; see :class:`WrapModel`.

    Args:
        model: on its device, in training mode.
        config: the keys of ``strategy``.
        device: the rank's device.
        clock: records when buckets are complete and reduced.

    Raises:
        ConfigError: the target cannot be imported, or does not return a :class:`WrappedModel`.
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
    """One device without a wrapper.

    Args:
        model: the model, returned as it is.
        config: unused.
        device: unused.
        clock: unused.
    """
    return WrappedModel(model, nullcontext)


def ddp(
    model: nn.Module, config: StrategyConfig, device: Device, clock: PhaseClock
) -> WrappedModel:
    """DistributedDataParallel (Li et al. 2020, PVLDB 13(12)) with its communication timed.

    The hook replaces DDP's all-reduce with the same operation, and marks when the gradients of a
    bucket are complete and when its future is. NCCL's futures run their callbacks on a stream that
    waits for the collective, where an event can be recorded. gloo's futures run them in a separate
    thread, after gloo has made the default stream wait for the result; CUDA work that was launched
    earlier is then counted as time of a hidden all-reduce. Exposed time is exact with both.

    Before a forward pass, DDP broadcasts the model's buffers (BatchNorm's statistics) from rank 0.
    A second hook replaces this broadcast and marks it as exposed communication: a rank that gets
    there before rank 0 waits.

    Args:
        model: on its device, in training mode.
        config: the keys of ``strategy``.
        device: the rank's device.
        clock: records when buckets are complete and reduced, and when buffers are broadcast.
    """
    # Recent releases of torch warn if even the default is passed.
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
    timed = TimedGroup(clock, group, broadcast_bytes=wrapped.broadcast_bucket_size)
    wrapped.register_comm_hook(timed, timed_all_reduce)
    wrapped._register_buffer_comm_hook(timed, timed_broadcast, _BufferCommHookLocation.PRE_FORWARD)

    def follow(synchronised: bool) -> None:
        # Otherwise, the next forward pass broadcasts buffers only if the last step was
        # synchronised.
        wrapped.require_forward_param_sync = synchronised

    return WrappedModel(wrapped, wrapped.no_sync, follow)


@dataclass
class TimedGroup:
    """State of the hooks: the process group whose communication they time, and the clock."""

    clock: PhaseClock
    group: dist.ProcessGroup
    broadcast_bytes: int = 250 * MIB
    """Maximum size of one broadcast of buffers; the default is DDP's."""
    first_bucket: int = 0
    """The number under which the model's first bucket is recorded."""
    _finished: torch.futures.Future[torch.Tensor] | None = None
    _steps: int = 0

    def completed(self, buffer: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
        """A completed future that holds `buffer`; reused, because making one costs 20 µs."""
        self._steps += 1
        kept = self._finished
        if kept is not None and kept.value() is buffer:
            return kept
        made: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        made.set_result(buffer)
        # DDP rebuilds its buckets after the first step; the old ones must not be kept alive.
        self._finished = made if self._steps > 1 else None
        return made


def timed_all_reduce(timed: TimedGroup, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Sum one bucket over all ranks, timed from its last gradient to the end of its all-reduce.

    DDP starts buckets in order, so the backward pass is complete when the last one starts. Wait for
    that one here: a callback would have to take the GIL from this waiting thread, which is
    noticeable in a step of 10 ms. NCCL's wait blocks the stream but not the host; gloo's blocks
    both.
    """
    buffer = bucket.buffer()
    clock, is_last = timed.clock, bucket.is_last()
    number = timed.first_bucket + bucket.index()
    reduce = clock.bucket_ready(number, buffer.nbytes, is_last=is_last)
    # Call the group's method, as DDP does: dist.all_reduce spends 20 µs on argument checks.
    work = timed.group.allreduce([buffer])
    if is_last:
        work.wait()
        clock.bucket_done(reduce)
        return timed.completed(buffer)

    def done(future: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
        clock.bucket_done(reduce)
        return future.value()[0]

    return work.get_future().then(done)


def timed_broadcast(timed: TimedGroup, buffers: dict[str, torch.Tensor]) -> None:
    """Broadcast a module's buffers from rank 0, as DDP does by default.

    Nothing is computed meanwhile, so all of it is exposed. NCCL's broadcast ends before the next
    work on the current stream, where the mark's event is; gloo's ends before this returns.

    Args:
        timed: the process group and the clock.
        buffers: by name, on the device.
    """
    timed.clock.mark("forward")
    dist._broadcast_coalesced(timed.group, list(buffers.values()), timed.broadcast_bytes, 0)
    timed.clock.mark("comm_exposed")
