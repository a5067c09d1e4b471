"""Times the communication of a script's DistributedDataParallel.

The script's communication hook, if any, is wrapped. DDP accepts one hook and never another, so the
state with which it is registered decides what is called.
"""

# No postponed annotations here: DDP checks the types that a communication hook declares.

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import GradBucket
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parallel.distributed import _BufferCommHookLocation

from dpeval.components.strategies import TimedGroup, timed_all_reduce, timed_broadcast
from dpeval.devices.base import Device
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.record.phases import Phase
from dpeval.util.arrays import Floats

MOST_BUCKETS = 10_000
"""Per model: the buckets of a second one are numbered from here."""
Hook = Callable[[Any, GradBucket], torch.futures.Future[torch.Tensor]]


class StepClock(PhaseClock):
    """A phase clock that a script may use anywhere: outside a step its marks are ignored."""

    def __init__(self, device: Device, rows: Floats) -> None:
        super().__init__(device, rows)
        self.seen: set[str] = {"other"}
        """The phases that were marked in some step."""

    def mark(self, phase: Phase) -> None:
        if self._open is not None:
            self._marks.append((phase, self._stamp()))

    def leave_out(self) -> None:
        if self._open is not None:
            super().leave_out()

    def _write(self, step: Any) -> None:
        self.seen.update(phase for phase, _ in step.marks)
        super()._write(step)

    def bucket_ready(self, bucket: int, nbytes: int, *, is_last: bool) -> Any:
        """See :meth:`PhaseClock.bucket_ready`; None outside a step.

        Args:
            bucket: index of the bucket.
            nbytes: its size, bytes.
            is_last: whether it is the last bucket of the step.
        """
        if self._open is not None:
            return super().bucket_ready(bucket, nbytes, is_last=is_last)
        return None

    def bucket_done(self, reduce: Any) -> None:
        if reduce is not None:
            super().bucket_done(reduce)


@dataclass
class TimedHook:
    """The state of :func:`timed_hook`."""

    group: TimedGroup
    ranks: int
    own: tuple[Any, Hook] | None = None
    """State and hook of the script, if it registered any."""


def timed_hook(timed: TimedHook, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Average a bucket over all ranks, as DDP or the script's hook does, and time it."""
    if timed.own is None:
        if timed.ranks > 1:
            bucket.buffer().div_(timed.ranks)
        return timed_all_reduce(timed.group, bucket)
    state, hook = timed.own
    clock, is_last = timed.group.clock, bucket.is_last()
    number = timed.group.first_bucket + bucket.index()
    reduce = clock.bucket_ready(number, bucket.buffer().nbytes, is_last=is_last)
    future = hook(state, bucket)
    if is_last:
        future.wait()
        clock.bucket_done(reduce)
        return future

    def done(ended: torch.futures.Future[torch.Tensor]) -> torch.Tensor:
        clock.bucket_done(reduce)
        return ended.value()

    return future.then(done)


class DdpHooks:
    """Registers timed hooks with the models of a script."""

    def __init__(self, clock: PhaseClock) -> None:
        self._clock = clock
        self._timed: dict[int, TimedHook] = {}
        """By the id of the model; models live as long as the script."""
        self._register = DistributedDataParallel.register_comm_hook
        self._make = DistributedDataParallel.__init__
        self._made: list[weakref.ref[DistributedDataParallel]] | None = []
        """The models that are not timed yet; None once every new one is timed at once."""
        self.untimed: list[str] = []
        """Why the communication of some model is not timed."""

    def install(self) -> None:
        """Notice the models, and the hooks, that the script makes from now on."""
        hooks = self

        def make(model: DistributedDataParallel, *args: Any, **kwargs: Any) -> None:
            hooks._make(model, *args, **kwargs)
            if hooks._made is None:
                hooks.time(model)
            else:
                hooks._made.append(weakref.ref(model))

        def register(model: DistributedDataParallel, state: object, hook: Hook) -> None:
            hooks.time(model, (state, hook))

        DistributedDataParallel.__init__ = make  # type: ignore[method-assign, assignment]
        DistributedDataParallel.register_comm_hook = register  # type: ignore[method-assign, assignment]

    def time_all(self) -> None:
        """Time the models that the script has made, and those that it will make."""
        made, self._made = self._made or [], None
        for model in filter(None, (one() for one in made)):
            self.time(model)

    def remove(self) -> None:
        DistributedDataParallel.__init__ = self._make  # type: ignore[method-assign]
        DistributedDataParallel.register_comm_hook = self._register  # type: ignore[method-assign]

    def time(self, model: DistributedDataParallel, own: tuple[Any, Hook] | None = None) -> None:
        """Time the communication of `model`.

        Args:
            model: the model, which may already be timed.
            own: state and hook of the script; None: DDP's default.
        """
        timed = self._timed.get(id(model))
        if timed is not None:
            timed.own = own or timed.own
            return
        if model._comm_hooks:
            self.untimed.append(
                "exposed communication: the script registered its communication hook before it "
                "made its dpeval.Meter"
            )
            return
        clock, size = self._clock, dist.get_world_size(model.process_group)
        group = TimedGroup(
            clock,
            model.process_group,
            broadcast_bytes=model.broadcast_bucket_size,
            first_bucket=MOST_BUCKETS * len(self._timed),
        )
        timed = self._timed[id(model)] = TimedHook(group, size, own)
        self._register(model, timed, timed_hook)
        if model.broadcast_buffers and not hasattr(model, "buffer_hook"):
            before = _BufferCommHookLocation.PRE_FORWARD
            model._register_buffer_comm_hook(group, timed_broadcast, before)
