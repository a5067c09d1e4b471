"""What single parts of dpeval's instruments cost the host, and three ways to time an all-reduce."""

# No postponed annotations here: DDP checks the types that a communication hook declares.

import itertools
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
from benchmarks.gpu.setting import Setting, rows
from dpeval.components import models
from dpeval.components.strategies import TimedGroup, timed_all_reduce
from dpeval.devices.base import Device
from dpeval.instruments.phase_clock import PhaseClock

REPEATS, ROUNDS, STEPS = 2000, 24, 25
TIMED = "dpeval's hook, with a clock"


def run(setting: Setting) -> Iterator[Check]:
    """Costs of stamps, then a bare DDP loop with different hooks, interleaved."""
    if setting.rehearse:
        yield not_measured("costs of events and hooks", "the CPU has neither")
        return
    device = setting.device()
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
    clock = PhaseClock(device, rows(ROUNDS * STEPS + 10))

    def wrapped() -> DistributedDataParallel:
        model = models.build(config.model, 32).to(device.torch_device).train()
        return DistributedDataParallel(model, device_ids=[0])

    hooks: dict[str, tuple[Any, Any]] = {
        "a chained callback": (group, _chained),
        "a side stream": (_SideStream(group), _beside),
        TIMED: (TimedGroup(clock, group), timed_all_reduce),
    }
    variants = {"built in": wrapped()}
    for name, (state, hook) in hooks.items():
        variants[name] = wrapped()
        variants[name].register_comm_hook(state, hook)
    taken = dict.fromkeys(variants, 0)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, model in variants.items():
            device.finish()
            begin_s = time.perf_counter()
            for _ in range(STEPS):
                _step(model, images, clock if name == TIMED else None, taken[name])
                taken[name] += 1
            device.finish()
            times[name].append((time.perf_counter() - begin_s) / STEPS)
    base = np.array(times["built in"][2:])
    yield report("bare step", float(np.median(base)) * 1e3, "ms")
    for name in list(variants)[1:]:
        more = float(np.median(np.array(times[name][2:]) - base)) * 1e6
        yield report(f"all-reduce with {name}", more, "µs per step more")


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
