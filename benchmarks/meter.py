"""What the meter costs a script, and whether it measures what dpeval's own loop measures.

    python -m benchmarks.meter overhead [--pairs 200] [--cpu]
    python -m benchmarks.meter outside
    python -m benchmarks.meter same [overrides of the classification]

``overhead``: blocks of steps of a bare loop and of the same loop under a meter alternate in one
process, each with a model of its own, so a drift of the machine affects both alike. With ``--cpu``,
shorter blocks are timed by the CPU time that they take: on a machine that others use, too, the
elapsed time says little.

``outside``: what a step takes of a meter with nothing to measure.

``same``: a classification run by dpeval's own loop and the same training as a script
(:mod:`benchmarks.meter_script`) take turns in one sitting. Printed are the ratio of their
throughputs from the rounds that both took part in, and the mean of each phase. Both keep freed
memory: what the C library returns to the system in every step depends on what a process allocated
before, which differs between the two by 10 % of a step and more, whoever measures.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn

import dpeval
from benchmarks.overhead import Pairs, bare_step_s, ratio_of_means, ratio_of_medians
from dpeval.commands import hydra_app
from dpeval.config import Config, MeasureConfig
from dpeval.devices.base import Device
from dpeval.devices.cpu import CpuDevice
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.instruments.reference_work import ReferenceWork
from dpeval.instruments.step_buffer import StepBuffer
from dpeval.instruments.stop_sync import StopSync
from dpeval.meter.loop import MeteredLoop
from dpeval.record.phases import PHASES
from dpeval.record.schema import Record
from dpeval.run import console, forkserver
from dpeval.run.session import Session
from dpeval.sitting.coordinator import Coordinator
from dpeval.sitting.seat import Seat
from dpeval.stats import paired
from dpeval.util.arrays import Floats
from dpeval.worker.messages import RankResult

BLOCK_S, CPU_BLOCK_S = 0.15, 0.01
WARM_UP_STEPS = 5
MOST_RATIO, MOST_MS, MOST_OUTSIDE_US = 1.01, 0.1, 1.0
"""Bounds of the overhead: for DenseNet121, for steps of 2 ms, and of an idle meter, per step."""
MOST_APART, MOST_PHASE_APART = 0.01, 0.03
"""Bounds of the relative difference from dpeval's loop: of the throughput and of the phases."""
TOO_SHORT = 0.003
"""A difference of this share of a step is none, however short the phase."""


class Bench:
    """A rank without a supervisor, which never has measured enough."""

    def __init__(self) -> None:
        self._measure = MeasureConfig(rel_precision=1e-4, time_limit_s=1e6, max_steps=100_000)
        self._buffer = StepBuffer(forkserver.context(), 1, self._measure.max_steps)
        self.device: Device = CpuDevice()
        self.rows: Floats = self._buffer.rows(0)
        self.at_end: Callable[[], None] | None = None

    def describe(self, samples_per_step: float | None, unit: str) -> None:
        pass

    def open_gate(self, clock: PhaseClock) -> StopSync:
        return StopSync(0, 0, None, self._buffer, clock, self._measure, ReferenceWork())

    def report(self, result: RankResult) -> None:
        raise SystemExit(f"the meter stopped: {result.stopped_by}")


class Training:
    """A model and everything that one of its steps takes."""

    def __init__(self, model: nn.Module, batch: int, px: int) -> None:
        self.model = model
        self._optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        self._images = torch.randn(batch, 3, px, px)
        self._labels = torch.randint(0, 10, (batch,))

    def step(self) -> None:
        nn.functional.cross_entropy(self.model(self._images), self._labels).backward()
        self._optimizer.step()
        self._optimizer.zero_grad()


def small() -> Training:
    """Steps of about 2 ms."""
    layers = [nn.Flatten(), nn.Linear(768, 256), nn.ReLU(), nn.Linear(256, 10)]
    return Training(nn.Sequential(*layers), 64, 16)


def densenet() -> Training:
    return Training(torchvision.models.densenet121(num_classes=10), 16, 64)


def overhead(make: Callable[[], Training], pairs: int, *, cpu: bool) -> Pairs:
    """Mean step of each bare block and of the metered one beside it, s.

    Args:
        make: makes a model of its own for either.
        pairs: number of pairs of blocks.
        cpu: time the CPU time of this process instead of the elapsed time.
    """
    clock = time.process_time if cpu else time.perf_counter
    bare, ours = make(), make()
    loop = MeteredLoop(Bench(), None, "img")
    loop.watch(ours.model)
    batches = loop.steps(itertools.count())

    def run_bare(steps: int) -> None:
        with loop.pause():
            for _ in range(steps):
                bare.step()

    def run_ours(steps: int) -> None:
        for _ in range(steps):
            next(batches)
            ours.step()

    def mean_step_s(run: Callable[[int], None], steps: int) -> float:
        begin_s = clock()
        run(steps)
        return (clock() - begin_s) / steps

    run_ours(WARM_UP_STEPS)
    run_bare(WARM_UP_STEPS)
    step_s = mean_step_s(run_bare, WARM_UP_STEPS)
    steps = max(1, round(CPU_BLOCK_S / step_s)) if cpu else int(np.clip(BLOCK_S / step_s, 3, 100))
    found: Pairs = []
    for number in range(pairs):
        # Alternate which one goes first, because the second would benefit from the first.
        if number % 2:
            first_s = mean_step_s(run_bare, steps)
            found.append((first_s, mean_step_s(run_ours, steps)))
        else:
            second_s = mean_step_s(run_ours, steps)
            found.append((mean_step_s(run_bare, steps), second_s))
    return found


def outside_us(steps: int = 200_000, repeats: int = 7) -> float:
    """What a meter with nothing to measure adds to a step with one named phase, µs."""
    meter = dpeval.Meter()

    def bare() -> None:
        for _ in range(steps):
            pass

    def metered() -> None:
        for _ in meter.steps(range(steps)):
            with meter.phase("h2d"):
                pass

    bare_s, metered_s = (
        min(timeit.repeat(run, timer=time.process_time, number=1, repeat=repeats))
        for run in (bare, metered)
    )
    return (metered_s - bare_s) / steps * 1e6


def verdict(is_met: bool, bound: str) -> str:
    return f"{'within' if is_met else 'ABOVE'} the bound of {bound}"


def same(overrides: list[str]) -> None:
    """Print how a classification compares with the same training as a script."""
    script = str(Path(__file__).with_name("meter_script.py").resolve())
    limits = ["measure.ablation=false", "measure.until=means", "sweep.order=interleaved",
              "hardware.keep_memory=true"]  # fmt: skip
    built_in = hydra_app.compose([*limits, *overrides])
    own = [item for item in overrides if item.startswith(("num_", "hardware", "measure", "batch"))]
    given = ",".join(f"'{item}'" for item in overrides)
    as_script = hydra_app.compose(
        [*limits, *own, "task=script", f"task.script={script}", f"task.args=[{given}]"]
    )
    with tempfile.TemporaryDirectory() as folder:
        first, second = sit([built_in, as_script], Path(folder))
    found = paired.ratio(paired.rounds_of(first), paired.rounds_of(second), "time_limit")
    if found is None:
        raise SystemExit(f"nothing to compare: {first.cause} {second.cause}")
    print(f"throughput of the script over the loop's: {found.mean:.4f}, "
          f"95 % interval {found.low:.4f} to {found.high:.4f}")  # fmt: skip
    is_narrow = found.low >= 1 - MOST_APART and found.high <= 1 + MOST_APART
    is_apart = found.high < 1 - MOST_APART or found.low > 1 + MOST_APART
    known = "apart by more" if is_apart else "undecided"
    print(f"  {'equal' if is_narrow else known}: the bound is {100 * MOST_APART:g} %")
    for phase in (*PHASES, "step"):
        loop_s, script_s = (phase_s(made, phase) for made in (first, second))
        apart_s = abs(script_s - loop_s)
        is_met = apart_s <= max(MOST_PHASE_APART * loop_s, TOO_SHORT * phase_s(first, "step"))
        print(f"{phase:14} loop {loop_s * 1e3:9.3f} ms   script {script_s * 1e3:9.3f} ms   "
              + verdict(is_met, f"{100 * MOST_PHASE_APART:g} %"))  # fmt: skip


def sit(configs: list[Config], folder: Path) -> list[Record]:
    """The records of runs that take turns."""
    reporter = console.make_reporter()
    session = Session(reporter)
    jobs = [session.job(config, folder / str(number), []) for number, config in enumerate(configs)]
    session.prepare_all(jobs)
    with reporter:
        for job in jobs:
            session.announce(job)
        seats = [Seat(session.live(job)) for job in jobs]
        records = {
            run.job.folder: made for run, made in Coordinator([seats], reporter, seed=0).measure()
        }
    return [records[job.folder] for job in jobs]


def phase_s(made: Record, phase: str) -> float:
    """Mean of a phase in the main window of rank 0, s; 0 if it was not measured."""
    stats = made.ranks[0].stats.get(phase)
    return stats.mean_s if stats is not None else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("overhead", "outside", "same"))
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--cpu", action="store_true")
    given, overrides = parser.parse_known_args()
    torch.set_num_threads(1)
    if given.what == "same":
        same(overrides or ["dataset=imagenette_like", "dataset.image_px=64", "batch=16"])
        return
    if given.what == "outside":
        us = outside_us()
        print(f"{us:.2f} µs a step, {verdict(us <= MOST_OUTSIDE_US, f'{MOST_OUTSIDE_US:g} µs')}")
        return
    print(f"{'case':12} {'bare step':>10}  of medians, 95 % interval     of means, 95 % interval")
    for name, make in {"2 ms steps": small, "DenseNet121": densenet}.items():
        pairs = overhead(make, given.pairs, cpu=given.cpu)
        medians, means = ratio_of_medians(pairs), ratio_of_means(pairs)
        bare_s = bare_step_s(pairs)
        added_ms, most_ms = ((end - 1) * bare_s * 1e3 for end in (medians.value, medians.high))
        print(f"{name:12} {bare_s * 1e3:7.2f} ms  {medians}   {means}   {added_ms:+.3f} ms a step")
        if make is small:
            print(" ", verdict(most_ms <= MOST_MS, f"{MOST_MS:g} ms a step"))
        else:
            print(" ", verdict(medians.high <= MOST_RATIO, f"{MOST_RATIO:g}"))


if __name__ == "__main__":
    main()
