"""The phase clock against kernels that last a known time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.gpu.checks import Check, near, report
from benchmarks.gpu.known_times import Sleeper, SleepingOptimizer, sleeping_model
from benchmarks.gpu.setting import FixedLoader, Setting, column, random_loader, rows, trainer
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.worker.loop import train_step

LAYERS, FORWARD_S, BACKWARD_S, COPY_S, UPDATE_S = 4, 0.005, 0.008, 0.005, 0.005
SKIPPED = 3


class SleepingLoader(FixedLoader):
    """Takes a known time to put a batch on the device."""

    def __init__(self, fixed: FixedLoader, sleep: Sleeper) -> None:
        super().__init__(*fixed.next())
        self._sleep = sleep

    def put(self, batch: Any) -> Any:
        self._sleep(COPY_S)
        return batch


def run(setting: Setting) -> Iterator[Check]:
    """Every phase, and the sum of all steps against the wall clock."""
    device = setting.device()
    sleep = Sleeper(device)
    before = sleep.cycles_per_s
    config = setting.config("batch=4", "dataset.image_px=8")
    classes = config.dataset.num_classes
    model = sleeping_model(sleep, LAYERS, FORWARD_S, BACKWARD_S, 64, classes)
    model = model.to(device.torch_device)
    steps = 8 if setting.rehearse else 40
    table = rows(steps)
    made = trainer(
        config,
        device,
        model,
        SleepingOptimizer(model, sleep, UPDATE_S),
        loader=SleepingLoader(random_loader(config, device), sleep),
        clock=PhaseClock(device, table),
    )
    device.finish()
    begin_s = time.perf_counter()
    for step in range(steps):
        train_step(made, step)
    device.finish()
    wall_s = time.perf_counter() - begin_s
    made.clock.drain()
    after = sleep.calibrate() if device.is_cuda else 0.0
    if device.is_cuda:
        drift = after / before - 1
        yield report("drift of the GPU's clock meanwhile", 100 * drift, "%")
    truths = {
        "h2d": COPY_S,
        "forward": LAYERS * FORWARD_S,
        "backward": LAYERS * BACKWARD_S,
        "optimizer": UPDATE_S,
    }
    for phase, truth_s in truths.items():
        mean_s = float(np.mean(column(table[SKIPPED:], phase)))
        yield near(
            phase, mean_s * 1e3, truth_s * 1e3, "ms", share=0.01, at_least=0.05, is_timing=True
        )
    for phase in ("data", "other"):
        mean_s = float(np.mean(column(table[SKIPPED:], phase)))
        yield near(phase, mean_s * 1e3, 0.0, "ms", at_least=0.1, is_timing=True)
    total_s = float(column(table, "step").sum())
    yield near("all steps", total_s, wall_s, "s", share=0.01, note="truth: wall after synchronize")
