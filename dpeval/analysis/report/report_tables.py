"""Tables of a report: runs, series, warnings, commands. All cells are plain text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from dpeval.analysis.frame.as_rows import as_rows
from dpeval.analysis.frame.labels import configuration
from dpeval.util.display.plural import counted
from dpeval.util.display.ranges import number, percent
from dpeval.util.display.units import GIB

MOST_ROWS = 2_000
_MOST_TEXT = 200


@dataclass(frozen=True)
class Column:
    """One column of the table of runs."""

    name: str
    title: str
    numeric: bool = False


COLUMNS = (
    Column("study", "study"),
    Column("status", "status"),
    Column("hardware", "hardware"),
    Column("model", "model"),
    Column("num_devices", "devices", numeric=True),
    Column("batch", "batch", numeric=True),
    Column("repetition", "run", numeric=True),
    Column("img_per_s", "img/s", numeric=True),
    Column("interval", "95 % interval"),
    Column("step_s", "step (ms)", numeric=True),
    Column("comm", "exposed comm.", numeric=True),
    Column("peak", "peak (GiB)", numeric=True),
    Column("notes", "notes"),
    Column("path", "record"),
)


def columns(runs: pd.DataFrame) -> list[Column]:
    """The columns of the table of `runs`, with the unit of their samples."""
    units = set(runs["unit"]) - {""}
    unit = "samples" if len(units) > 1 else next(iter(units), "img")
    return [
        replace(column, title=f"{unit}/s") if column.name == "img_per_s" else column
        for column in COLUMNS
    ]


@dataclass(frozen=True)
class Row:
    """One run: the cells as text, with the numbers to sort by."""

    status: str
    cells: list[tuple[str, float | None]]


def rows(runs: pd.DataFrame) -> list[Row]:
    """The runs, newest last, :data:`MOST_ROWS` at most."""
    return [_row(run) for run in as_rows(runs.head(MOST_ROWS))]


def _row(run: Mapping[Any, Any]) -> Row:
    step, exposed = _number(run["step_s"]), _number(run["comm_exposed_s"])
    # Rounding in a sum of phases can leave -0.0 of a step.
    share = max(0.0, exposed / step) if step and exposed is not None else None
    peak = _number(run["peak_bytes"])
    rate = _number(run["img_per_s"])
    shown: dict[str, tuple[str, float | None]] = {
        "num_devices": _shown(_number(run["num_devices"]), "g"),
        "batch": _shown(_number(run["batch"]), "g"),
        "repetition": _shown((_number(run["repetition"]) or 0) + 1, "g"),
        "img_per_s": _shown(rate, ".4g"),
        "interval": (_interval(run) if rate is not None else "", None),
        "step_s": _shown(step * 1e3 if step is not None else None, ".4g"),
        "comm": (_exposed(share, is_measured=rate is not None), share),
        "peak": _shown(peak / GIB if peak is not None else None, ".2f"),
        "notes": (notes(run), None),
        "path": (_text(run["path"]), None),
    }
    for name in ("study", "status", "hardware", "model"):
        shown[name] = (_text(run[name]), None)
    return Row(_text(run["status"]), [shown[column.name] for column in COLUMNS])


def _exposed(share: float | None, *, is_measured: bool) -> str:
    if share is None:
        return "not measured" if is_measured else ""
    return percent(share, 1)


def _interval(run: Mapping[Any, Any]) -> str:
    low, high = _number(run["img_per_s_low"]), _number(run["img_per_s_high"])
    return "unknown" if low is None or high is None else f"{number(low)} – {number(high)}"


def notes(run: Mapping[Any, Any]) -> str:
    """Why a run was not measured, or what makes it less trustworthy."""
    said = []
    if run["status"] != "ok":
        need, have = _number(run["forecast_bytes"]), _number(run["budget_bytes"])
        if need is not None and have is not None and need > have:
            said.append(f"needs {need / GIB:.1f} GiB, has {have / GIB:.1f} GiB")
        said.append(_text(run["cause"]))
    elif run["steady"] is not None and not bool(run["steady"]):
        said.append("no steady state")
    elif run["steady"] is None and (_number(run["steps"]) or 0) > 1:
        said.append("drift unknown (too few or too noisy steps)")
    if bool(run["stand_in"]):
        said.append(f"stand-in data ({_text(run['dataset_used'])})")
    if bool(run["oversubscribed"]):
        said.append("oversubscribed")
    said += [_text(run["conditions_bad"]), *_lines(run["warnings"])]
    return "; ".join(dict.fromkeys(text for text in said if text))[: 2 * _MOST_TEXT]


def _lines(value: Any) -> list[str]:
    lines = str(value).splitlines() if isinstance(value, str) else list(value or [])
    return [_text(line) for line in lines]


def _number(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)


def _shown(value: float | None, form: str) -> tuple[str, float | None]:
    return ("", None) if value is None else (format(value, form), value)


def _text(value: Any) -> str:
    text = "" if value is None or (not isinstance(value, str) and pd.isna(value)) else str(value)
    return text if len(text) <= _MOST_TEXT else f"{text[: _MOST_TEXT - 1]}…"


def facts(runs: pd.DataFrame) -> str:
    """How much was analysed, in one line."""
    counts = runs["status"].value_counts()
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    machines = [_text(host) for host in runs["host"].unique() if host]
    shown = ", ".join(machines[:4]) + (
        f" and {len(machines) - 4} more" if len(machines) > 4 else ""
    )
    days = sorted(str(moment)[:10] for moment in runs["started_at"].dropna())
    when = days[0] if days and days[0] == days[-1] else f"{days[0]} to {days[-1]}" if days else ""
    return " · ".join(
        part for part in (f"{counted(len(runs), 'run')} ({said})", shown, when) if part
    )


_ENVIRONMENT = {
    "host": "host", "cpu_model": "CPU", "gpu_name": "GPU", "torch": "torch",
    "git_commit": "dpeval commit", "model": "model", "dataset_used": "data",
    "image_px": "image side (px)", "loader": "loader", "precision": "precision",
    "memory_format": "memory format", "strategy": "strategy", "threads": "threads per rank",
}  # fmt: skip


@dataclass(frozen=True)
class SeriesTable:
    """Series side by side: one row per field (name, whether series differ, a cell per series)."""

    names: list[str]
    fields: list[tuple[str, bool, list[str]]]


def series(runs: pd.DataFrame, given: Mapping[str, Mapping[str, str]]) -> SeriesTable:
    """Environment of every series; rows that differ come first."""
    groups = list(runs.groupby("series", sort=False, dropna=False))
    names = [f"{index + 1}" for index in range(len(groups))]
    fields = []
    for column, title in _ENVIRONMENT.items():
        if column not in runs:
            continue
        values = [_values(group[column]) for _, group in groups]
        if any(values):
            fields.append((title, len(set(values)) > 1, values))
    more = dict.fromkeys(name for differing in given.values() for name in differing)
    for name in more:
        values = [_text(given.get(str(key), {}).get(name, "")) for key, _ in groups]
        fields.append((_text(name), len(set(values)) > 1, values))
    return SeriesTable(names, sorted(fields, key=lambda item: not item[1]))


def _values(values: pd.Series[Any]) -> str:
    found = [_text(value) for value in values.dropna().unique() if value != ""]
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def warnings(runs: pd.DataFrame) -> list[tuple[str, int, str]]:
    """Each distinct warning: its text, the number of runs that have it, and one of them."""
    said: dict[str, list[str]] = {}
    for path, texts in zip(runs["path"], runs["warnings"], strict=True):
        for text in _lines(texts):
            said.setdefault(text, []).append(_text(path))
    found = [(text, len(paths), paths[0]) for text, paths in said.items()]
    return sorted(found, key=lambda item: -item[1])[:100]


def commands(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """The commands that reproduce the runs: (configuration, command), each command once."""
    found: dict[str, str] = {}
    for run in as_rows(runs.head(MOST_ROWS)):
        name = configuration(run["num_devices"], run["batch"], run["scaling"])
        found.setdefault(str(run["command"])[:2_000], f"{_text(run['study'])}: {name}")
    return [(what, command) for command, what in found.items() if command]
