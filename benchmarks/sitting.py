"""What runs that take turns cost each other, and how right their ratios are.

    python -m benchmarks.sitting [--only start waiting truths] [--minutes 10] [--hog]

``start``: from the command to the first turn of 12 runs (at most 10 s), and what a run costs beyond
its steps (0.3 s). ``waiting``: the CPU time of 40 ranks that wait (0.5 % of a core together), and
the step beside them over the step while they are stopped (within 0.5 %). ``truths``: speedups and
efficiency factors of a training that sleeps for known times, on 1 to 8 ranks, with jitter, drift
and, on request, a hog on every core (1 % and 2 %). Each part is repeated for its minutes, and says
of each bound whether it holds.
"""

from __future__ import annotations

import argparse
import itertools
import math
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console

from benchmarks.interleaving import hogs
from benchmarks.verdict import mean_interval, verdict
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
START_S, BEYOND_S, USED, SLOWED, SPEEDUP_OFF, FACTOR_OFF = 10.0, 0.3, 0.005, 0.005, 0.01, 0.02
"""The bounds."""
FORWARD_S, BACKWARD_S = 0.5, 0.75
TRUTH_S = 45
"""Time of each run for its steps."""
STRAGGLER, JITTER = 1.3, 0.02
PAIRS = 40
"""At least so many turns beside ranks that wait, and beside ranks that are stopped."""
RANKS = (1, 2, 4, 8)
WAITING = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {"start": start, "waiting": waiting, "truths": truths}
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--hog", action="store_true", help="truths: beside a hog on every core")
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="of each part; each takes place once anyway"
    )
    given = parser.parse_args()
    for name in given.only:
        with hogs(10.0) if given.hog and name == "truths" else nullcontext():
            parts[name](60 * given.minutes)


def until(seconds: float) -> Iterator[int]:
    """Count from 0 until the time is up, once at least."""
    end_s = time.monotonic() + seconds
    for number in itertools.count():
        if number and time.monotonic() > end_s:
            return
        yield number


def train(folder: Path, *overrides: str) -> tuple[list[Record], float]:
    """The records of a sweep, and when its command was given, on the monotonic clock."""
    begin_s = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "dpeval.train", "-m", f"hydra.sweep.dir={folder}", *overrides],
        cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return [record.read(path) for path in sorted(folder.glob("*/metrics.json"))], begin_s


def start(seconds: float) -> None:
    """12 runs of a real model."""
    found = [_start() for _ in until(seconds)]
    first_s, low_s, high_s = mean_interval([first for first, _ in found])
    print(
        f"start: 12 runs, first step {first_s:.1f} s after the command ({low_s:.1f} to "
        f"{high_s:.1f}); at most {START_S:g} s: {verdict(low_s, high_s, most=START_S)}"
    )
    beyond_s, low_s, high_s = mean_interval([beyond for _, beyond in found])
    print(f"       {beyond_s:.3f} s a run beyond its steps ({low_s:.3f} to {high_s:.3f}); at most "
          f"{BEYOND_S:g} s: {verdict(low_s, high_s, most=BEYOND_S)}", flush=True)  # fmt: skip


def _start() -> tuple[float, float]:
    """From the command to the first step, and what a run takes beyond its steps, s."""
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
    beyond_s = spans[-1][1] - spans[0][0] - sum(end - begin for begin, end in spans)
    return spans[0][0] - begin_s, beyond_s / len(runs)


def waiting(seconds: float) -> None:
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
            _watch(coordinator, seats[0], seats[1], seconds)
        finally:
            for seat in seats:
                seat.run.ranks.end()


def _watch(coordinator: Coordinator, one: Seat, many: Seat, seconds: float) -> None:
    others = [psutil.Process(pid) for pid in many.run.ranks.pids.values()]
    for _ in range(8):
        coordinator.take_turn(one)
    steps: dict[bool, list[float]] = {False: [], True: []}
    used_s = lasted_s = 0.0
    end_s = time.monotonic() + seconds
    for number in itertools.count():
        if number % 4 == 0 and number >= 2 * PAIRS and time.monotonic() > end_s:
            break
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
    off, half = float(np.mean(steps[False]) / np.mean(steps[True])) - 1, found.rel_half_width
    used = used_s / lasted_s
    print(f"waiting: {len(others)} ranks use {used:.2%} of a core together; at most {USED:.1%}: "
          f"{verdict(used, used, most=USED)}")  # fmt: skip
    is_within = verdict(off - half, off + half, least=-SLOWED, most=SLOWED)
    print(f"         step beside them {off:+.2%} ± {half:.2%}; within {SLOWED:.1%}: {is_within}",
          flush=True)  # fmt: skip


def _cpu_s(processes: Sequence[psutil.Process]) -> float:
    """CPU time of all their threads, to the nanosecond."""
    total_ns = 0
    for process in processes:
        for path in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
            total_ns += int(path.read_text().split()[0])
    return total_ns / 1e9


def truths(seconds: float) -> None:
    """Passes of known times: speedup is that of the images, and a straggler delays the others.

    Passes are long, because the ranks share few cores: what each computes between its sleeps adds
    up there, and so do the hops of an all-reduce (some 7 ms of 8 ranks on 2 cores).
    """
    faults = {
        "clean": "{}",
        "jitter": f"{{jitter: {JITTER}}}",
        "drift": "{drift_per_step: 0.002}",
        "straggler": f"{{straggler_rank: 1, straggler_factor: {STRAGGLER}}}",
    }
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for _ in until(seconds):
        for name, fault in faults.items():
            with tempfile.TemporaryDirectory() as folder:
                _train_known(Path(folder), fault)
                for what, off, half in _offs(name, Path(folder)):
                    found[what].append((off, half))
    for what, values in found.items():
        most = SPEEDUP_OFF if what.endswith("speedup") else FACTOR_OFF
        off, low, high = mean_interval([value for value, _ in values])
        if len(values) == 1:
            low, high = off - values[0][1], off + values[0][1]
        print(
            f"{what} off by {off:+.2%} ({low:+.2%} to {high:+.2%}); within {most:.0%}: "
            f"{verdict(low, high, least=-most, most=most)}"
        )


def _train_known(folder: Path, fault: str) -> None:
    train(
        folder, *CALIBRATED, f"num_devices={','.join(map(str, RANKS))}",
        f"model.args={{forward_s: {FORWARD_S}, backward_s: {BACKWARD_S}, faults: {fault}}}",
        "model.args.gradient_mib=0", "measure.ablation=true", "measure.ablation_share=1",
        "measure.rel_precision=0.002", f"measure.time_limit_s={TRUTH_S}", "measure.max_steps=5000",
    )  # fmt: skip


def _offs(name: str, folder: Path) -> Iterator[tuple[str, float, float]]:
    """How far each speedup and factor is from what was built in, with half its interval."""
    found = find(runs_frame.load([folder]))
    for row in found.points[found.points["num_devices"] > 1].to_dict("records"):
        slower = STRAGGLER if name == "straggler" else 1.0
        if name == "jitter":
            slower = _slowest(int(row["num_devices"]))
        half = math.log(row["speedup_high"] / row["speedup_low"]) / 2
        yield f"{name}, {row['num_devices']} ranks: speedup", row["speedup"] * slower - 1, half
    for waterfall in found.waterfalls:
        devices = waterfall.key["num_devices"]
        truth = {"granularity": 1 / devices}
        if name == "straggler":
            truth["load balance"] = 1 / STRAGGLER
        for factor in waterfall.factors:
            if name == "jitter" and factor.name in ("load balance", "gradient synchronisation"):
                continue  # each rank's jitter is its own: which factor a wait is in depends on it
            off = factor.value / truth.get(factor.name, 1.0) - 1
            yield f"{name}, {devices} ranks: {factor.name}", off, factor.half


def _slowest(ranks: int) -> float:
    """Mean of the longest of so many jittered steps over that of one."""
    generator = np.random.default_rng(0)
    steps = generator.lognormal(-(JITTER**2) / 2, JITTER, (200_000, ranks))
    return float(steps.max(axis=1).mean())


if __name__ == "__main__":
    main()
