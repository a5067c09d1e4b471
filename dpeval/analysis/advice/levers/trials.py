"""What was tried already: series that differ in one lever alone, compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from dpeval.analysis.advice.commands import sweeping
from dpeval.analysis.advice.levers.lever import Lever, Situation
from dpeval.analysis.advice.quantity import Quantity
from dpeval.analysis.frame.cohorts import fields_of
from dpeval.analysis.frame.labels import configuration
from dpeval.analysis.scaling.contrasts import contrasts
from dpeval.config import SERIAL, Config, to_plain
from dpeval.util.display.ranges import percent, percents

LEVERS = {
    "dataset.loader": "loader",
    "hardware.keep_memory": "keep_memory",
    "strategy.gradient_as_bucket_view": "gradient_views",
    "strategy.bucket_cap_mb": "bucket_size",
    "strategy.static_graph": "static_graph",
    "precision": "precision",
    "memory_format": "memory_format",
    "hardware.cores_per_device": "threads",
    "dataset.workers": "workers",
    "compile": "compile",
}
"""Which lever a configuration key is."""


@dataclass(frozen=True)
class Tried:
    """One lever that was measured both ways."""

    kind: str
    key: str
    before: str
    after: str
    """Values of the key; `before` is the default where one is."""
    name: str
    """The configuration that was measured both ways."""
    gain: Quantity
    """Of throughput, from `before` to `after`, as a share."""
    is_used: bool
    """Whether the recommended configuration has `after`."""
    command: str

    @property
    def helped(self) -> bool:
        return self.gain.low > 0

    @property
    def sentence(self) -> str:
        """What came of it."""
        change = f"{self.key}={self.after} instead of {self.before}"
        ends = percents(self.gain.low, self.gain.high)
        at = f"at {self.name}"
        if self.helped:
            return f"{change} brought {percent(self.gain.value)} ({ends}) {at}."
        if self.gain.high < 0:
            lost = percents(-self.gain.high, -self.gain.low)
            return f"{change} cost {percent(-self.gain.value)} ({lost}) {at}."
        return f"{change} made no difference that can be told ({ends}) {at}."


def trials(now: Situation, points: pd.DataFrame, runs: pd.DataFrame) -> list[Tried]:
    """Every lever in which another series differs from that of `now`, and in nothing else.

    Args:
        now: the recommended configuration.
        points: measured configurations of all series.
        runs: runs of all series.
    """
    found = []
    wrapped = runs[runs["status"].eq("ok") & runs["strategy"].ne(SERIAL)]
    # The few series that differ in one lever are found first: there may be hundreds of others.
    last = wrapped.groupby("series", sort=False)[["task", "place"]].last()
    for series, task, place in zip(last.index, last["task"], last["place"], strict=True):
        key = _only_difference(now, str(task), str(place))
        if key is None or series == now.row["series"]:
            continue
        same = points[
            points["series"].eq(series)
            & points["hardware"].eq(now.row["hardware"])
            & points["scaling"].eq(now.row["scaling"])
            & points["strategy"].ne(SERIAL)
        ]
        if (pair := _pair(now, same)) is not None:
            found.append(_tried(now, key, wrapped[wrapped["series"].eq(series)], pair))
    return found


def _only_difference(now: Situation, task: str, place: str) -> str | None:
    """The lever in which a series differs from `now`; None: another key differs, too, or none.

    Args:
        now: the recommended configuration.
        task: of the series' last run.
        place: likewise.
    """
    if fields_of(place) != now.place:
        return None
    asked = fields_of(task)
    names = {*asked, *now.asked}
    differing = {name for name in names if asked.get(name) != now.asked.get(name)}
    if "precision" in differing:
        differing.discard("memory_format")  # auto follows the precision
    if differing == {"strategy.static_graph", "strategy.find_unused_parameters"}:
        return "strategy.static_graph"
    return next(iter(differing)) if len(differing) == 1 and differing <= set(LEVERS) else None


def _pair(now: Situation, same: pd.DataFrame) -> pd.DataFrame | None:
    """The configuration of `now` and that of `same`, else the largest that both have; two rows.

    Series with other threads per rank are compared on the same cores, not the same ranks.
    """
    own = now.points[now.points["strategy"].ne(SERIAL)]
    is_other_threads = set(own["threads"].dropna()) != set(same["threads"].dropna())
    left, right = (
        table.reset_index(drop=True).assign(
            cores=table["num_devices"].to_numpy() * table["threads"].to_numpy(),
            place=range(len(table)),
        )
        for table in (own, same)
    )
    shared = "cores" if is_other_threads and not now.is_gpu else "num_devices"
    keys = list(dict.fromkeys([shared, "batch", "num_devices", "place"]))
    both = left[keys].merge(right[keys], on=[shared, "batch"], suffixes=("", "_other"))
    if both.empty:
        return None
    is_own = both["num_devices"].eq(now.devices) & both["batch"].eq(now.batch)
    ordered = both.assign(is_own=is_own).sort_values(["is_own", "num_devices", "batch"])
    chosen = ordered.iloc[-1]
    return pd.DataFrame([left.iloc[chosen["place"]], right.iloc[chosen["place_other"]]])


def _tried(now: Situation, key: str, wrapped: pd.DataFrame, pair: pd.DataFrame) -> Tried:
    """What `pair`, two rows, shows of `key`.

    Args:
        now: the recommended configuration.
        key: the lever in which the other series differs.
        wrapped: the other series' runs with a strategy.
        pair: see :func:`_pair`.
    """
    theirs = fields_of(str(wrapped["task"].iloc[-1])).get(key, "null")
    own = now.asked.get(key, "null")
    is_used = theirs == _default(key)
    before, after = (theirs, own) if is_used else (own, theirs)
    found = contrasts(pair).ratio(0, 1) if is_used else contrasts(pair).ratio(1, 0)
    gain = Quantity(*(ratio - 1 for ratio in found))
    devices, batch = (int(pair[name].iloc[0]) for name in ("num_devices", "batch"))
    swept = {
        "num_devices": str(devices),
        "batch": str(batch),
        key: f"{_word(before)},{_word(after)}",
    }
    return Tried(
        LEVERS[key], key, _word(before), _word(after),
        configuration(devices, batch, now.row["scaling"], now.row["hardware"]),
        gain, is_used, sweeping(wrapped, swept, turns=True),
    )  # fmt: skip


def _word(value: str) -> str:
    """A value as it is typed."""
    return value.lower() if value in ("True", "False") else value


def _default(key: str) -> str | None:
    value: Any = to_plain(Config())
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return None if value is None else str(value)


def as_lever(tried: Tried) -> Lever:
    """A trial that helped, and that the recommended configuration does not have."""
    return Lever(
        tried.kind,
        f"Set {tried.key}={tried.after}",
        f"measured at {tried.name}",
        tried.gain,
        tried.command,
        is_measured=True,
    )
