"""Speedup, parallel efficiency and the serial fraction.

A throughput X is images actually processed over the time of the slowest rank, img/s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from dpeval.analysis.frame.runs_frame import CONFIGURATION
from dpeval.util.arrays import Floats

FAMILY: list[str] = [name for name in CONFIGURATION if name != "num_devices"]
"""Columns that the points of one scaling curve share."""

POINT_COLUMNS: dict[str, str] = {
    "baseline_devices": "device count of the point that speedup is relative to",
    "speedup": "X_N / X_base times the device count of the baseline",
    "speedup_low": "lower end of its 95 % interval",
    "speedup_high": "upper end",
    "efficiency": "speedup over device count",
    "efficiency_low": "lower end of its 95 % interval",
    "efficiency_high": "upper end",
    "serial_fraction": "Karp-Flatt metric; only for strong scaling with a one-device baseline",
    "serial_fraction_low": "lower end of its 95 % interval",
    "serial_fraction_high": "upper end",
}


def having(table: pd.DataFrame, key: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of `table` that have the values of `key`."""
    return table[np.logical_and.reduce([table[name] == value for name, value in key.items()])]


def points(pooled: pd.DataFrame) -> pd.DataFrame:
    """Speedup, parallel efficiency and Karp-Flatt serial fraction of each measured configuration.

    Strong scaling: E = t_1(B) / (N t_N(B)); weak: E = t_1(b) / t_N(bN). Both are
    X_N / (N X_1), and the speedup is S = X_N / X_1 = N E. Without a one-device run, the fewest
    devices take its place and count as ideal (`baseline_devices`).

    The interval is that of the logarithm of a ratio of independent values, half-widths added in
    quadrature (first-order propagation); the baseline itself has none. The experimentally
    determined serial fraction is e = (1/S - 1/N) / (1 - 1/N) (Karp & Flatt 1990, "Measuring
    parallel processor performance", CACM 33(5)); it falls as S rises, so its interval is that of
    S with the ends swapped.

    Returns:
        The measured rows of `pooled` with the columns of :data:`POINT_COLUMNS`.
    """
    measured = pooled[pooled["status"] == "ok"]
    if measured.empty:
        return measured.assign(**dict.fromkeys(POINT_COLUMNS, np.nan))
    groups = [group for _, group in measured.groupby(FAMILY, dropna=False, sort=True)]
    return pd.concat([_points(group) for group in groups], ignore_index=True)


def _points(group: pd.DataFrame) -> pd.DataFrame:
    group = group.sort_values("num_devices")
    base = group.iloc[0]
    devices = group["num_devices"].to_numpy(dtype=float)
    ratio = group["img_per_s"].to_numpy(dtype=float) / float(base["img_per_s"])
    speedup = ratio * float(base["num_devices"])
    below, above = log_halves(group)
    # The baseline's own high end makes every ratio low, and the other way about.
    low = speedup * np.exp(-np.hypot(below, above[0]))
    high = speedup * np.exp(np.hypot(above, below[0]))
    low[0] = high[0] = speedup[0]
    made = group.assign(
        baseline_devices=int(base["num_devices"]),
        speedup=speedup, speedup_low=low, speedup_high=high,
        efficiency=speedup / devices,
        efficiency_low=low / devices,
        efficiency_high=high / devices,
    )  # fmt: skip
    is_amdahl = base["num_devices"] == 1 and base["scaling"] != "weak"
    return made.assign(
        serial_fraction=karp_flatt(speedup, devices) if is_amdahl else np.nan,
        serial_fraction_low=karp_flatt(high, devices) if is_amdahl else np.nan,
        serial_fraction_high=karp_flatt(low, devices) if is_amdahl else np.nan,
    )


def karp_flatt(speedup: Floats, devices: Floats) -> Floats:
    """e = (1/S - 1/N) / (1 - 1/N), not defined (NaN) for one device (Karp & Flatt 1990)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = (1 / speedup - 1 / devices) / (1 - 1 / devices)
    return np.where(devices > 1, found, np.nan)


def log_halves(group: pd.DataFrame) -> tuple[Floats, Floats]:
    """How far the interval of log X (img/s) extends below and above; NaN if unknown."""
    rate = group["img_per_s"].to_numpy(dtype=float)
    with np.errstate(divide="ignore"):
        below = np.log(rate / group["low"].to_numpy(dtype=float))
        above = np.log(group["high"].to_numpy(dtype=float) / rate)
    return below, above
