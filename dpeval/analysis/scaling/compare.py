"""Compare two sweeps: is the second one slower, and could that be chance?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dpeval.analysis.scaling.pooling import UNSEEN_SPREAD, student

FAMILY_ERROR = 0.05
"""Probability of calling anything different if nothing changed."""
KEY = [
    "model", "dataset_requested", "loader", "image_px", "hardware", "scaling", "strategy",
    "precision", "memory_format", "threads", "num_devices", "num_nodes", "batch",
]  # fmt: skip
"""What identifies a configuration across machines, versions and commits."""


@dataclass(frozen=True)
class Change:
    """One configuration in both sweeps."""

    key: dict[str, Any]
    """Values of :data:`KEY`."""
    before: float
    after: float
    """img/s; NaN if that side measured nothing."""
    ratio: float
    """Throughput after over before."""
    low: float
    high: float
    """95 % interval of `ratio`, for this configuration alone."""
    p: float
    """Two-sided p-value of no change, not adjusted."""
    p_adjusted: float
    """`p`, adjusted for the number of configurations (Holm)."""
    p_slower: float
    """Adjusted one-sided p-value of "not slower than allowed"."""
    runs: tuple[int, int]
    status: tuple[str, str]
    """How each side ended: ok, oom, …, or absent."""
    note: str = ""

    @property
    def is_different(self) -> bool:
        """Changed, at a family-wise error of :data:`FAMILY_ERROR`."""
        return self.p_adjusted < FAMILY_ERROR

    @property
    def is_slower(self) -> bool:
        """Slower by more than allowed, or measured before and failed after."""
        return self.p_slower < FAMILY_ERROR or self.is_lost

    @property
    def is_lost(self) -> bool:
        """Measured before, attempted without success after."""
        return self.status[0] == "ok" and self.status[1] not in ("ok", "absent")


def compare(before: pd.DataFrame, after: pd.DataFrame, allowed: float = 0.0) -> list[Change]:
    """Compare the runs of two sweeps, configuration by configuration.

    Run means of log step time are compared by Welch's t test (Welch 1947, Biometrika 34), with
    Satterthwaite's degrees of freedom. The variance of a single run comes from its own interval,
    plus :data:`UNSEEN_SPREAD` unless the other side's repetitions show the spread between runs.
    The p-values of all configurations are adjusted by Holm's step-down method (Holm 1979, Scand.
    J. Statist. 6(2)), which keeps the family-wise error at :data:`FAMILY_ERROR` under any
    dependence.

    Args:
        before, after: one row per run (:data:`dpeval.analysis.frame.columns.COLUMNS`).
        allowed: how much slower the second may be, as a fraction (0.03 for 3 %).
    """
    sides = [_by_configuration(runs) for runs in (before, after)]
    # NaN differs from itself, so a union would list it twice: keys are text.
    keys = sorted({*sides[0], *sides[1]})
    made = [_change(sides[0].get(key), sides[1].get(key), allowed) for key in keys]
    tested = [index for index, change in enumerate(made) if not math.isnan(change.p)]
    both = _holm([made[index].p for index in tested])
    slower = _holm([made[index].p_slower for index in tested])
    for index, p, p_slower in zip(tested, both, slower, strict=True):
        change = made[index]
        made[index] = Change(**{**vars(change), "p_adjusted": p, "p_slower": p_slower})
    return made


def _by_configuration(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    if runs.empty:
        return {}
    names = runs[KEY].astype(str).agg("\x1f".join, axis=1)
    return {str(name): group for name, group in runs.groupby(names, sort=False)}


def _change(one: pd.DataFrame | None, two: pd.DataFrame | None, allowed: float) -> Change:
    known = one if one is not None else two
    if known is None:
        raise ValueError("a configuration of neither sweep")
    key = {name: known[name].iloc[0] for name in KEY}
    goods = [_good(side) for side in (one, two)]
    runs = (len(goods[0]), len(goods[1]))
    status = (_status(one), _status(two))
    rates = [_rate(good) for good in goods]
    if not all(runs):
        unknown = math.nan
        return Change(
            key, rates[0], rates[1], unknown, unknown, unknown, unknown, unknown, unknown,
            runs, status, _why_not(status),
        )  # fmt: skip
    difference, error, freedom, note = _difference(goods[0], goods[1])
    half = student(freedom) * error
    return Change(
        key=key, before=rates[0], after=rates[1],
        ratio=math.exp(difference), low=math.exp(difference - half),
        high=math.exp(difference + half),
        p=2 * _tail(abs(difference) / error, freedom), p_adjusted=math.nan,
        p_slower=_tail((math.log(1 - allowed) - difference) / error, freedom),
        runs=runs, status=status, note=note,
    )  # fmt: skip


def _good(side: pd.DataFrame | None) -> pd.DataFrame:
    if side is None:
        return pd.DataFrame()
    return side[(side["status"] == "ok") & side["img_per_s"].notna()]


def _status(side: pd.DataFrame | None) -> str:
    if side is None:
        return "absent"
    if len(_good(side)):
        return "ok"
    failed = [str(status) for status in side["status"] if status != "ok"]
    return failed[-1] if failed else "failed"


def _rate(good: pd.DataFrame) -> float:
    """Images over the mean time, img/s."""
    return float(1 / (1 / good["img_per_s"]).mean()) if len(good) else math.nan


def _why_not(status: tuple[str, str]) -> str:
    if "absent" in status:
        return "in one sweep only"
    return f"{status[0]} before, {status[1]} after"


def _difference(one: pd.DataFrame, two: pd.DataFrame) -> tuple[float, float, float, str]:
    """Difference of log throughput, its standard error, degrees of freedom, and a note."""
    logs = [np.log(side["img_per_s"].to_numpy(dtype=float)) for side in (one, two)]
    spreads = [float(log.var(ddof=1)) if len(log) > 1 else None for log in logs]
    parts = [
        _variance(side, log, spread, spreads)
        for side, log, spread in zip((one, two), logs, spreads, strict=True)
    ]
    total = parts[0][0] + parts[1][0]
    # Satterthwaite; a variance taken as known costs no degrees of freedom.
    lost = sum(variance**2 / freedom for variance, freedom in parts)
    freedom = total**2 / lost if lost > 0 else math.inf
    note = ""
    if None in spreads:
        note = "single runs: 1 % spread between runs assumed"
        if any(spread is not None for spread in spreads):
            note = "one side ran once: its spread between runs is assumed equal to the other's"
    # Identical times (constructed, or a coarse clock) have no error at all.
    return float(logs[1].mean() - logs[0].mean()), math.sqrt(max(total, 1e-18)), freedom, note


def _variance(
    side: pd.DataFrame,
    log: NDArray[np.float64],
    spread: float | None,
    spreads: Sequence[float | None],
) -> tuple[float, float]:
    """Variance of the mean log throughput of one side, and its degrees of freedom."""
    within = _within(side)
    if spread is not None:
        # A few repetitions can agree by chance: no variance below that from the runs' own steps.
        return max(spread, within) / len(log), float(len(log) - 1)
    others = [(s, 1.0) for s in spreads if s is not None]
    if others:
        return max(others[0][0], within), others[0][1]
    return within + UNSEEN_SPREAD**2, math.inf


def _within(side: pd.DataFrame) -> float:
    """Mean squared standard error of the runs' own log throughput; 0 where not known."""
    halves = np.log(side["img_per_s_high"].to_numpy(float) / side["img_per_s_low"].to_numpy(float))
    errors = np.where(side["steps"] > 1, halves / 2 / 1.96, 0.0)
    return float(np.nanmean(errors**2)) if len(errors) else 0.0


def _tail(value: float, freedom: float) -> float:
    """P(T > value)."""
    from scipy.special import ndtr, stdtr

    return float(ndtr(-value) if math.isinf(freedom) else stdtr(freedom, -value))


def _holm(values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    adjusted, highest = [0.0] * len(values), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, values[index] * (len(values) - place)))
        adjusted[index] = highest
    return adjusted


def table(changes: Sequence[Change]) -> pd.DataFrame:
    """One row per configuration: :data:`KEY` and everything of :class:`Change`."""
    return pd.DataFrame(
        [
            {
                **change.key, "before_img_per_s": change.before, "after_img_per_s": change.after,
                "ratio": change.ratio, "ratio_low": change.low, "ratio_high": change.high,
                "p": change.p, "p_adjusted": change.p_adjusted, "p_slower": change.p_slower,
                "runs_before": change.runs[0], "runs_after": change.runs[1],
                "status_before": change.status[0], "status_after": change.status[1],
                "is_different": change.is_different, "is_slower": change.is_slower,
                "note": change.note,
            }
            for change in changes
        ]
    )  # fmt: skip
