"""What runs that take turns cost each other, and how right their ratios are.

    python benchmarks/sitting.py [--only start waiting truths] [--hog]

``start``: from the command to the first turn of 12 runs (target: 10 s), and what a run costs beyond
its steps (0.3 s). ``waiting``: the CPU time of 40 ranks that wait (0.5 % of a core together), and
the step beside them over the step while they are stopped (within 0.5 %). ``truths``: speedups and
efficiency factors of a training that sleeps for known times, on 1 to 8 ranks, with jitter, drift
and, on request, a hog on every core (1 % and 2 %).
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console

from benchmarks.interleaving import hogs
from dpeval import record
from dpeval.analysis.frame import runs_frame
from dpeval.analysis.scaling.findings import find
from dpeval.commands import hydra_app
from dpeval.record.schema import Record
from dpeval.run.console import PlainReporter
from dpeval.run.session import Session
from dpeval.sitting.coordinator import Coordinator
from dpeval.sitting.seat import Seat
from dpeval.stats.intervals import ratio_interval

ROOT = Path(__file__).resolve().parents[1]
QUICK = ("measure=quick", "analyze=false", "hardware.oversubscribe=true")
CALIBRATED = ("model=calibrated", "dataset=calibrated", *QUICK)
FORWARD_S, BACKWARD_S = 0.02, 0.03
STRAGGLER = 1.3
RANKS = (1, 2, 4, 8)
WAITING = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {"start": start, "waiting": waiting, "truths": truths}
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--hog", action="store_true", help="truths: beside a hog on every core")
    given = parser.parse_args()
    for name in given.only:
        with hogs(10.0) if given.hog and name == "truths" else nullcontext():
            parts[name]()


def train(folder: Path, *overrides: str) -> tuple[list[Record], float]:
    """The records of a sweep, and when its command was given, on the monotonic clock."""
    begin_s = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "dpeval.train", "-m", f"hydra.sweep.dir={folder}", *overrides],
        cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return [record.read(path) for path in sorted(folder.glob("*/metrics.json"))], begin_s


def start() -> None:
    """12 runs of a real model."""
    with tempfile.TemporaryDirectory() as folder:
        runs, begin_s = train(
            Path(folder), *QUICK, "dataset=imagenette_like", "dataset.image_px=64",
            "dataset.train_images=256", "num_devices=1,2", "batch=4,6,8,10,12,14",
            "measure.max_steps=12", "measure.rel_precision=1e-4",
        )  # fmt: skip
    spans = sorted(
        (begin, begin + step)
        for run in runs
        for begin, step in zip(run.ranks[0].begin_s, run.ranks[0].step_s, strict=True)
    )
    print(f"start: {len(runs)} runs, first step {spans[0][0] - begin_s:.1f} s after the command")
    beyond_s = spans[-1][1] - spans[0][0] - sum(end - begin for begin, end in spans)
    print(f"       {beyond_s / len(runs):.3f} s a run beyond its {len(spans) // len(runs)} steps")


def waiting(pairs: int = 40) -> None:
    """One rank steps while 40 wait; in every other turn they are stopped, and use nothing."""
    session = Session(PlainReporter(Console(quiet=True)))
    with tempfile.TemporaryDirectory() as folder:
        alone = [*QUICK, "measure.max_steps=100000", "dataset=imagenette_like", "model=resnet18",
                 "dataset.image_px=32", "dataset.train_images=256", "batch=4"]  # fmt: skip
        many = [*CALIBRATED, f"num_devices={WAITING}", f"batch={WAITING}"]
        jobs = [
            session.job(hydra_app.compose(overrides), Path(folder) / str(number), overrides)
            for number, overrides in enumerate((alone, many))
        ]
        seats = [Seat(session.live(job)) for job in jobs]
        coordinator = Coordinator([seats], session.reporter, 0)
        try:
            coordinator.start(seats)
            _watch(coordinator, seats[0], seats[1], pairs)
        finally:
            for seat in seats:
                seat.run.ranks.end()


def _watch(coordinator: Coordinator, one: Seat, many: Seat, pairs: int) -> None:
    others = [psutil.Process(pid) for pid in many.run.ranks.pids.values()]
    for _ in range(8):
        coordinator.take_turn(one)
    steps: dict[bool, list[float]] = {False: [], True: []}
    used_s = lasted_s = 0.0
    for number in range(2 * pairs):
        is_stopped = (number + number // 2) % 2 == 1
        for other in others:
            other.suspend() if is_stopped else other.resume()
        time.sleep(0.05)
        begin_s, before_s, first = time.monotonic(), _cpu_s(others), one.steps
        coordinator.take_turn(one)
        steps[is_stopped].append(float(one.step_s()[first:].mean()))
        if not is_stopped:
            used_s += _cpu_s(others) - before_s
            lasted_s += time.monotonic() - begin_s
    for other in others:
        other.resume()
    found = ratio_interval(np.array(steps[False]), np.array(steps[True]))
    ratio = float(np.mean(steps[False]) / np.mean(steps[True]))
    print(f"waiting: {len(others)} ranks use {used_s / lasted_s:.2%} of a core together")
    print(f"         step beside them {ratio - 1:+.2%} ± {found.rel_half_width:.2%}")


def _cpu_s(processes: Sequence[psutil.Process]) -> float:
    """CPU time of all their threads, to the nanosecond."""
    total_ns = 0
    for process in processes:
        for path in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
            total_ns += int(path.read_text().split()[0])
    return total_ns / 1e9


def truths() -> None:
    """Passes of known times: speedup is that of the images, and a straggler delays the others."""
    faults = {
        "clean": "{}",
        "jitter": "{jitter: 0.1}",
        "drift": "{drift_per_step: 0.002}",
        "straggler": f"{{straggler_rank: 1, straggler_factor: {STRAGGLER}}}",
    }
    for name, fault in faults.items():
        with tempfile.TemporaryDirectory() as folder:
            train(
                Path(folder), *CALIBRATED, f"num_devices={','.join(map(str, RANKS))}",
                f"model.args={{forward_s: {FORWARD_S}, backward_s: {BACKWARD_S}, faults: {fault}}}",
                "model.args.gradient_mib=0.01", "measure.ablation=true",
                "measure.ablation_share=2", "measure.rel_precision=0.005",
                "measure.time_limit_s=30", "measure.max_steps=5000",
            )  # fmt: skip
            _compare(name, Path(folder))


def _compare(name: str, folder: Path) -> None:
    """Print how far each speedup and factor is from what was built in."""
    found = find(runs_frame.load([folder]))
    for row in found.points[found.points["num_devices"] > 1].to_dict("records"):
        slower = STRAGGLER if name == "straggler" else 1.0
        if name == "jitter":
            slower = _slowest(int(row["num_devices"]))
        off = row["speedup"] * slower - 1
        half = math.log(row["speedup_high"] / row["speedup_low"]) / 2
        print(f"{name}: {row['num_devices']} ranks: speedup off by {off:+.2%} (± {half:.2%})")
    for waterfall in found.waterfalls:
        devices = waterfall.key["num_devices"]
        truth = {"granularity": 1 / devices}
        if name == "straggler":
            truth["load balance"] = 1 / STRAGGLER
        for factor in waterfall.factors:
            if name == "jitter" and factor.name in ("load balance", "gradient synchronisation"):
                continue  # each rank's jitter is its own: which factor a wait is in depends on it
            off = factor.value / truth.get(factor.name, 1.0) - 1
            print(f"    {devices} ranks: {factor.name} off by {off:+.2%} (± {factor.half:.2%})")


def _slowest(ranks: int) -> float:
    """Mean of the longest of so many jittered steps over that of one."""
    generator = np.random.default_rng(0)
    return float(generator.lognormal(-0.005, 0.1, (200_000, ranks)).max(axis=1).mean())


if __name__ == "__main__":
    main()
