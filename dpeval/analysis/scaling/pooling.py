"""Pool repetitions into one row per configuration, separating within- and between-run variance."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dpeval.analysis.frame.runs_frame import COLUMNS, CONFIGURATION
from dpeval.record.codes import AbsenceCode, Status
from dpeval.record.phases import PHASES

UNSEEN_SPREAD = 0.01
"""Relative standard deviation between runs, assumed if nothing was repeated. A run's own interval
does not cover it, so without it a comparison would call unchanged runs different."""

_MEANS = (
    *(f"{phase}_s" for phase in PHASES),
    "page_faults", "page_fault_share", "machine_s",
    "balance", "normal_s", "no_sync_s", "alone_s", "no_sync_first_s", "alone_batch",
)  # fmt: skip
_ERRORS = ("normal_se_s", "no_sync_se_s", "alone_se_s")
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
    "img_per_s": "images of all ranks over the time of the slowest, img/s",
    "low": "lower end of its 95 % interval, img/s",
    "high": "upper end, img/s",
    "centre": "mean or median: what img_per_s is over repetitions",
    "scatter_share": "standard deviation of the runs' mean steps, over the mean; NaN with one run",
    "within_share": "standard error of one run's mean step from the spread of its steps, over the "
    "mean",
    "between_share": "standard deviation of runs beyond that, over the mean; NaN with one run",
    "step_s": "mean step of the slowest rank, s",
    "images_per_step": "images that all ranks together process in a step",
    "steady": "whether every run reached a steady state",
    "stand_in": "whether other data was used than requested",
    "oversubscribed": "more compute threads than CPUs, or more ranks than GPUs",
    **{name: COLUMNS[name] for name in (*_MEANS, *_ERRORS)},
    "per_device_batch_max": "largest per-device batch, images",
    "micro_batches": "micro-batches per step of a rank",
    "threads": "compute threads per rank",
    "num_nodes": "hosts",
    "energy_j_per_img": "energy per image, J/img",
    "peak_bytes": "highest peak memory of any rank, bytes",
    "forecast_bytes": "its forecast, bytes",
    "budget_bytes": "memory a rank may use, bytes",
}

_WORST_FIRST: tuple[Status, ...] = ("oom", "skipped", "failed", "interrupted")
_HIGHEST = ("per_device_batch_max", "micro_batches", "threads", "num_nodes", "images_per_step")
FEWEST_ORDERED = 6
"""With so many repetitions the extremes contain the median in over 95 % of cases: 1 - 2 / 2**6."""


def pool(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration (:data:`POOLED`): its repetitions pooled, its failures kept.

    A repetition is one observation: steps of one process share its memory layout, page placement
    and clock, so only whole runs show that variance (Kalibera & Jones 2013, "Rigorous
    Benchmarking in Reasonable Time", ISMM, section 6). With run means t_i of n runs, S² their
    variance and V the mean of their own squared standard errors, S² estimates the between-run
    variance plus V, so the between-run part alone is max(0, S² - V); the interval of the mean is
    Student's with n-1 degrees of freedom on S/sqrt(n). The wider of that and of the runs' own
    intervals is taken, as few repetitions can agree by chance. With one run there is its own
    interval, and `between_share` is not known.

    Throughput is images over the mean *time*: a mean of img/s would give fast runs more weight.

    Records of one step have no known warm-up, and the first of several is often cold: so they
    are pooled by their median, with its interval by order statistics from 6 runs on (David &
    Nagaraja 2003, Order Statistics, section 7.1); a single one has no interval (NaN).
    """
    made = [
        {**dict(zip(CONFIGURATION, key, strict=True)), **_pooled(group)}
        for key, group in runs.groupby(CONFIGURATION, dropna=False, sort=True)
    ]
    return pd.DataFrame(made, columns=list(POOLED))


def _pooled(group: pd.DataFrame) -> dict[str, Any]:
    good = group[(group["status"] == "ok") & group["img_per_s"].notna()]
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
        "stand_in": bool(group["stand_in"].any()),
        "oversubscribed": bool(group["oversubscribed"].any()),
        "steady": len(good) > 0 and not any(value is False for value in good["steady"]),
    }
    pooled |= {name: _mean(good[name]) for name in (*_MEANS, "energy_j_per_img")}
    pooled |= {name: _error(good[name]) for name in _ERRORS}
    highest = (*_HIGHEST, "peak_bytes", "forecast_bytes")
    pooled |= {name: float(group[name].max()) for name in highest}
    pooled["budget_bytes"] = float(group["budget_bytes"].min())
    return pooled | _times(good)


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


def _error(values: pd.Series[float]) -> float:
    """Standard error of a mean of independent values, from theirs."""
    known = values.to_numpy(dtype=float)
    known = known[~np.isnan(known)]
    return float(np.sqrt((known**2).sum())) / len(known) if len(known) else np.nan


def _times(good: pd.DataFrame) -> dict[str, Any]:
    """The centre of the runs' mean step times and its interval, converted to img/s."""
    if good.empty:
        shares = ("scatter_share", "within_share", "between_share")
        nothing = dict.fromkeys(("img_per_s", "low", "high", *shares, "step_s"), np.nan)
        return {**nothing, "centre": ""}
    # Images actually processed: repetitions may have split the batch differently.
    rates = good["img_per_s"].to_numpy(dtype=float)
    images = float(good["images_per_step"].median())
    if np.isnan(images):
        images = 1.0
    times = images / rates
    within = _half_s(good, images)
    is_single_step = bool((good["steps"] <= 1).all())
    centre = float(np.median(times)) if is_single_step else float(times.mean())
    low_s, high_s = _median_interval(times) if is_single_step else interval(times, within)
    scatter = float(times.var(ddof=1)) if len(times) > 1 else np.nan
    error = float((_errors_s(good, within) ** 2).mean()) if not is_single_step else np.nan
    known = 0.0 if np.isnan(error) else error
    return {
        "img_per_s": images / centre,
        "low": images / high_s,
        "high": images / low_s,
        "centre": "median" if is_single_step else "mean",
        "scatter_share": np.sqrt(scatter) / centre,
        "within_share": np.sqrt(error) / centre,
        "between_share": float(np.sqrt(max(0.0, scatter - known))) / centre
        if len(times) > 1
        else np.nan,
        "step_s": centre,
    }


def _half_s(good: pd.DataFrame, images: float) -> NDArray[np.float64]:
    """Half-widths of the runs' own 95 % intervals of the mean step, s."""
    low = images / good["img_per_s_high"].to_numpy(dtype=float)
    high = images / good["img_per_s_low"].to_numpy(dtype=float)
    half: NDArray[np.float64] = np.nan_to_num((high - low) / 2, posinf=0.0)
    return half


def _errors_s(good: pd.DataFrame, half_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard errors of the runs' mean steps, s: their half-widths hold Student's quantile."""
    effective = good["effective_steps"].to_numpy(dtype=float)
    freedom = np.where(np.isnan(effective), np.inf, np.maximum(1.0, effective - 1))
    errors: NDArray[np.float64] = half_s / np.array([student(float(one)) for one in freedom])
    return errors


def interval(times: NDArray[np.float64], within: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of the mean of runs, s; see :func:`pool`.

    Args:
        times: mean step of each run, s.
        within: half-width of that run's own interval, s.
    """
    mean, count = float(times.mean()), len(times)
    half = float(np.sqrt((within**2).sum())) / count
    if count > 1:
        half = max(half, student(count - 1) * float(times.std(ddof=1)) / np.sqrt(count))
    # A few scattered runs can give a t interval beyond zero; assume no step beats half the best.
    return max(mean - half, float(times.min()) / 2), mean + half


def _median_interval(times: NDArray[np.float64]) -> tuple[float, float]:
    count = len(times)
    if count == 1:
        return np.nan, np.nan
    if count < FEWEST_ORDERED:
        half = student(count - 1) * float(times.std(ddof=1)) / np.sqrt(count)
        centre = float(np.median(times))
        return max(centre - half, float(times.min()) / 2), centre + half
    from scipy.stats import quantile_test

    found = quantile_test(times, p=0.5).confidence_interval(0.95)
    return float(found.low), float(found.high)


def student(freedom: float) -> float:
    """The 97.5 % quantile of Student's t; of the normal distribution for infinite `freedom`."""
    from scipy.special import stdtrit

    return 1.959964 if math.isinf(freedom) else float(stdtrit(freedom, 0.975))


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
                    "stand_in": False, "oversubscribed": False, "steady": False,
                }
            )  # fmt: skip
    return pd.DataFrame(found, columns=list(POOLED))


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
