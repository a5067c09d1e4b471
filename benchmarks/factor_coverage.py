"""How often the intervals of efficiency factors cover the truth; printed by benchmarks/coverage.py.

Two ranks, whose steps share half of their noise, are measured in a main window and then in ablation
blocks, in the order in which ranks run them. One device is measured in a run of its own, and every
run is faster or slower than the truth as a whole. Where a case repeats runs, each of its factors
strays too.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.noise import Noise
from benchmarks.scoring import Score, autoregressive, score
from dpeval.analysis.frame import step_losses
from dpeval.analysis.frame.columns import SCHEMA
from dpeval.analysis.frame.runs_frame import typed
from dpeval.analysis.pooling import repetitions
from dpeval.analysis.scaling import efficiency, speedup
from dpeval.record.schema import Ablation, AblationBlock, Record, blank
from dpeval.stats.intervals import mean_interval
from dpeval.util.arrays import Floats
from dpeval.worker.ablation_schedule import KINDS, order

STEPS, BATCH = 60, 32
"""Steps of a main window, and images of the global batch."""
ONE_S, ALONE_S, CONTENTION, SYNCHRONISATION = 1.0, 0.55, 0.95, 0.92
"""Step of one device and of a rank alone, s, and two factors."""


def independent(generator: np.random.Generator, series: int, steps: int) -> Floats:
    """White noise."""
    return autoregressive(0.0, generator, series, steps)


@dataclass(frozen=True)
class Case:
    """How steps and runs stray."""

    variation: float = 0.05
    """Standard deviation of a step, over its mean."""
    noise: Noise = independent
    """What makes steps stray."""
    drift: float = 0.0
    """Change from one block to the next, over the mean."""
    rounds: int = 6
    block: int = 4
    """Steps of a block that count."""
    spread: float = 0.02
    """Standard deviation of a run as a whole, in logarithm."""
    strays: float = 0.0
    """Standard deviation of each factor from run to run, in logarithm."""
    runs: int = 1
    """Repetitions of both configurations."""


CASES = {
    "one run, 6 rounds": Case(),
    "one run, 2 rounds": Case(rounds=2),
    "one run, r = 0.6": Case(noise=functools.partial(autoregressive, 0.6)),
    "one run, r = 0.9": Case(noise=functools.partial(autoregressive, 0.9)),
    "one run, drift of 2 %": Case(drift=0.02),
    "3 repetitions": Case(runs=3),
    "3 repetitions that stray 3 %": Case(runs=3, strays=0.03),
    "6 repetitions that stray 3 %": Case(runs=6, strays=0.03),
}


def truth(case: Case) -> dict[str, float]:
    """Every factor but the input factor, which is 1 without an error here."""
    # Two equal ranks whose noise has the correlation 0.5: of each step, the slower one counts.
    balance = 1 / (1 + case.variation * np.sqrt(0.5 / np.pi))
    found = {
        efficiency.GRANULARITY: ONE_S / 2 / ALONE_S,
        efficiency.CONTENTION: CONTENTION,
        efficiency.BALANCE: float(balance),
        efficiency.SYNCHRONISATION: SYNCHRONISATION,
        efficiency.REMAINDER: 1.0,
    }
    if case.drift:  # the windows come later than the main one, and than the other run
        del found[efficiency.GRANULARITY], found[efficiency.REMAINDER]
    return found


def coverage(case: Case, draws: int) -> dict[str, Score]:
    """Coverage and half-widths of the intervals of every factor, over its true value."""
    generator = np.random.default_rng(1)
    rows = [
        made | {"series": f"{draw:05d}"}
        for draw in range(draws)
        for _ in range(case.runs)
        for made in (one_device(case, generator), two_devices(case, generator))
    ]
    known = truth(case)
    factors = [one for found in waterfalls(rows) for one in found.factors]
    return {
        name: score([(one.low, one.high) for one in factors if one.name == name], value)
        for name, value in known.items()
    }


def coverage_of_windows(case: Case, draws: int) -> dict[str, Score]:
    """What a single run's windows show, without the rest of the analysis."""
    generator = np.random.default_rng(1)
    of = {
        efficiency.CONTENTION: ("alone_s", "no_sync_first_s", "contention_half"),
        efficiency.BALANCE: ("no_sync_first_s", "no_sync_s", "first_half"),
        efficiency.SYNCHRONISATION: ("no_sync_s", "normal_s", "sync_half"),
    }
    known = truth(case)
    ends: dict[str, list[tuple[float, float]]] = {name: [] for name in of}
    for _ in range(draws):
        found = {
            name: value or 0.0 for name, value in windows(simulated(case, generator)[1]).items()
        }
        for name, (part, whole, half) in of.items():
            value, factor = found[part] / found[whole] / known[name], np.exp(found[half])
            ends[name].append((value / factor, value * factor))
    return {name: score(pairs, 1.0) for name, pairs in ends.items()}


def waterfalls(rows: list[dict[str, Any]]) -> list[efficiency.Waterfall]:
    """What the analysis finds in rows of a frame of runs."""
    lacking = {field.name: _lacking(field) for field in SCHEMA}
    columns = {name: [row.get(name, value) for row in rows] for name, value in lacking.items()}
    return efficiency.waterfalls(speedup.points(repetitions.pool(typed(columns))))


def _lacking(field: pa.Field) -> int | bool | None:
    if pa.types.is_boolean(field.type):
        return False
    return 0 if pa.types.is_integer(field.type) else None


def one_device(case: Case, generator: np.random.Generator) -> dict[str, Any]:
    """The row of a run on one device."""
    scale = np.exp(generator.normal(0, case.spread))
    noise = case.noise(generator, 1, STEPS)[0]
    return row(1, ONE_S * scale * (1 + case.variation * noise))


def two_devices(case: Case, generator: np.random.Generator) -> dict[str, Any]:
    """The row of a run on two devices, with what its ablation blocks show."""
    usual, blocks = simulated(case, generator)
    return row(2, usual) | {"alone_batch": BATCH // 2} | windows(blocks)


def simulated(case: Case, generator: np.random.Generator) -> tuple[Floats, list[AblationBlock]]:
    """The steps of a main window on two devices, s, and the ablation blocks after it."""
    kinds, size = order(case.rounds), case.block + 1
    count = STEPS + len(kinds) * size
    common, *own = case.noise(generator, 3, count)
    noise = 1 + case.variation * (common + np.array(own)) / np.sqrt(2)
    blocks = np.clip((np.arange(count) - STEPS) / size, 0, None)
    drifting = 1 + case.drift * (blocks - (len(kinds) - 1) / 2) * (blocks > 0)
    strays = np.exp(generator.normal(0, [case.spread, *[case.strays] * len(KINDS)]))
    times = noise * drifting * ALONE_S * strays[0]
    among = times / CONTENTION * strays[1]
    usual = among.max(axis=0) / SYNCHRONISATION * strays[2]
    made = []
    for place, kind in enumerate(kinds):
        counted = slice(STEPS + place * size + 1, STEPS + (place + 1) * size)
        step = {"normal": [usual, usual], "no_sync": list(among), "alone": [times[0]]}[kind]
        series = [one[counted].tolist() for one in step]
        made.append(AblationBlock.model_construct(kind=kind, step_s=series))
    return usual[:STEPS], made


def windows(blocks: list[AblationBlock]) -> dict[str, float | None]:
    """The columns that hold what blocks show."""
    nothing: Record = blank({"study": "", "repetition": 0}, "", [], "ok", None)
    made = Ablation(
        blocks=blocks, normal_s=0, no_sync_s=0, alone_s=0, comm_cost_s=0, sharing_cost_s=0
    )
    return step_losses.columns(nothing.model_copy(update={"ablation": made}))


def row(devices: int, step: Floats) -> dict[str, Any]:
    """The row of a run with these steps in its main window, s."""
    known = mean_interval(step)
    rates = {"img_per_s": known.mean, "img_per_s_low": known.high, "img_per_s_high": known.low}
    return {
        "status": "ok", "hardware": "cpu", "scaling": "strong", "batch": BATCH,
        "num_devices": devices, "images_per_step": BATCH, "per_device_batch_max": BATCH / devices,
        "steps": STEPS, "effective_steps": known.effective_samples, "step_s": known.mean,
        "input_s": 0.0, "input_half": 0.0, "exposed_s": 0.0,
    } | {name: BATCH / value for name, value in rates.items()}  # fmt: skip


def table(draws: int) -> Iterator[str]:
    """Coverage, and median half-width with its 97.5 % quantile, by case and factor."""
    names = list(truth(Case()))
    yield f"95 % intervals of efficiency factors, steps with CV {Case.variation:.0%}, {draws} draws"
    yield f"{'runs':30}" + "".join(f"{name:>26}" for name in names)
    for title, case in CASES.items():
        found = coverage(case, draws)
        cells = [str(found[name]) if name in found else "" for name in names]
        yield f"{title:30}" + "".join(f"{cell:>26}" for cell in cells)
