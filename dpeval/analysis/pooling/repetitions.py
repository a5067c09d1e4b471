"""Pool repetitions into one row per configuration, separating within- and between-run variance."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dpeval.analysis.frame import step_losses
from dpeval.analysis.frame.as_rows import as_rows
from dpeval.analysis.frame.runs_frame import COLUMNS, CONFIGURATION, is_measured
from dpeval.analysis.pooling import factor_errors
from dpeval.analysis.pooling.run_spread import (
    ASSUMED_SHARE,
    COHORT,
    RunSpread,
    by_cohort,
    own_errors,
    own_halves,
    student,
)
from dpeval.record.codes import AbsenceCode, Status
from dpeval.record.phases import PHASES
from dpeval.stats.intervals import independent_values
from dpeval.stats.paired import Turns

_MEANS = (
    *(f"{phase}_s" for phase in PHASES),
    "page_faults", "page_fault_share", "machine_s",
    "balance", "alone_batch", *step_losses.MEANINGS,
)  # fmt: skip
POOLED: dict[str, str] = {
    "series": "runs that may be compared",
    "hardware": "cpu or gpu",
    "scaling": "strong or weak",
    "num_devices": "world size",
    "batch": "requested batch",
    "runs": "all attempts",
    "n_runs": "attempts with a measurement",
    "ok": "the same as n_runs",
    "status": "ok if any run has a measurement, else the worst; missing: no record, although its "
    "neighbours have one",
    "statuses": "number of runs by status",
    "cause": "why there is no measurement",
    "cause_kind": "code of the cause",
    "model": "model",
    "study": "study",
    "strategy": "how ranks synchronise gradients; none: one device without a strategy",
    "unit": COLUMNS["unit"],
    "img_per_s": "images of all ranks over the time of the slowest, img/s",
    "low": "lower end of its 95 % interval, img/s",
    "high": "upper end, img/s",
    "comparable_low": "lower end with the spread between runs, for comparisons with other "
    "configurations, img/s",
    "comparable_high": "upper end, img/s",
    "error_share": "standard error of img_per_s with the spread between runs, over the mean",
    "spread_share": "standard deviation between runs included in these, over the mean",
    "spread_freedom": "degrees of freedom of error_share; NaN: known, or assumes a spread for "
    "lack of repetitions",
    "centre": "mean or median: what img_per_s is over repetitions",
    "within_share": "standard error of one run's mean step from the spread of its steps, over the "
    "mean",
    "step_s": "mean step of the slowest rank, s",
    "images_per_step": "images that all ranks together process in a step",
    "steady": "whether every run reached a steady state",
    "stand_in": "whether other data was used than requested",
    "oversubscribed": "more compute threads than CPUs, or more ranks than GPUs",
    **{name: COLUMNS[name] for name in _MEANS},
    **factor_errors.MEANINGS,
    "waits_assumed": COLUMNS["waits_assumed"],
    "per_device_batch_max": "largest per-device batch, images",
    "micro_batches": "micro-batches per step of a rank",
    "threads": "compute threads per rank",
    "num_nodes": "hosts",
    "energy_j_per_img": "energy per image, J/img",
    "energy_low": "lower end of its 95 % interval with the spread between runs, J/img",
    "energy_high": "upper end, J/img",
    "energy_error_share": "its standard error, over the mean",
    "energy_freedom": "degrees of freedom of that; NaN: the spread between runs is assumed",
    "peak_bytes": "highest peak memory of any rank, bytes",
    "forecast_bytes": "its forecast, bytes",
    "budget_bytes": "memory a rank may use, bytes",
}

TURNS = "turns"
"""A column beside :data:`POOLED`: the runs in their sittings
(:class:`~dpeval.stats.paired.Turns`), from which ratios are made; no table holds it."""

_WORST_FIRST: tuple[Status, ...] = ("oom", "skipped", "failed", "interrupted")
_HIGHEST = ("per_device_batch_max", "micro_batches", "threads", "num_nodes", "images_per_step")
FEWEST_ORDERED = 6
"""With this many repetitions, the extremes contain the median in over 95 % of cases: 1 - 2 /
2**6."""


def pool(runs: pd.DataFrame, assumed_spread: float = ASSUMED_SHARE) -> pd.DataFrame:
    """One row per configuration (:data:`POOLED`): its repetitions pooled, its failures kept.

    A single run has the interval of its record. Several runs have that of their mean: its variance
    includes the spread between runs, pooled over the cohort
    (:func:`~dpeval.analysis.pooling.run_spread.run_spread`), and the runs' own errors. Comparing a
    single run with others requires adding the spread, as `comparable_low` and `comparable_high` do;
    for several runs they equal `low` and `high`. Everything is computed for the logarithm, so no
    end reaches zero.

    Throughput is images over the mean *time*: a mean of img/s would give fast runs more weight.

    Records of one step have no known warm-up, and the first of several is often cold, so they are
    pooled by their median (:func:`median_interval`).

    Args:
        runs: one row per run (:data:`~dpeval.analysis.frame.columns.COLUMNS`).
        assumed_spread: the spread between runs where repetitions do not show it.
    """
    spreads, energies = (
        by_cohort(runs, column, assumed_spread) for column in ("img_per_s", "energy_j_per_img")
    )
    halves = as_rows(factor_errors.halves(runs))
    made = [
        {
            **dict(zip(CONFIGURATION, key, strict=True)),
            **_pooled(group, spreads[key[: len(COHORT)]], energies[key[: len(COHORT)]]),
            **of_factors,
        }
        for (key, group), of_factors in zip(
            runs.groupby(CONFIGURATION, dropna=False, sort=True), halves, strict=True
        )
    ]
    return pd.DataFrame(made, columns=[*POOLED, TURNS])


def _pooled(group: pd.DataFrame, spread: RunSpread, of_energy: RunSpread) -> dict[str, Any]:
    good = group[is_measured(group)]
    counts = group["status"].value_counts(sort=False)
    worst = group if len(good) else group[group["status"] == _worst(group["status"])]
    pooled: dict[str, Any] = {
        "runs": len(group),
        "n_runs": len(good),
        "ok": len(good),
        "status": "ok" if len(good) else _worst(group["status"]),
        "statuses": ", ".join(f"{count} {name}" for name, count in counts.items()),
        "cause": "" if len(good) else _cause(worst, "cause"),
        "cause_kind": "" if len(good) else _cause(worst, "cause_kind"),
        "model": group["model"].iloc[0],
        "study": group["study"].iloc[0],
        "strategy": (good if len(good) else group)["strategy"].iloc[0],
        "unit": next(filter(None, group["unit"]), "img"),
        "stand_in": bool(group["stand_in"].any()),
        "waits_assumed": bool(good["waits_assumed"].any()),
        "oversubscribed": bool(group["oversubscribed"].any()),
        "steady": len(good) > 0 and not any(value is False for value in good["steady"]),
    }
    pooled |= {name: _mean(good[name]) for name in _MEANS}
    highest = (*_HIGHEST, "peak_bytes", "forecast_bytes")
    pooled |= {name: float(group[name].max()) for name in highest}
    pooled["budget_bytes"] = float(group["budget_bytes"].min())
    return pooled | _times(good, spread) | _energy(good, of_energy) | {TURNS: _turns(good)}


def _worst(statuses: pd.Series[Any]) -> str:
    present = set(statuses)
    # "ok" without a throughput: the run ended before its measurement window began.
    return next((status for status in _WORST_FIRST if status in present), "failed")


_ABSENCE_TEXTS: dict[AbsenceCode, str] = {
    "steps": "too few steps to measure",
    "missing": "no record, though its neighbours have one",
}


def _absence(code: AbsenceCode) -> dict[str, str]:
    return {"cause": _ABSENCE_TEXTS[code], "cause_kind": code}


def _cause(group: pd.DataFrame, column: str) -> str:
    found = next((str(value) for value in group[column] if value), "") if len(group) else ""
    return found or _absence("steps")[column]


def _mean(values: pd.Series[float]) -> float:
    known = values.to_numpy(dtype=float)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else np.nan


def _times(good: pd.DataFrame, spread: RunSpread) -> dict[str, Any]:
    """The centre of the runs' mean step times and its intervals, converted to img/s."""
    if good.empty:
        return {**dict.fromkeys(_OF_TIMES, np.nan), "centre": ""}
    # Images actually processed: repetitions may have split the batch differently.
    rates = good["img_per_s"].to_numpy(dtype=float)
    images = float(good["images_per_step"].median())
    if np.isnan(images):
        images = 1.0
    times = images / rates
    is_single_step, freedom = bool((good["steps"] <= 1).all()), spread.freedom
    centre = float(np.median(times)) if is_single_step else float(times.mean())
    if is_single_step:
        low_s, high_s, freedom = median_interval(times)
        low, high = images / high_s, images / low_s
        comparable = low, high
    else:
        comparable = interval(images / centre, good, spread)
        low, high = _own(good) if len(good) == 1 else comparable
    within = _within(good)
    error = np.sqrt((spread.share**2 + within) / len(good))
    if is_single_step:
        error = float(np.log(high / low)) / 2 / student(freedom)
    return {
        "img_per_s": images / centre,
        "low": low,
        "high": high,
        "comparable_low": comparable[0],
        "comparable_high": comparable[1],
        "error_share": error,
        "spread_share": spread.share,
        "spread_freedom": freedom if math.isfinite(freedom) else np.nan,
        "centre": "median" if is_single_step else "mean",
        "within_share": np.sqrt(within),
        "step_s": centre,
    }


_OF_TIMES = (
    "img_per_s", "low", "high", "comparable_low", "comparable_high", "error_share",
    "spread_share", "spread_freedom", "within_share", "step_s",
)  # fmt: skip


def _within(good: pd.DataFrame) -> float:
    """Mean squared standard error of the runs' own log img/s; NaN if no run has one."""
    errors = own_errors(good)
    return float("nan") if np.isnan(errors).all() else float(np.nanmean(errors**2))


def _energy(good: pd.DataFrame, spread: RunSpread) -> dict[str, float]:
    """The mean energy per image, J/img, and its interval with the spread between runs."""
    known = good[good["energy_j_per_img"].notna()]
    if known.empty:
        return {}
    mean = float(known["energy_j_per_img"].mean())
    # Energy is power times time, and the step's error is that of the time.
    error = math.sqrt((spread.share**2 + np.nan_to_num(_within(known))) / len(known))
    half = student(spread.freedom) * error
    return {
        "energy_j_per_img": mean,
        "energy_low": mean * math.exp(-half),
        "energy_high": mean * math.exp(half),
        "energy_error_share": error,
        "energy_freedom": spread.freedom if spread.is_measured else math.nan,
    }


def _turns(good: pd.DataFrame) -> tuple[Turns, ...]:
    """The runs that took turns with others, in their rounds."""
    names = [
        "sitting", "img_per_s", "step_s", "rounds", "round_step_s", "round_energy_j", "stopped_by",
    ]  # fmt: skip
    return tuple(
        Turns(
            sitting,
            rate * step_s,
            dict(zip(rounds, times, strict=True)),
            stopped_by,
            {at: joules for at, joules in zip(rounds, energy_j, strict=False) if joules > 0},
        )
        for sitting, rate, step_s, rounds, times, energy_j, stopped_by in good[names].itertuples(
            index=False
        )
        if sitting and len(rounds)
    )


def _own(good: pd.DataFrame) -> tuple[float, float]:
    """The interval of a single run, img/s; NaN if it has none."""
    below, above = own_halves(good)
    rate = float(good["img_per_s"].iloc[0])
    return rate * float(np.exp(-below[0])), rate * float(np.exp(above[0]))


def interval(rate: float, good: pd.DataFrame, spread: RunSpread) -> tuple[float, float]:
    """The 95 % interval of a mean of runs with the spread between runs, img/s; see :func:`pool`.

    Half-widths of the logarithm are added in quadrature.

    Args:
        rate: the mean of the runs, img/s.
        good: the runs.
        spread: between runs of their cohort.
    """
    below, above = own_halves(good)
    if len(good) > 1:  # if a run's own error is unknown, the spread between runs includes it
        below, above = np.nan_to_num(below), np.nan_to_num(above)
    between = spread.half(len(good))
    low, high = (
        float(np.hypot(np.sqrt((half**2).sum()) / len(good), between)) for half in (below, above)
    )
    return rate * float(np.exp(-low)), rate * float(np.exp(high))


def median_interval(times: NDArray[np.float64]) -> tuple[float, float, float]:
    """The 95 % interval of the median of single steps, s, and its degrees of freedom.

    NaN and infinite for a single one.

    By order statistics (David & Nagaraja 2003, Order Statistics, section 7.1). The steps may follow
    one another in one run, so they count as as many independent ones as the series of whether each
    is above the median is worth: that of a mean of such a series is the error of the median's rank
    (Sen 1972, "On the Bahadur representation of sample quantiles for sequences of phi-mixing random
    variables", J. Multivar. Anal. 2). With fewer than :data:`FEWEST_ORDERED` of these, Student's t
    over the logarithms.

    Args:
        times: in the order in which they were recorded, shape [n].
    """
    count = len(times)
    if count == 1:
        return np.nan, np.nan, math.inf
    centre = float(np.median(times))
    worth = count
    if count >= FEWEST_ORDERED:
        worth = round(independent_values((times > centre).astype(np.float64)))
    if worth < FEWEST_ORDERED:
        worth = max(2, worth)
        log_half = student(worth - 1) * float(np.log(times).std(ddof=1)) / np.sqrt(worth)
        return centre * math.exp(-log_half), centre * math.exp(log_half), worth - 1
    from scipy.stats import quantile_test

    places = ((np.arange(worth) + 0.5) / worth * count).astype(int)
    found = quantile_test(np.sort(times)[places], p=0.5).confidence_interval(0.95)
    return float(found.low), float(found.high), math.inf


def missing(pooled: pd.DataFrame) -> pd.DataFrame:
    """Absent configurations with at least two neighbours present.

    Neighbours are the adjacent device counts and batches of the same series, hardware and
    scaling. Columns as of :func:`pool`, status ``missing``.
    """
    family = [name for name in CONFIGURATION if name not in ("num_devices", "batch")]
    found: list[dict[str, Any]] = []
    for key, group in pooled.groupby(family, dropna=False, sort=True):
        present = set(zip(group["num_devices"], group["batch"], strict=True))
        for devices, batch in _holes(present):
            found.append(
                {
                    **_key(family, key),
                    "num_devices": devices,
                    "batch": batch,
                    "runs": 0, "n_runs": 0, "ok": 0,
                    "status": "missing", "statuses": "", "centre": "",
                    **_absence("missing"),
                    "model": group["model"].iloc[0], "study": group["study"].iloc[0],
                    "strategy": "", "stand_in": False, "oversubscribed": False, "steady": False,
                    "waits_assumed": False, TURNS: (),
                }
            )  # fmt: skip
    return pd.DataFrame(found, columns=[*POOLED, TURNS])


def _key(family: list[str], key: Hashable) -> dict[str, Any]:
    values = key if isinstance(key, tuple) else (key,)
    return dict(zip(family, values, strict=True))


def _holes(present: set[tuple[int, int]]) -> list[tuple[int, int]]:
    counts = sorted({devices for devices, _ in present})
    batches = sorted({batch for _, batch in present})
    found = []
    for row, devices in enumerate(counts):
        for column, batch in enumerate(batches):
            near = [(r, column) for r in (row - 1, row + 1) if 0 <= r < len(counts)]
            near += [(row, c) for c in (column - 1, column + 1) if 0 <= c < len(batches)]
            neighbours = sum((counts[r], batches[c]) in present for r, c in near)
            if (devices, batch) not in present and neighbours >= 2:
                found.append((devices, batch))
    return found
