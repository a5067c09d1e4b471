"""What delays a step: waits for data, communication, and the losses shown by ablation blocks.

A step lasts as long as its slowest rank, and the others wait for that rank. So a wait for data
counts only as far as it delays the step: if rank r computes for c_r and waits for d_r, that is
max_r(d_r + c_r) - max_r(c_r). The waits of a single rank would be counted twice, once as input and
again as imbalance or communication."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dpeval.record.codes import AblationKind
from dpeval.record.phases import COMPUTE_PHASES
from dpeval.record.schema import Ablation, AblationBlock, RankRecord, Record
from dpeval.stats.comparison import quantile
from dpeval.stats.intervals import ratio_interval
from dpeval.util.arrays import Floats

MEANINGS = {
    "input_s": "mean time by which waits for data delay a step",
    "exposed_s": "mean exposed communication of the rank that waits least: none of it is a wait "
    "for slower ranks",
    "normal_s": "ablation: mean normal step of the slowest rank; without waits for data, like the "
    "next three",
    "no_sync_s": "ablation: without gradient synchronisation",
    "no_sync_first_s": "ablation: the same for the first rank",
    "alone_s": "ablation: the first rank alone",
}
"""Columns in seconds."""
HALF_MEANINGS = {
    "input_half": "half-width of the 95 % interval of log(1 - input_s/step_s)",
    "exposed_half": "of log(1 - exposed_s/(step_s - input_s))",
    "balance_half": "of log(balance)",
    "normal_half": "of log(normal_s/(step_s - input_s))",
    "sync_half": "of log(no_sync_s/normal_s)",
    "first_half": "of log(no_sync_first_s/no_sync_s)",
    "contention_half": "of log(alone_s/no_sync_first_s)",
    "alone_half": "of log(alone_s)",
}
"""Columns that hold half-widths within a run, from the rounds of its windows."""
SHARED_ROUNDS, SHARED_FREEDOM = 2, 1.6
"""Rounds in which differences between kinds of blocks share a variance, and its degrees of
freedom."""
_SERIES_FIT = 1e-6
"""A record's series must have the mean that it states, to within this share of the step."""


@dataclass(frozen=True)
class _Main:
    """The main window of a run, s."""

    step: Floats
    """Step times of the slowest rank, shape [steps]."""
    slowest: int
    """Index of that rank."""
    data: Floats
    """Waits for data, shape [ranks, steps]; if there are no series, their means, shape [ranks,
    1]."""
    compute: Floats
    """Time not spent waiting for data or other ranks, in the same shape."""
    exposed: Floats | None
    """Exposed communication, in the same shape; None if it was not timed."""

    @property
    def input(self) -> Floats:
        """The delay of each step by waits for data."""
        if self.exposed is None:  # then what looks like computing includes waits for others
            return np.asarray(self.data.max(axis=0))
        return _delay(self.data, self.compute)

    @property
    def has_series(self) -> bool:
        return len(self.data[0]) > 1


def columns(run: Record) -> dict[str, float | None]:
    """The columns of :data:`MEANINGS` and :data:`HALF_MEANINGS` that `run` can fill."""
    main = _main(run)
    found = _of_main(main) if main is not None else {}
    return found | _of_blocks(run, main)


def waits_are_assumed(run: Record) -> bool:
    """Whether blocks are assumed to have waited for data like the main window."""
    blocks = run.ablation.blocks if run.ablation is not None else []
    return any(block.step_s and not block.data_s for block in blocks)


def _delay(data: Floats, compute: Floats) -> Floats:
    return np.asarray((data + compute).max(axis=0) - compute.max(axis=0))


def _main(run: Record) -> _Main | None:
    window, slowest = run.window, run.slowest
    if window is None or slowest is None:
        return None
    ranks = sorted(run.ranks, key=lambda rank: rank.rank)
    main = slice(window.first, window.first + window.steps)
    step = np.array(slowest.step_s[main])
    if any("data" not in rank.stats for rank in ranks) or not step.sum() > 0:
        return None
    is_timed = all("comm_exposed" in rank.stats for rank in ranks)
    groups = [("data",), COMPUTE_PHASES, *[("comm_exposed",)] * is_timed]
    series = [[_series(rank, names, main) for rank in ranks] for names in groups]
    known = [one for group in series for one in group if one is not None]
    if len(known) == len(ranks) * len(groups) and {len(one) for one in known} == {len(step)}:
        tables = [np.array(group) for group in series]
    else:
        tables = [np.array([[_stated(rank, names)] for rank in ranks]) for names in groups]
    at = [rank.rank for rank in ranks].index(slowest.rank)
    return _Main(step, at, tables[0], tables[1], tables[2] if is_timed else None)


def _stated(rank: RankRecord, names: Sequence[str]) -> float:
    """Mean time of the phases in the main window, as the record states it, s."""
    return sum(rank.stats[name].mean_s for name in names if name in rank.stats)


def _series(rank: RankRecord, names: Sequence[str], main: slice) -> Floats | None:
    """Time of the phases in every step of the window, s; None if it contradicts the stated
    means."""
    parts = [rank.phase_s.get(name, [])[main] for name in names if name in rank.stats]
    if not parts or not parts[0] or len({len(part) for part in parts}) > 1:
        return None
    total: Floats = np.array(parts).sum(axis=0)
    step_s = rank.stats["step"].mean_s if "step" in rank.stats else float(total.mean())
    fits = abs(float(total.mean()) - _stated(rank, names)) <= _SERIES_FIT * abs(step_s)
    return total if fits else None


def _of_main(main: _Main) -> dict[str, float | None]:
    waits = main.input
    found: dict[str, float | None] = {"input_s": max(0.0, float(waits.mean()))}
    least = main.exposed.min(axis=0) if main.exposed is not None else None
    if least is not None:
        found["exposed_s"] = float(least.mean())
    if not main.has_series:
        return found
    found["input_half"] = _ratio_half(main.step - waits, main.step)
    if least is not None:
        found["exposed_half"] = _ratio_half(main.step - waits - least, main.step - waits)
        slowest = int(np.argmax(main.compute.mean(axis=1)))
        found["balance_half"] = _ratio_half(main.compute.mean(axis=0), main.compute[slowest])
    return found


def _ratio_half(part: Floats, whole: Floats) -> float | None:
    """Half-width of the 95 % interval of the log of a ratio of means, to first order.

    Args:
        part: the numerator in every step, shape [steps].
        whole: the denominator in every step, shape [steps].
    """
    means = float(part.mean()), float(whole.mean())
    if not (np.isfinite(means).all() and min(means) > 0):
        return None
    found = ratio_interval(part, whole)
    return (found.high - found.low) / 2


def _of_blocks(run: Record, main: _Main | None) -> dict[str, float | None]:
    """Means over the blocks of each kind, and half-widths with rounds as replicates."""
    blocks = run.ablation.blocks if run.ablation is not None else []
    levels = list(_levels(blocks, main))
    places: dict[str, Floats] = {}
    means_s: dict[str, Floats] = {}
    for name, kind, value in _BLOCK_COLUMNS:
        chosen = [one for one in levels if one.kind == kind]
        if chosen:
            places[name] = np.array([one.place for one in chosen], dtype=float)
            means_s[name] = np.array([getattr(one, value) for one in chosen])
    if not all((one > 0).all() and np.isfinite(one).all() for one in means_s.values()):
        return {}
    found: dict[str, float | None] = {name: float(one.mean()) for name, one in means_s.items()}
    raw = {name: np.log(one) for name, one in means_s.items()}
    drift = _drift([(places[name], raw[name]) for name in raw])
    logs = {name: raw[name] - drift * places[name] for name in raw}
    normal, no_sync, first, alone = (logs.get(name, np.array([])) for name, _, _ in _BLOCK_COLUMNS)
    sync, contention = _contrast_halves((no_sync, normal), (alone, first))
    return found | {
        "normal_half": _normal_half(normal, run),
        "sync_half": sync,
        "first_half": _balance_half(first, no_sync, levels),
        "contention_half": contention,
        "alone_half": _half(alone),
    }


def _normal_half(normal: Floats, run: Record) -> float | None:
    """Half-width of the ratio of normal steps in blocks to steps in the main window.

    In a run that took turns, the former are a subset of the latter: the mean of m of n rounds
    differs from that of all n with a variance of (1/m - 1/n) times that of a round."""
    own = _half(normal)
    if own is None or run.window is None:
        return None
    if run.sitting is not None and run.ablation is not None and _is_in_rounds(run.ablation):
        rounds = len(set(run.sitting.rounds[run.window.first :]))
        return own * math.sqrt(max(0.0, 1 - len(normal) / rounds))
    found = run.throughput
    if found is None or run.window.steps < 2 or not 0 < found.low <= found.high:
        return None
    return math.hypot(own, math.log(found.high / found.low) / 2)


def _is_in_rounds(ablation: Ablation) -> bool:
    return all(block.round is not None for block in ablation.blocks)


class _Level(NamedTuple):
    """The mean step of one block without waits for data, s."""

    place: int
    """Position among all blocks, in the order they ran."""
    kind: AblationKind
    slowest_s: float
    first_s: float
    """Level of the first rank."""
    others_s: float
    """Mean level of the other ranks; NaN if there are none."""


_BLOCK_COLUMNS = (
    ("normal_s", "normal", "slowest_s"),
    ("no_sync_s", "no_sync", "slowest_s"),
    ("no_sync_first_s", "no_sync", "first_s"),
    ("alone_s", "alone", "slowest_s"),
)
"""Column, kind of block and field of :class:`_Level`."""


def _shares(main: _Main) -> tuple[Floats, Floats]:
    """The shares of a step that every rank waits for data and computes, shapes [ranks, 1]."""
    waits, computes = (
        times.mean(axis=1)[:, None] / main.step.mean() for times in (main.data, main.compute)
    )
    return waits, computes


def _levels(blocks: Sequence[AblationBlock], main: _Main | None) -> Iterator[_Level]:
    """The levels of all blocks that have steps.

    Without synchronisation, a step counts as long as its slowest rank takes. In a normal step the
    ranks wait for each other: what one takes longer between its marks, it takes less in the next
    step, so the maximum of each step would be too long. There the slowest rank of the main window
    counts, with which it is compared."""
    shares = _shares(main) if main is not None else None
    for place, block in enumerate(blocks):
        step, data, compute = map(_table, (block.step_s, block.data_s, block.compute_s))
        if not step.size:
            continue
        if data.shape != step.shape or compute.shape != step.shape:
            data, compute = _assumed(block.kind, step, shares)
        longest = step.max(axis=0)
        if block.kind == "normal" and main is not None and main.slowest < len(step):
            longest = step[main.slowest]
        slowest = longest - _delay(data, compute)
        first, *others = (step - data).mean(axis=1).tolist()
        rest = float(np.mean(others)) if others else np.nan
        yield _Level(place, block.kind, float(slowest.mean()), first, rest)


def _table(series: Sequence[Sequence[float]]) -> Floats:
    """The ranks' series as one array, cut to the shortest; empty if there are none."""
    steps = min(map(len, series), default=0)
    return np.array([one[:steps] for one in series if steps], dtype=float)


def _assumed(
    kind: AblationKind, step: Floats, shares: tuple[Floats, Floats] | None
) -> tuple[Floats, Floats]:
    """Waits and computing of a block without a record of them, by the shares of the main window."""
    ranks = len(step)
    if shares is None or len(shares[0]) < ranks:
        return np.zeros_like(step), step
    waits, computes = (share[:ranks] * step for share in shares)
    # A normal step includes waits for others, too.
    return waits, computes if kind == "normal" else step - waits


def _drift(kinds: Sequence[tuple[Floats, Floats]]) -> float:
    """Change of the log of a step from one block to the next, common to all kinds of blocks.

    Args:
        kinds: for each kind, the positions of its blocks and the logs of their mean steps.
    """
    products = squares = 0.0
    for places, logs in kinds:
        centred = places - places.mean()
        products += float((centred * logs).sum())
        squares += float((centred**2).sum())
    return products / squares if squares else 0.0


def _balance_half(first: Floats, slowest: Floats, levels: Sequence[_Level]) -> float | None:
    """Half-width of the first rank against the slowest of each step, both logs per round.

    No rank is faster than the slowest, so if ranks are equal except for noise, this difference is
    cut off at 0 and rounds agree too well: intervals cover the truth in 80 to 93 %. The difference
    of the first rank to the others is not cut off, but too wide (99 %). The root mean square of
    both covers it in 96 to 99 % (benchmarks/coverage.py), and equals both if one rank is slower
    than the others."""
    blocks = [one for one in levels if one.kind == "no_sync"]
    others = np.array([one.others_s for one in blocks])
    own = _half(first, slowest)
    if own is None or not (np.isfinite(others) & (others > 0)).all():
        return own
    apart = _half(np.log([one.first_s for one in blocks]), np.log(others))
    return own if apart is None else math.sqrt((own**2 + apart**2) / 2)


def _contrast_halves(*pairs: tuple[Floats, Floats]) -> tuple[float | None, ...]:
    """Half-widths of two differences between kinds of blocks; :func:`_half` of each.

    Two rounds give each a single degree of freedom, and Student's quantile of 12.7. There both
    share the mean of their variances. They have the blocks without synchronisation in common, so
    for equal noise their correlation is -1/2, that of their variances 1/4, and the mean of these
    has 2 / (1 + 1/4) degrees of freedom (Satterthwaite 1946, Biometrics Bulletin 2(6)). Half as
    wide, and right to 93 to 98 % in simulation where one kind varies up to five times as much as
    another.
    """
    if any(len(one) != SHARED_ROUNDS for pair in pairs for one in pair):
        return tuple(_half(*pair) for pair in pairs)
    variance = float(np.mean([(one - other).var(ddof=1) for one, other in pairs]))
    half = float(quantile(0.975, SHARED_FREEDOM)) * math.sqrt(variance / SHARED_ROUNDS)
    return (half,) * len(pairs)


def _half(logs: Floats, others: Floats | None = None) -> float | None:
    """Half-width of the 95 % interval of a mean over rounds, or of a difference in each round.

    Differences within a round cancel whatever lasts longer than a round, and drift has been
    removed, so rounds count as independent (Student's t)."""
    if others is not None and len(others) != len(logs):
        return None
    values = logs if others is None else logs - others
    if len(values) < 2:
        return None
    error = float(values.std(ddof=1)) / np.sqrt(len(values))
    return float(quantile(0.975, len(values) - 1)) * float(error)
