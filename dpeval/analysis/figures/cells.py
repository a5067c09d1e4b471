"""What every figure draws: one cell per configuration, measured or not."""

from __future__ import annotations

import textwrap
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pandas as pd

from dpeval.analysis.frame import CONFIGURATION
from dpeval.record import PHASES

FAMILY = tuple(name for name in CONFIGURATION if name not in ("num_devices", "batch"))
"""Columns whose values must be equal for points to share a panel."""
CELL = (*FAMILY, "num_devices", "batch")
PHASE_COLUMNS = tuple(f"{phase}_s" for phase in PHASES)
GIB = 2**30

_WORST_FIRST = ("oom", "skipped", "failed", "interrupted")
_HARDWARE = {"cpu": "CPU", "gpu": "GPU"}


@dataclass(frozen=True)
class Family:
    """Configurations that differ only in device count and batch."""

    label: str
    """What sets this family apart from the others of the same analysis."""
    hardware: str
    scaling: str
    stand_in: bool
    key: dict[str, Any]
    """Values of :data:`FAMILY`."""
    cells: pd.DataFrame
    """One row per (num_devices, batch), sorted; see :func:`cells`."""

    @property
    def device_counts(self) -> list[int]:
        return sorted({int(n) for n in self.cells["num_devices"]})

    @property
    def batches(self) -> list[int]:
        return sorted({int(b) for b in self.cells["batch"]})

    @property
    def batch_name(self) -> str:
        return "batch per device" if self.scaling == "weak" else "global batch"

    def of_batch(self, batch: int) -> pd.DataFrame:
        return self.cells[self.cells["batch"] == batch]

    def measured(self, batch: int | None = None) -> pd.DataFrame:
        """Cells with a throughput, of one batch or of all."""
        chosen = self.cells if batch is None else self.of_batch(batch)
        return chosen[chosen["status"] == "ok"]


def cells(runs: pd.DataFrame, pooled: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration asked for, whether or not it was measured.

    Args:
        runs: one row per run.
        pooled: one row per measured configuration with `img_per_s`, `low`, `high` (img/s, 95 %
            interval over repetitions) and `n_runs`.

    Returns:
        Columns of :data:`CELL`; `status` (``ok`` where any run measured, else the worst);
        `img_per_s`, `low`, `high`, `n_runs`; `step_s`, `step_low_s`, `step_high_s` and the phases
        (s, means over runs); `peak_bytes` and `peak_low_bytes` (highest and lowest
        over runs), `need_bytes`, `have_bytes`; `steady`, `stand_in`,
        `oversubscribed`; `why` and `bad` (text).
    """
    rows = [_cell(key, group) for key, group in runs.groupby(list(CELL), dropna=False, sort=True)]
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    columns = [*CELL, "img_per_s", "low", "high"]
    table = table.merge(pooled[columns], on=list(CELL), how="left", validate="one_to_one")
    table["step_low_s"] = table["global_batch"] / table["high"]
    table["step_high_s"] = table["global_batch"] / table["low"]
    return table


_SHARED = ("study", "model", "dataset_used", "strategy", "precision", "global_batch")
_TIMES = (*PHASE_COLUMNS, "step_s", "comm_s", "comm_hidden_s")


def _cell(key: tuple[Hashable, ...], group: pd.DataFrame) -> dict[str, Any]:
    ok = group[(group["status"] == "ok") & group["img_per_s"].notna()]
    cell: dict[str, Any] = dict(zip(CELL, key, strict=True))
    cell |= {name: _first(group[name]) for name in _SHARED if name not in cell}
    if cell["global_batch"] is None:  # not planned: skipped before there was a plan
        weak = cell.get("scaling") == "weak"
        cell["global_batch"] = cell["batch"] * (cell["num_devices"] if weak else 1)
    cell |= {name: ok[name].astype(float).mean() for name in _TIMES}
    return cell | {
        "status": "ok" if len(ok) else _worst(group["status"]),
        "n_runs": len(ok),
        "steady": bool(ok["steady"].eq(True).all()),
        "stand_in": bool(group["stand_in"].eq(True).any()),
        "oversubscribed": bool(group["oversubscribed"].eq(True).any()),
        "peak_bytes": group["peak_bytes"].astype(float).max(),
        "peak_low_bytes": group["peak_bytes"].astype(float).min(),
        "need_bytes": group["forecast_bytes"].astype(float).max(),
        "have_bytes": group["budget_bytes"].astype(float).min(),
        "bad": "; ".join(dict.fromkeys(text for text in ok["conditions_bad"] if text)),
        "why": _first(group["cause"]) or "",
    }


def _first(values: pd.Series[Any]) -> Any:
    """The first value that says something."""
    return next((value for value in values if pd.notna(value) and value != ""), None)


def _worst(statuses: pd.Series[Any]) -> str:
    present = set(statuses)
    return next((status for status in _WORST_FIRST if status in present), "failed")


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


_TELLING = ("hardware", "model", "scaling", "precision", "strategy", "dataset_used")
_LESS_TELLING = ("study", "series")


def _telling(table: pd.DataFrame) -> list[str]:
    """The fewest columns whose values tell all families of `table` apart."""
    count = len(table[list(FAMILY)].drop_duplicates())
    differing = [
        name for name in (*_TELLING, *_LESS_TELLING) if table[name].nunique(dropna=False) > 1
    ]
    named = [name for name in differing if name in _TELLING]
    tried = [*_subsets(named), *_subsets(differing)]
    for names in tried:
        # Each family has one value of each of them, and no two have the same.
        with_family = len(table[[*FAMILY, *(set(names) - set(FAMILY))]].drop_duplicates())
        if with_family == count == len(table[names].drop_duplicates()):
            return names
    return differing


def _subsets(names: list[str]) -> list[list[str]]:
    sizes = range(1, len(names) + 1)
    return [list(chosen) for size in sizes for chosen in combinations(names, size)]


def _say(column: str, value: object) -> str:
    text = str(value)
    if column == "hardware":
        return _HARDWARE.get(text, text)
    return {"scaling": f"{text} scaling"}.get(column, text)[:90]


def common_words(table: pd.DataFrame) -> str:
    """The values that all of `table` shares, as a subtitle."""
    words = []
    for column in ("model", "hardware", "precision", "strategy", "scaling"):
        if table[column].nunique(dropna=False) == 1:
            words.append(_say(column, table[column].iloc[0]))
    used = table["dataset_used"].dropna().unique()
    if len(used) == 1:
        mark = " (stand-in data)" if bool(table["stand_in"].any()) else ""
        words.append(f"{str(used[0])[:40]}{mark}")
    return " · ".join(words)


def device_word(hardware: str) -> str:
    """The axis label of a device count."""
    return {"cpu": "CPU devices (ranks)", "gpu": "GPUs"}.get(hardware, "devices")


def shortfall(cell: Any, *, narrow: bool = False) -> str:
    """Why `cell` has no throughput, in a few words: GiB needed against GiB there, or the cause.

    `narrow` breaks it into short lines, for a box in a map.
    """
    need, have = cell.need_bytes, cell.have_bytes
    memory = cell.status in ("oom", "skipped")
    if memory and pd.notna(need) and pd.notna(have) and need > have:
        parts = [f"needs {need / GIB:.1f}", f"of {have / GIB:.1f} GiB"]
    elif cell.status == "oom" and pd.notna(have):
        parts = [f"had {have / GIB:.1f} GiB"]
    else:
        parts = textwrap.wrap(str(cell.why)[:45], 15, max_lines=2) if cell.why else []
    if narrow:
        return "\n".join([{"oom": "OOM"}.get(cell.status, str(cell.status)), *parts])
    word = {"oom": "out of memory"}.get(cell.status, str(cell.status))
    return f"{word}: {' '.join(parts)}" if parts else word


def segments(counts: list[int], present: set[int]) -> Iterator[list[int]]:
    """Runs of consecutive asked-for `counts` that are `present`: a line joins only these."""
    run: list[int] = []
    for count in counts:
        if count in present:
            run.append(count)
        elif run:
            yield run
            run = []
    if run:
        yield run
