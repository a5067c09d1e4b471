"""The phase clock against CUPTI: the spans of the kernels that each phase launched."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.gpu.checks import Check, near, not_measured
from benchmarks.gpu.setting import Setting, built_model, column, rows, trainer
from dpeval.components.optimizers import build_optimizer
from dpeval.devices.base import Device
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.worker.loop import train_step

CASES = (("densenet121", "fp32", 32), ("resnet50", "bf16", 64))
STEPS, WARM_UP = 10, 5
PHASES = ("data", "h2d", "forward", "backward", "optimizer")
"""In the order of a step's marks, the last of which is its end."""


class NamedStamps:
    """A device that names every stamp in the profile, so that kernels can be assigned to phases."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.made = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def stamp(self) -> Any:
        with record_function(f"stamp {self.made}"):
            self.made += 1
            return self._device.stamp()


def run(setting: Setting) -> Iterator[Check]:
    """Each phase of ten steps, clock against profile; max(20 µs, 1 %)."""
    if setting.rehearse:
        yield not_measured("kernel spans", "the CPU has no kernels to trace")
        return
    for name, precision, batch in CASES:
        yield from _case(setting, name, precision, batch)


def _case(setting: Setting, name: str, precision: str, batch: int) -> Iterator[Check]:
    device = NamedStamps(setting.device())
    config = setting.config(
        f"model={name}", f"precision={precision}", f"batch={batch}", "dataset.image_px=224"
    )
    model = built_model(config, device)
    table = rows(WARM_UP + STEPS)
    made = trainer(
        config,
        device,
        model,
        build_optimizer(config.optimizer, model),
        clock=PhaseClock(device, table),
    )
    for step in range(WARM_UP):
        train_step(made, step)
    device.finish()
    first = device.made
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        for step in range(WARM_UP, WARM_UP + STEPS):
            made.clock.pause()  # every step has a begin of its own
            train_step(made, step)
        device.finish()
    made.clock.drain()
    path = setting.folder / f"{name}-{precision}.trace.json"
    profiled.export_chrome_trace(str(path))
    times_s = stamp_times(path, first, device.made)
    path.unlink()
    each = (device.made - first) // STEPS
    traced = np.diff(np.array(times_s).reshape(STEPS, each), axis=1)
    measured = table[WARM_UP:]
    # The profiler's own first launch is slow: the first traced step is left out.
    for at, phase in enumerate(PHASES):
        if phase in ("data", "h2d"):
            continue
        clock_s = float(np.median(column(measured[1:], phase)))
        truth_s = float(np.median(traced[1:, at]))
        yield near(
            f"{phase}, {name} {precision}",
            clock_s * 1e3,
            truth_s * 1e3,
            "ms",
            share=0.01,
            at_least=0.02,
            note="truth: kernels in the profile",
        )
    device_s = float(np.median(column(measured[1:], "step")))
    traced_s = float(np.median(traced[1:].sum(axis=1)))
    yield near(
        f"step, {name} {precision}",
        device_s * 1e3,
        traced_s * 1e3,
        "ms",
        share=0.01,
        at_least=0.02,
        note="truth: kernels in the profile",
    )


@dataclass(frozen=True)
class _Launch:
    """A kernel by the host's time of its launch."""

    host_us: float
    end_us: float


def stamp_times(path: Path, first: int, last: int) -> list[float]:
    """When the device reached each stamp according to a trace, s.

    An event is reached when the work launched before it has ended; if the device was idle, when
    the host recorded it.

    Args:
        path: a Chrome trace of torch.profiler.
        first: number of the first stamp in it.
        last: number after its last stamp.
    """
    events = json.loads(path.read_text())["traceEvents"]
    launched: dict[int, float] = {}
    kernel_end: dict[int, float] = defaultdict(float)
    recorded: dict[int, float] = {}
    for event in events:
        kind, arguments = event.get("cat", ""), event.get("args", {})
        correlation = arguments.get("correlation")
        if kind in ("cuda_runtime", "cuda_driver") and correlation is not None:
            launched.setdefault(correlation, event["ts"])
        elif kind in ("kernel", "gpu_memcpy", "gpu_memset"):
            end_us = event["ts"] + event["dur"]
            kernel_end[correlation] = max(kernel_end[correlation], end_us)
        elif kind == "user_annotation" and event["name"].startswith("stamp "):
            recorded[int(event["name"].split()[1])] = event["ts"] + event["dur"] / 2
    launches = sorted(
        (_Launch(launched[key], end_us) for key, end_us in kernel_end.items() if key in launched),
        key=lambda item: item.host_us,
    )
    times, latest_us, at = [], 0.0, 0
    for number in range(first, last):
        host_us = recorded[number]
        while at < len(launches) and launches[at].host_us < host_us:
            latest_us = max(latest_us, launches[at].end_us)
            at += 1
        times.append(max(latest_us, host_us) / 1e6)
    return times
