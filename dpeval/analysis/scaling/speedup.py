"""Speedup, parallel efficiency and the serial fraction.

Throughput X is the images actually processed over the time of the slowest rank, img/s."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from dpeval.analysis.frame.runs_frame import CONFIGURATION
from dpeval.analysis.scaling.contrasts import contrasts
from dpeval.stats.best import compared_with_best
from dpeval.util.arrays import Floats

FAMILY: list[str] = [name for name in CONFIGURATION if name != "num_devices"]
"""Columns that the points of one scaling curve share."""

POINT_COLUMNS: dict[str, str] = {
    "baseline_devices": "device count of the point that speedup is relative to",
    "baseline": "its strategy; none: one device without a strategy, the best serial execution",
    "speedup_bound": "speedup of a perfect machine: the fullest rank's share is whole images",
    "speedup": "X_N / X_base times the device count of the baseline",
    "speedup_low": "lower end of its 95 % interval",
    "speedup_high": "upper end",
    "efficiency": "speedup over device count",
    "efficiency_low": "lower end of its 95 % interval",
    "efficiency_high": "upper end",
    "is_paired": "whether both took turns in one sitting, so that drift cancels in the speedup",
    "could_be_fastest": "whether it could have the highest throughput of its batch, with 95 % "
    "confidence",
    "serial_fraction": "Karp-Flatt metric; only for strong scaling with a one-device baseline",
    "serial_fraction_low": "lower end of its 95 % interval",
    "serial_fraction_high": "upper end",
}


def having(table: pd.DataFrame, key: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of `table` with the values in `key`."""
    return table[np.logical_and.reduce([table[name] == value for name, value in key.items()])]


def points(pooled: pd.DataFrame) -> pd.DataFrame:
    """Speedup, parallel efficiency and Karp-Flatt serial fraction of each measured configuration.

    Strong scaling: E = t_1(B) / (N t_N(B)); weak: E = t_1(b) / t_N(bN). Both are X_N / (N X_1), and
    the speedup is S = X_N / X_1 = N E. X_1 is that of one device without a strategy if it was
    measured, the best serial execution (Hoefler & Belli 2015, "Scientific Benchmarking of Parallel
    Computing Systems", SC'15, rule 1), otherwise that of the strategy on one device (`baseline`).
    Without a one-device run, the run on the fewest devices takes its place and counts as ideal
    (`baseline_devices`).

    If a configuration took turns with the baseline, the speedup is the ratio of their rounds, in
    which the drift of the machine cancels, with the interval of that ratio
    (:mod:`dpeval.stats.paired`). Otherwise the interval is that of the logarithm of a ratio of
    independent values, whose half-widths (:func:`log_halves`, with the spread between runs) are
    added in quadrature. The baseline itself has none. The experimentally determined serial fraction
    is e = (1/S - 1/N) / (1 - 1/N) (Karp & Flatt 1990, "Measuring parallel processor performance",
    CACM 33(5)), with :func:`ideal_speedup` for N: otherwise images that do not divide evenly by N
    would count as serial work. It falls as S rises, so its interval is that of S with the ends
    swapped.

    Returns:
        The measured rows of `pooled` with the columns of :data:`POINT_COLUMNS`.
    """
    measured = pooled[pooled["status"] == "ok"]
    if measured.empty:
        return measured.assign(**{**dict.fromkeys(POINT_COLUMNS, np.nan), "baseline": ""})
    groups = [group for _, group in measured.groupby(FAMILY, dropna=False, sort=True)]
    return pd.concat([of_curve(group) for group in groups], ignore_index=True)


def of_curve(group: pd.DataFrame) -> pd.DataFrame:
    """:func:`points` of one scaling curve."""
    group = group.sort_values("num_devices")
    base = group.iloc[0]
    devices = group["num_devices"].to_numpy(dtype=float)
    ideal = ideal_speedup(group)
    ratio = group["img_per_s"].to_numpy(dtype=float) / float(base["img_per_s"])
    speedup = ratio * float(base["num_devices"])
    below, above = log_halves(group)
    # The baseline's high end gives every ratio's low end, and vice versa.
    low = speedup * np.exp(-np.hypot(below, above[0]))
    high = speedup * np.exp(np.hypot(above, below[0]))
    known = contrasts(group)
    is_paired = known.is_paired[:, 0]
    for place in np.nonzero(is_paired)[0].tolist():
        speedup[place], low[place], high[place] = (
            ratio * float(base["num_devices"]) for ratio in known.ratio(place, 0)
        )
    low[0] = high[0] = speedup[0]
    made = group.assign(
        baseline_devices=int(base["num_devices"]),
        baseline=str(base["strategy"]),
        speedup_bound=speedup_bounds(group),
        speedup=speedup, speedup_low=low, speedup_high=high,
        efficiency=speedup / devices,
        efficiency_low=low / devices,
        efficiency_high=high / devices,
        is_paired=is_paired,
        could_be_fastest=compared_with_best(known.differences).could_be_best,
    )  # fmt: skip
    is_amdahl = base["num_devices"] == 1 and base["scaling"] != "weak"
    return made.assign(
        serial_fraction=karp_flatt(speedup, ideal) if is_amdahl else np.nan,
        serial_fraction_low=karp_flatt(high, ideal) if is_amdahl else np.nan,
        serial_fraction_high=karp_flatt(low, ideal) if is_amdahl else np.nan,
    )


def ideal_speedup(group: pd.DataFrame) -> Floats:
    """The speedup of a perfect machine over one device, at each row's device count.

    A rank processes whole images, and the step lasts as long as its largest share: B images give B
    / ⌈B/N⌉, which is N if N divides B. Also N if the shares are unknown."""
    devices = group["num_devices"].to_numpy(dtype=float)
    fullest = group["per_device_batch_max"].to_numpy(dtype=float)
    bound = group["images_per_step"].to_numpy(dtype=float) / fullest
    return np.asarray(np.where(np.isfinite(bound), np.minimum(bound, devices), devices))


def speedup_bounds(group: pd.DataFrame) -> Floats:
    """:func:`ideal_speedup` relative to the first row, which counts as ideal."""
    ideal = ideal_speedup(group)
    return np.asarray(ideal / ideal[0] * float(group["num_devices"].iloc[0]))


def ideal_at(group: pd.DataFrame, devices: Floats) -> Floats:
    """:func:`ideal_speedup` at any device counts, for the curve of `group`."""
    images = group["images_per_step"].to_numpy(dtype=float)
    if (images != images[0]).any():  # weak scaling: the shares are equal
        return devices

    def rule(devices: Floats) -> Floats:
        return np.asarray(images[0] / np.ceil(images[0] / devices))

    # Imported records may have dropped the remainder.
    counts = group["num_devices"].to_numpy(dtype=float)
    return rule(devices) if np.allclose(rule(counts), ideal_speedup(group)) else devices


def karp_flatt(speedup: Floats, ideal: Floats) -> Floats:
    """e = (1/S - 1/N) / (1 - 1/N); undefined (NaN) for one device (Karp & Flatt 1990).

    `ideal` is N, or less if the fullest rank has more than its even share."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = (1 / speedup - 1 / ideal) / (1 - 1 / ideal)
    return np.where(ideal > 1, found, np.nan)


def log_halves(group: pd.DataFrame) -> tuple[Floats, Floats]:
    """How far the interval of log X (img/s) extends below and above, with the spread between runs.

    NaN if unknown.
    """
    rate, low, high = (
        group[name].to_numpy(dtype=float)
        for name in ("img_per_s", "comparable_low", "comparable_high")
    )
    return np.log(rate / low), np.log(high / rate)
