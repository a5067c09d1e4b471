"""The cells that figures draw: one per configuration, measured or not."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import pandas as pd

from dpeval.analysis.frame.runs_frame import CONFIGURATION, is_measured
from dpeval.config import SERIAL, global_batch_of
from dpeval.record.codes import SHORT_CAUSES
from dpeval.record.phases import PHASES
from dpeval.util.display.units import GIB

FAMILY = tuple(name for name in CONFIGURATION if name not in ("num_devices", "batch"))
"""Columns whose values must be equal for points to share a panel."""
CELL = (*FAMILY, "num_devices", "batch")
PHASE_COLUMNS = tuple(f"{phase}_s" for phase in PHASES)

_MOST_BATCHES = 8
_HARDWARE = {"cpu": "CPU", "gpu": "GPU"}


@dataclass(frozen=True)
class Family:
    """Configurations that differ only in device count and batch."""

    label: str
    """What distinguishes this family from the others of the same analysis."""
    hardware: str
    scaling: str
    stand_in: bool
    key: dict[str, Any]
    """Values of :data:`FAMILY`."""
    cells: pd.DataFrame
    """One row per (num_devices, batch), sorted; see :func:`cells`."""

    @cached_property
    def device_counts(self) -> list[int]:
        return sorted({int(n) for n in self.cells["num_devices"]})

    @cached_property
    def batches(self) -> list[int]:
        return sorted({int(b) for b in self.cells["batch"]})

    @property
    def shown_batches(self) -> list[int]:
        """Batches that fit into one panel: all, or an even selection with both ends."""
        if len(self.batches) <= _MOST_BATCHES:
            return self.batches
        last = len(self.batches) - 1
        return [self.batches[round(i * last / (_MOST_BATCHES - 1))] for i in range(_MOST_BATCHES)]

    @property
    def batch_name(self) -> str:
        return "batch per device" if self.scaling == "weak" else "global batch"

    @property
    def unit(self) -> str:
        """What a sample is: img, tokens, …"""
        return next(iter(self.cells["unit"].dropna()), "img")

    @cached_property
    def _by_batch(self) -> dict[int, pd.DataFrame]:
        return {int(batch): part for batch, part in self.cells.groupby("batch")}

    def of_batch(self, batch: int) -> pd.DataFrame:
        return self._by_batch[batch]

    def measured(self, batch: int | None = None) -> pd.DataFrame:
        """Cells with a throughput, of one batch or of all."""
        chosen = self.cells if batch is None else self.of_batch(batch)
        return chosen[chosen["status"] == "ok"]


def cells(runs: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """One row per requested configuration, whether or not it was measured.

    Args:
        runs: one row per run.
        summary: one row per configuration with its throughput, speedup and efficiency
            (:attr:`dpeval.analysis.scaling.findings.Findings.summary`).

    Returns:
        Columns of :data:`CELL`; `status` (``ok`` if any run was measured, else the worst);
        `n_runs`; those of `summary` that are not named here; `step_s`, `step_low_s`, `step_high_s`
        and the phases (s, means over runs); `peak_bytes` and `peak_low_bytes` (highest and lowest
        over runs), `need_bytes`, `have_bytes`; `steady`, `settled` (no limit ended a run before it
        was as precise as asked), `stand_in`, `oversubscribed`; `unit`; `strategy` and
        `series_strategy` (that of more than one device); `why` and `bad` (text).
    """
    asked = runs.dropna(subset=["num_devices", "batch"])
    if asked.empty:
        return pd.DataFrame()
    table = _gathered(asked)
    added = [name for name in summary.columns if name in CELL or name not in table.columns]
    table = table.merge(summary[added], on=list(CELL), how="left", validate="one_to_one")
    seconds = table["step_s"] * table["img_per_s"]
    table["step_low_s"] = seconds / table["high"]
    table["step_high_s"] = seconds / table["low"]
    return table


_SHARED = ("study", "model", "dataset_used", "strategy", "precision")
_TIMES = (*PHASE_COLUMNS, "step_s", "comm_s", "comm_hidden_s")
_LIMITS = ("time_limit", "max_steps", "interrupted")
"""What ends a run before it is as precise as asked."""
_STATUSES = ("ok", "oom", "skipped", "failed", "interrupted")


def _gathered(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of each configuration as one row."""
    ok = is_measured(runs)
    work = runs[list(CELL)].astype({"num_devices": int, "batch": int})
    for name in _SHARED:
        if name not in work:
            work[name] = runs[name].mask(runs[name].eq(""))
    # Its serial baseline does not give a series two strategies.
    wrapped = work["strategy"].mask(work["strategy"].eq(SERIAL))
    of_series = wrapped.groupby(runs["series"]).transform("first")
    work["series_strategy"] = of_series.fillna(work["strategy"])
    work["unit"] = runs["unit"].mask(runs["unit"].eq(""))
    for name in _TIMES:
        work[name] = runs[name].astype(float).where(ok)
    # Skipped before there was a plan: the global batch follows from the request.
    kinds = zip(runs["scaling"], work["batch"], work["num_devices"], strict=True)
    asked = pd.Series([global_batch_of(*kind) for kind in kinds], index=work.index, dtype=float)
    work["global_batch"] = runs["global_batch"].astype(float).fillna(asked)
    for name, source in {"peak": "peak", "need": "forecast", "have": "budget"}.items():
        work[f"{name}_bytes"] = runs[f"{source}_bytes"].astype(float)
    work["peak_low_bytes"] = work["peak_bytes"]
    ranked = {name: place for place, name in enumerate(_STATUSES)}
    work["status"] = runs["status"].map(ranked).where(ok | runs["status"].ne("ok"), 3).fillna(3)
    work["n_runs"] = ok.astype(int)
    work["steady"] = runs["steady"].ne(False) | ~ok  # None: not known
    # A single step, as in imported tables, was not stopped by anything.
    work["settled"] = ~(ok & runs["stopped_by"].isin(_LIMITS) & runs["steps"].gt(1))
    for name in ("stand_in", "oversubscribed"):
        work[name] = runs[name].eq(True)
    why = runs["cause_kind"].map(SHORT_CAUSES).fillna(runs["cause"])
    work["why"] = why.mask(why.eq(""))
    work["bad"] = runs["conditions_bad"].mask(runs["conditions_bad"].eq("") | ~ok)
    table = work.groupby(list(CELL), dropna=False, sort=True).agg(_rules(work)).reset_index()
    table["status"] = table["status"].astype(int).map(dict(enumerate(_STATUSES)))
    return table.fillna({"why": "", "bad": ""})


def _rules(work: pd.DataFrame) -> dict[str, str]:
    """How each column of the runs is reduced to one value per configuration."""
    rules = dict.fromkeys(_TIMES, "mean")
    rules |= dict.fromkeys(("global_batch", "peak_bytes", "need_bytes"), "max")
    rules |= dict.fromkeys(("have_bytes", "peak_low_bytes", "status"), "min")
    rules |= {"n_runs": "sum", "steady": "all", "settled": "all"}
    rules |= {"stand_in": "any", "oversubscribed": "any"}
    return {name: rules.get(name, "first") for name in work.columns if name not in CELL}


def families(table: pd.DataFrame) -> list[Family]:
    """Split `table` into families, the one with the most configurations first."""
    if table.empty:
        return []
    telling = _telling(table)
    found = []
    for _, group in table.groupby(list(FAMILY), dropna=False, sort=True):
        values = group.iloc[0]
        stand_in = bool(group["stand_in"].any())
        words = [_say(column, values[column]) for column in telling]
        if stand_in and table["dataset_used"].nunique(dropna=False) > 1:
            words.append("stand-in data")
        found.append(
            Family(
                label=" · ".join(words),
                hardware=str(values["hardware"]),
                scaling=str(values["scaling"]),
                stand_in=stand_in,
                key={name: values[name] for name in FAMILY},
                cells=group.sort_values(["num_devices", "batch"]).reset_index(drop=True),
            )
        )
    return sorted(found, key=lambda family: -len(family.cells))


_TELLING = ("hardware", "model", "scaling", "precision", "series_strategy", "dataset_used")
_LESS_TELLING = ("study", "series")


def _telling(table: pd.DataFrame) -> list[str]:
    """The fewest columns whose values distinguish all families of `table`."""
    # A run that was never started does not know its data, which does not put it into another
    # family.
    candidates = (*_TELLING, *_LESS_TELLING)
    by_family = table.groupby(list(FAMILY), dropna=False)
    table = table.assign(**{name: by_family[name].transform("first")
                            for name in candidates if name not in FAMILY})  # fmt: skip
    count = len(table[list(FAMILY)].drop_duplicates())
    differing = [name for name in candidates if table[name].nunique(dropna=False) > 1]
    named = [name for name in differing if name in _TELLING]
    tried = [*_subsets(named), *_subsets(differing)]
    for names in tried:
        # Each family has one value in each of these columns, and no two families share all values.
        with_family = len(table[[*FAMILY, *(set(names) - set(FAMILY))]].drop_duplicates())
        if with_family == count == len(table[names].drop_duplicates()):
            return names
    return differing


def _subsets(names: list[str]) -> list[list[str]]:
    sizes = range(1, len(names) + 1)
    return [list(chosen) for size in sizes for chosen in combinations(names, size)]


def printable(value: object, most: int) -> str:
    """At most `most` characters of a record's text, made safe for a figure.

    A control character would make the SVG unreadable.
    """
    return "".join(char if char.isprintable() else "\ufffd" for char in str(value)[:most])


def _say(column: str, value: object) -> str:
    text = printable(value, 90)
    if column == "hardware":
        return _HARDWARE.get(text, text)
    return {"scaling": f"{text} scaling"}.get(column, text)


def common_words(table: pd.DataFrame) -> str:
    """The values that all rows of `table` share, as a subtitle."""
    words = []
    for column in ("model", "hardware", "precision", "series_strategy", "scaling"):
        # What records of other programs do not say is no word.
        if table[column].nunique(dropna=False) == 1 and table[column].notna().all():
            words.append(_say(column, table[column].iloc[0]))
    used = table["dataset_used"].dropna().unique()
    if len(used) == 1:
        mark = " (stand-in data)" if bool(table["stand_in"].any()) else ""
        words.append(f"{_say('dataset_used', used[0])}{mark}")
    return " · ".join(words)


def device_word(hardware: str) -> str:
    """The axis label of a device count."""
    return {"cpu": "CPU devices (ranks)", "gpu": "GPUs"}.get(hardware, "devices")


def shortfall(cell: Any, *, narrow: bool = False) -> str:
    """Why `cell` has no throughput, in a few words: GiB needed and available, or the cause.

    `narrow` breaks it into short lines, for a box in a map.
    """
    need, have = cell.need_bytes, cell.have_bytes
    memory = cell.status in ("oom", "skipped")
    if memory and pd.notna(need) and pd.notna(have) and need > have:
        parts = [f"needs {need / GIB:.1f}", f"of {have / GIB:.1f} GiB"]
    elif cell.status == "oom" and pd.notna(have):
        parts = [f"had {have / GIB:.1f} GiB"]
    else:
        parts = textwrap.wrap(printable(cell.why, 45), 15, max_lines=2, placeholder=" …")
    if narrow:
        return "\n".join([{"oom": "OOM"}.get(cell.status, str(cell.status)), *parts])
    word = {"oom": "out of memory"}.get(cell.status, str(cell.status))
    return f"{word}: {' '.join(parts)}" if parts else word


def segments(counts: list[int], present: set[int]) -> Iterator[list[int]]:
    """Runs of consecutive requested `counts` that are `present`; a line joins only these."""
    run: list[int] = []
    for count in counts:
        if count in present:
            run.append(count)
        elif run:
            yield run
            run = []
    if run:
        yield run
