"""Compare two sweeps: is the second one slower, and could that be chance?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dpeval.analysis.frame import cohorts
from dpeval.analysis.frame.runs_frame import is_measured
from dpeval.analysis.pooling.run_spread import own_errors
from dpeval.errors import ConfigError
from dpeval.stats.comparison import (
    LARGEST_SPREAD,
    LEAST_FREEDOM,
    detectable,
    error_of_difference,
    p_lower,
    p_values,
    quantile,
)

FAMILY_ERROR = 0.05
"""Probability of calling anything different if nothing changed."""
KEY = [
    "model", "dataset_requested", "dataset_used", "loader", "image_px", "hardware", "scaling",
    "strategy", "precision", "memory_format", "threads", "num_devices", "num_nodes", "batch",
]  # fmt: skip
"""What a table shows of a configuration."""
FOUND = ["dataset_used", "train_images", "threads", "micro_batches"]
"""What a run found on its machine; together with the request it identifies a configuration."""
MACHINE_CHANGE = 0.05
"""If the reference work takes this much longer or shorter, the machine itself has changed."""
_MOST_DIFFERING = 3


@dataclass(frozen=True)
class Tested:
    """The test result of one configuration; NaN if it was not tested."""

    ratio: float
    """Throughput after over before."""
    low: float
    high: float
    """95 % interval of `ratio`, for this configuration alone."""
    p_adjusted: float
    """Two-sided p-value of no change, adjusted for the number of configurations (Holm)."""
    p_slower: float
    """Adjusted one-sided p-value of "not slower than allowed"."""
    detectable: float
    """The ratio below 1 that would be detected in 80 % of cases."""


_UNTESTED = Tested(*[math.nan] * 6)


@dataclass(frozen=True)
class Change(Tested):
    """One configuration in both sweeps."""

    key: dict[str, Any]
    """Values of :data:`KEY`."""
    name: str
    """What distinguishes it from others of the same device count and batch; empty if nothing
    does."""
    before: float
    after: float
    """img/s; NaN if that sweep measured nothing."""
    runs: tuple[int, int]
    status: tuple[str, str]
    """How each sweep's runs ended: ok, oom, …, or absent."""
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

    @property
    def is_assumed(self) -> bool:
        """Whether the spread between runs was assumed because of too few repetitions."""
        return sum(self.runs) - 2 < LEAST_FREEDOM

    @property
    def is_alone(self) -> bool:
        """In one sweep only."""
        return "absent" in self.status


def compare(
    before: pd.DataFrame,
    after: pd.DataFrame,
    allowed: float = 0.0,
    assumed_spread: float = LARGEST_SPREAD,
) -> list[Change]:
    """Compare the runs of two sweeps, configuration by configuration.

    Runs are repetitions of one configuration if they agree in everything requested that decides
    what is measured, and in what they found on their machine (:data:`FOUND`). Mean log throughput
    is compared by Student's t test on the variance between repetitions, or by a z test on an
    assumed one (:func:`~dpeval.stats.comparison.error_of_difference`). The p-values of all
    configurations are adjusted by Holm's method, which keeps the family-wise error at
    :data:`FAMILY_ERROR` (simulated in ``benchmarks/comparison.py``). The spread between runs does
    not include what all runs of a sweep share, such as the state of the machine on that day
    (:func:`machine_change`).

    Args:
        before, after: one row per run (:data:`dpeval.analysis.frame.columns.COLUMNS`).
        allowed: how much slower the second may be, as a fraction in [0, 1) (0.03 for 3 %).
        assumed_spread: standard deviation between runs, over the mean, where too few repetitions
            show it.

    Raises:
        ConfigError: `allowed` is out of its range.
    """
    if not 0 <= allowed < 1:
        raise ConfigError(
            f"a throughput can fall by 0 % or more and by less than 100 %, not by {allowed:.4g}; "
            "give 0.03 for 3 %"
        )
    pairs = _pairs(before, after)
    tested = [index for index, pair in enumerate(pairs) if all(len(_good(one)) for one in pair)]
    results = _tests([pairs[index] for index in tested], allowed, assumed_spread)
    made = dict(zip(tested, results, strict=True))
    names = _names(pairs)
    return [
        _change(pair, name, made.get(index, _UNTESTED), _note(pair, pairs))
        for index, (pair, name) in enumerate(zip(pairs, names, strict=True))
    ]


def machine_change(before: pd.DataFrame, after: pd.DataFrame) -> float:
    """How much longer the reference work took in the second sweep, as a fraction; NaN: unknown.

    A positive value means that the machine itself was slower, and with it every configuration. The
    mean of the log is taken over configurations in both sweeps, so their numbers of runs do not
    matter."""
    changes = []
    for pair in _pairs(before, after):
        one, two = (_good(side)["machine_s"].dropna().to_numpy(dtype=float) for side in pair)
        if len(one) and len(two):
            changes.append(float(np.log(two).mean() - np.log(one).mean()))
    return math.expm1(float(np.mean(changes))) if changes else math.nan


MACHINE = ("host", "cpu", "cores", "gpus")
"""Fields of a run's place that tell one machine from another; what was installed there may be what
is compared."""


def other_machine(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """In which of :data:`MACHINE` the sweeps differ, and what each had there.

    Fields of which a sweep knows nothing are left out. A scheduler's nodes of one kind count as
    equal.
    """
    known = [_machines(_good(side)) for side in (before, after)]
    return {
        name: (", ".join(sorted(known[0][name])), ", ".join(sorted(known[1][name])))
        for name in MACHINE
        if known[0][name] and known[1][name] and known[0][name] != known[1][name]
    }


def _machines(runs: pd.DataFrame) -> dict[str, set[str]]:
    """The values of each of :data:`MACHINE`, without unknown ones."""
    places = [cohorts.fields_of(place) for place in runs["place"].unique()]
    return {name: {one.get(name, "") for one in places} - {""} for name in MACHINE}


Pair = tuple[pd.DataFrame, pd.DataFrame]
"""The runs of one configuration before and after; empty if that sweep has none."""


def _pairs(before: pd.DataFrame, after: pd.DataFrame) -> list[Pair]:
    """The runs of both sweeps by configuration, in the order of :data:`KEY`."""
    runs = pd.concat([before.assign(side=0), after.assign(side=1)], ignore_index=True)
    if runs.empty:
        return []
    found = runs[FOUND].map(str).agg("\x1f".join, axis=1)
    runs["found"] = _as_measured(runs, found)
    # Sorted as text: some values of the key are NaN, which has no order.
    runs["order"] = runs[[*KEY, "configuration", "found"]].map(str).agg("\x1f".join, axis=1)
    by = ["model", "hardware", "scaling", "batch", "num_devices", "order"]
    groups = runs.sort_values(by).groupby(["configuration", "found"], sort=False)
    return [(group[group["side"] == 0], group[group["side"] == 1]) for _, group in groups]


def _as_measured(runs: pd.DataFrame, found: pd.Series[str]) -> pd.Series[str]:
    """`found`, with gaps of runs that measured nothing filled from a measured run of the
    configuration.

    A run that succeeded before and fails now may have been refused before it had data or threads.
    """
    homes: dict[tuple[str, int], str] = {}
    measured = runs["img_per_s"].notna()
    for configuration, side, value in zip(
        runs.loc[measured, "configuration"], runs.loc[measured, "side"], found[measured],
        strict=True,
    ):  # fmt: skip
        homes.setdefault((configuration, side), value)
    return pd.Series(
        [
            value if is_measured else homes.get((name, side), homes.get((name, 1 - side), value))
            for value, is_measured, name, side in zip(
                found, measured, runs["configuration"], runs["side"], strict=True
            )
        ],
        index=runs.index,
        dtype=object,
    )


def _tests(pairs: Sequence[Pair], allowed: float, assumed_spread: float) -> list[Tested]:
    if not pairs:
        return []
    logs = [[np.log(_good(one)["img_per_s"].to_numpy(dtype=float)) for one in p] for p in pairs]
    difference = np.array([after.mean() - before.mean() for before, after in logs])
    counts = np.array([[len(one) for one in pair] for pair in logs])
    squares = [sum(float(((one - one.mean()) ** 2).sum()) for one in pair) for pair in logs]
    error = error_of_difference(
        np.array(squares) / np.maximum(1, counts.sum(axis=1) - 2),
        np.array([_own_variance(pair) for pair in pairs]),
        counts[:, 0],
        counts[:, 1],
        assumed_spread,
    )
    half = quantile(0.975, error.freedom) * error.value
    values = zip(
        np.exp(difference), np.exp(difference - half), np.exp(difference + half),
        p_values(difference, error), p_lower(difference, error, math.log(1 - allowed)),
        np.exp(-detectable(error, FAMILY_ERROR)), strict=True,
    )  # fmt: skip
    return [Tested(*(float(value) for value in row)) for row in values]


def _own_variance(pair: Pair) -> float:
    """Mean squared standard error of the runs' own log throughput; 0 if unknown."""
    errors = own_errors(pd.concat([_good(one) for one in pair]))
    return float((np.nan_to_num(errors) ** 2).mean())


def _change(pair: Pair, name: str, result: Tested, note: str) -> Change:
    known = pd.concat(pair)
    # A measured run knows more of its key.
    first = known.sort_values("img_per_s", na_position="last").iloc[0]
    return Change(
        key={column: first[column] for column in KEY},
        name=name,
        before=_rate(_good(pair[0])),
        after=_rate(_good(pair[1])),
        **vars(result),
        runs=(len(_good(pair[0])), len(_good(pair[1]))),
        status=(_status(pair[0]), _status(pair[1])),
        note=note,
    )


def _good(side: pd.DataFrame) -> pd.DataFrame:
    return side[is_measured(side)]


def _status(side: pd.DataFrame) -> str:
    if side.empty:
        return "absent"
    if len(_good(side)):
        return "ok"
    failed = [str(status) for status in side["status"] if status != "ok"]
    return failed[-1] if failed else "failed"


def _rate(good: pd.DataFrame) -> float:
    """Images over the mean time, img/s."""
    return float(1 / (1 / good["img_per_s"]).mean()) if len(good) else math.nan


def _note(pair: Pair, pairs: Sequence[Pair]) -> str:
    status = _status(pair[0]), _status(pair[1])
    if "absent" in status:
        here = status.index("absent") ^ 1
        return f"only {('before', 'after')[here]}{_nearest(pair[here], here, pairs)}"
    if status != ("ok", "ok"):
        return f"{status[0]} before, {status[1]} after"
    return ""


def _nearest(runs: pd.DataFrame, here: int, pairs: Sequence[Pair]) -> str:
    """How the most similar configuration of the other sweep differs from these runs."""
    own = _fields(runs)
    others = [
        _fields(pair[1 - here])
        for pair in pairs
        if pair[here].empty
        and (pair[1 - here][["num_devices", "batch"]].iloc[0].to_list()
             == runs[["num_devices", "batch"]].iloc[0].to_list())
    ]  # fmt: skip
    if not others:
        return ""
    differing = min((_differing([own, other]) for other in others), key=len)
    other = min(others, key=lambda fields: len(_differing([own, fields])))
    sides = (own, other) if here == 0 else (other, own)
    said = [
        f"{field} {sides[0].get(field, '–')} before, {sides[1].get(field, '–')} after"
        for field in differing[:_MOST_DIFFERING]
    ]
    more = len(differing) - len(said)
    return f": {'; '.join(said)}" + (f" and {more} more" if more > 0 else "")


def _fields(runs: pd.DataFrame) -> dict[str, str]:
    """Everything that identifies a configuration, by name."""
    first = runs.sort_values("img_per_s", na_position="last").iloc[0]
    return cohorts.fields_of(first["configuration"]) | {
        name: f"{first[name]:g}" if isinstance(first[name], float) else str(first[name])
        for name in FOUND
    }


def _differing(fields: Sequence[dict[str, str]]) -> list[str]:
    names = dict.fromkeys(name for one in fields for name in one)
    return [name for name in names if len({one.get(name) for one in fields}) > 1]


def _names(pairs: Sequence[Pair]) -> list[str]:
    """For each pair, the fields that distinguish it from others of its device count and batch."""
    fields = [_fields(pd.concat(pair)) for pair in pairs]
    places = [(one.get("num_devices"), one.get("batch")) for one in fields]
    crowded = {place for place, count in Counter(places).items() if count > 1}
    alike = [one for one, place in zip(fields, places, strict=True) if place in crowded]
    shown = [n for n in _differing(alike) if n not in ("num_devices", "batch")]
    return [
        ", ".join(f"{name}={one.get(name, '–')}" for name in shown[:_MOST_DIFFERING])
        if place in crowded
        else ""
        for one, place in zip(fields, places, strict=True)
    ]


def table(changes: Sequence[Change]) -> pd.DataFrame:
    """One row per configuration: :data:`KEY` and everything of :class:`Change`."""
    return pd.DataFrame(
        [
            {
                **change.key, "name": change.name,
                "before_img_per_s": change.before, "after_img_per_s": change.after,
                "ratio": change.ratio, "ratio_low": change.low, "ratio_high": change.high,
                "p_adjusted": change.p_adjusted, "p_slower": change.p_slower,
                "detectable_ratio": change.detectable,
                "runs_before": change.runs[0], "runs_after": change.runs[1],
                "status_before": change.status[0], "status_after": change.status[1],
                "is_different": change.is_different, "is_slower": change.is_slower,
                "note": change.note,
            }
            for change in changes
        ]
    )  # fmt: skip
