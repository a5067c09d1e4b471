"""What single parts of dpeval's instruments cost the host, and three ways to time an all-reduce."""

# No postponed annotations here: DDP checks the types that a communication hook declares.

import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import GradBucket
from torch.nn.parallel import DistributedDataParallel

from benchmarks.gpu.checks import Check, not_measured, report
from benchmarks.gpu.setting import Setting, built_model, rows
from dpeval.components.strategies import TimedGroup, timed_all_reduce
from dpeval.devices.base import Device
from dpeval.instruments.phase_clock import PhaseClock

REPEATS, ROUNDS, STEPS = 2000, 40, 20


def run(setting: Setting) -> Iterator[Check]:
    """Costs of stamps, then a bare DDP loop with different hooks, interleaved."""
    if setting.rehearse:
        yield not_measured("costs of events and hooks", "the CPU has neither")
        return
    device = setting.device()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # as a rank's launch cores
    yield from _parts(device)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield from _hooks(setting, device)


def _parts(device: Device) -> Iterator[Check]:
    work = torch.zeros(1, device=device.torch_device)
    for _ in range(100):
        work.add_(1)
    stamps = [device.stamp() for _ in range(REPEATS)]
    device.finish()
    begin_s = time.perf_counter()
    for begin, end in itertools.pairwise(stamps):
        device.elapsed_s(begin, end)
    yield report("reading the time between two stamps", _each_us(begin_s), "µs")
    begin_s = time.perf_counter()
    for stamp in stamps:
        device.is_past(stamp)
    yield report("asking whether a stamp is past", _each_us(begin_s), "µs")
    device.recycle(stamps)
    begin_s = time.perf_counter()
    stamps = [device.stamp() for _ in range(REPEATS)]
    yield report("a stamp with a used event", _each_us(begin_s), "µs")
    device.finish()
    begin_s = time.perf_counter()
    fresh = [torch.cuda.Event(enable_timing=True) for _ in range(REPEATS)]
    for event in fresh:
        event.record()
    yield report("a stamp with a new event", _each_us(begin_s), "µs")
    device.finish()
    begin_s = time.perf_counter()
    for _ in range(REPEATS):
        work.add_(1)
    yield report("launching a kernel", _each_us(begin_s), "µs")
    device.finish()


def _each_us(begin_s: float) -> float:
    return (time.perf_counter() - begin_s) / REPEATS * 1e6


def _hooks(setting: Setting, device: Device) -> Iterator[Check]:
    config = setting.config("model=resnet18", "batch=8", "dataset.image_px=32")
    images = torch.randn(8, 3, 32, 32, device=device.torch_device)
    group = dist.group.WORLD
    assert group is not None
    timer = _StampTimer(device)
    clock = PhaseClock(timer, rows(100_000))
    idle = PhaseClock(_Idle(device), rows(100_000))
    beside = PhaseClock(device, rows(100_000))
    hooks: dict[str, tuple[Any, Any] | None] = {
        "nothing": None,
        "phases alone": None,
        "a chained callback": (group, _chained),
        "a side stream": (_SideStream(group), _beside),
        "a hook without stamps": (TimedGroup(idle, group), timed_all_reduce),
        "a hook with stamps": (TimedGroup(clock, group), timed_all_reduce),
    }
    clocks = {
        "phases alone": beside,
        "a hook without stamps": idle,
        "a hook with stamps": clock,
    }
    variants = {}
    for name, hook in hooks.items():
        variants[name] = DistributedDataParallel(built_model(config, device), device_ids=[0])
        if hook is not None:
            variants[name].register_comm_hook(*hook)
    taken = dict.fromkeys(variants, 0)
    times: dict[str, list[float]] = {name: [] for name in variants}
    order = np.random.default_rng(0)
    for _ in range(ROUNDS):
        for name in order.permutation(list(variants)):
            device.finish()
            begin_s = time.perf_counter()
            for _ in range(STEPS):
                _step(variants[name], images, clocks.get(name), taken[name])
                taken[name] += 1
            device.finish()
            times[name].append((time.perf_counter() - begin_s) / STEPS)
    base = np.array(times["nothing"][2:])
    yield report("bare step", float(np.median(base)) * 1e3, "ms")
    for name in list(variants)[1:]:
        more = (np.array(times[name][2:]) - base) * 1e6
        draws = np.random.default_rng(0).choice(more, (2000, len(more)))
        low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
        note = f"95 %: {low:.0f} to {high:.0f}"
        yield report(f"a step with {name}", float(np.median(more)), "µs more", note)
    steps = taken["a hook with stamps"]
    yield report("stamps of a step", timer.total_s / steps * 1e6, "µs")
    yield report("number of stamps of a step", timer.count / steps)
    yield report("longest stamp", timer.longest_s * 1e6, "µs")


class _StampTimer:
    """A device that measures how long its stamps take the host."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.total_s = self.longest_s = 0.0
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def stamp(self) -> Any:
        begin_s = time.perf_counter()
        made = self._device.stamp()
        took_s = time.perf_counter() - begin_s
        self.total_s += took_s
        self.longest_s = max(self.longest_s, took_s)
        self.count += 1
        return made


class _Idle(_StampTimer):
    """A device whose stamps cost nothing and mean nothing."""

    def stamp(self) -> float:
        return 0.0

    def is_past(self, stamp: float) -> bool:
        return True

    def elapsed_s(self, begin: float, end: float) -> float:
        return 0.0

    def recycle(self, stamps: Any) -> None:
        pass


def _step(model: nn.Module, images: torch.Tensor, clock: PhaseClock | None, index: int) -> None:
    if clock is not None:
        clock.start_step(index, time.monotonic())
    loss = model(images).sum()
    if clock is not None:
        clock.mark("forward")
    loss.backward()
    if clock is not None:
        clock.mark("backward")
        clock.end_step()
    model.zero_grad(set_to_none=True)


def _chained(group: Any, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    work = group.allreduce([bucket.buffer()])
    then: Callable[..., torch.Tensor] = lambda future: future.value()[0]  # noqa: E731
    chained: torch.futures.Future[torch.Tensor] = work.get_future().then(then)
    return chained


class _SideStream:
    """All-reduces whose ends are recorded on a stream of their own, without a callback."""

    def __init__(self, group: Any) -> None:
        self.group, self.stream = group, torch.cuda.Stream()
        self.works: list[Any] = []
        self.event = torch.cuda.Event(enable_timing=True)


def _beside(state: Any, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    buffer = bucket.buffer()
    work = state.group.allreduce([buffer])
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(buffer)
    state.works.append(work)
    if bucket.is_last():
        for each in state.works:
            each.wait()
        state.works.clear()
    else:
        with torch.cuda.stream(state.stream):
            work.wait()
            state.event.record(state.stream)
    return done
