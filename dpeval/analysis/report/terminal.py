"""Tables of the analysis for the terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dpeval.analysis.advice.advise import Advice
from dpeval.analysis.frame.as_rows import as_rows
from dpeval.analysis.frame.labels import baseline, device_count, marks
from dpeval.analysis.scaling.compare import Change
from dpeval.analysis.scaling.findings import Findings
from dpeval.util.display.plural import counted
from dpeval.util.display.ranges import percent, span
from dpeval.util.display.tables import is_compact, make_table
from dpeval.util.display.units import GIB

MOST_SERIES = 12
MOST_ROWS = 100
MOST_ADVISED = 4
MOST_DOUBTS = 3
_HEADINGS = (
    "devices", "batch", "img/s", "95 %", "speedup", "efficiency", "exposed comm.", "runs",
    "notes",
)  # fmt: skip
_LEFT_OUT = ("95 %", "exposed comm.", "runs")
"""Headings that a compact table leaves out; intervals stand below their values there."""


def end_of_sweep(
    findings: Findings, advice: Sequence[Advice], doubts: Sequence[str]
) -> Iterator[Table | Text | str]:
    """The recommendation, the table, and the first doubts.

    Args:
        findings: the results.
        advice: what follows from them.
        doubts: what makes results less trustworthy, the most important first.
    """
    for one in advice[:MOST_ADVISED]:
        yield from _recommendation(one)
    yield from tables(findings)
    for doubt in doubts[:MOST_DOUBTS]:
        yield Text(f"doubt: {doubt}", style="yellow")
    more = len(doubts) - MOST_DOUBTS
    if more > 0:
        yield Text(f"{counted(more, 'more doubt')}: see the report", style="yellow")


def _recommendation(advice: Advice) -> Iterator[Text]:
    said = advice.recommendation
    label = f"{advice.label}: " * bool(advice.label)
    yield Text(f"{label}{said.headline}", style="bold")
    for line in (said.within_error, said.settle):
        if line:
            yield Text(line)
    if said.settle_command:
        yield Text(f"  {said.settle_command}", style="cyan")


def tables(findings: Findings) -> Iterator[Table | str]:
    """One table per series; says what was omitted."""
    groups = list(findings.summary.groupby("series", sort=False))
    standing = _standing(findings)
    for name, group in groups[:MOST_SERIES]:
        yield configurations(group, str(name), standing)
    if len(groups) > MOST_SERIES:
        more = len(groups) - MOST_SERIES
        yield f"{more} more series: see summary.csv"


def _standing(findings: Findings) -> dict[tuple[Any, ...], str]:
    """Notes on configurations that are or could be the best, by their key."""
    said: dict[tuple[Any, ...], str] = {}
    for one in findings.chosen:
        for able in (one.best, *one.ties) if one.best is not None else ():
            within = f", within {percent(able.behind)}" if math.isfinite(able.behind) else ""
            words = f"could be best{within}" if one.ties else "best"
            said[(*one.key.values(), able.batch, able.num_devices)] = words
    return said


def configurations(
    summary: pd.DataFrame, series: str, standing: Mapping[tuple[Any, ...], str]
) -> Table:
    """A table with one row per configuration of a series.

    Args:
        summary: rows of :attr:`~dpeval.analysis.scaling.findings.Findings.summary`.
        series: heading of the table.
        standing: notes on rows, by (series, hardware, scaling, batch, num_devices).
    """
    rate = f"{escape(str(summary['unit'].iloc[0]))}/s"
    is_small = is_compact()
    shown = [name for name in _HEADINGS[:-1] if not (is_small and name in _LEFT_OUT)]
    headings = [rate if name == "img/s" else name for name in shown]
    made = make_table(escape(series), dict.fromkeys(headings, "right"))
    made.add_column("notes")
    order = ["hardware", "scaling", "batch", "num_devices"]
    rows = summary.sort_values(order)
    for row in as_rows(rows.head(MOST_ROWS)):
        key = tuple(row[name] for name in ("series", "hardware", "scaling", "batch", "num_devices"))
        cells = _cells({str(k): v for k, v in row.items()}, standing.get(key, ""))
        made.add_row(*(_compact(cells) if is_small else cells))
    for column in made.columns[:-1] if is_small else []:
        column.no_wrap = True
    if len(rows) > MOST_ROWS:
        made.caption = f"{counted(len(rows) - MOST_ROWS, 'more row')}: see summary.csv"
    return made


def _compact(cells: list[str]) -> list[str]:
    """The cells of a row, the interval below its value, without those of :data:`_LEFT_OUT`."""
    kept = dict(zip(_HEADINGS, cells, strict=True))
    if kept["95 %"] != "–":
        kept["img/s"] += f"\n{kept['95 %']}"
    kept["devices"] = kept["devices"].partition(" ")[0]
    return [cell for name, cell in kept.items() if name not in _LEFT_OUT]


def _cells(row: dict[str, Any], standing: str) -> list[str]:
    devices = device_count(row["num_devices"], row["hardware"])
    batch = f"{row['batch']}{' each' * (row['scaling'] == 'weak')}"
    if row["status"] != "ok":
        kind = row["cause_kind"]
        reason = f"{row['status']} ({kind})" if kind not in ("", row["status"]) else row["status"]
        return [devices, batch, escape(reason), *["–"] * 4, str(row["runs"]), escape(_need(row))]
    exposed = row["comm_exposed_s"] / row["step_s"]
    return [
        devices,
        batch,
        f"{row['img_per_s']:.2f}",
        span(row["img_per_s"], row["low"], row["high"], 2),
        _shown(row["speedup"], ".2f") if row["baseline_devices"] == 1 else "–",
        percent(row["efficiency"]) if row["baseline_devices"] == 1 else "–",
        percent(max(0.0, exposed), 1) if pd.notna(exposed) else "not measured",
        f"{row['n_runs']}/{row['runs']}",
        _notes(row, standing),
    ]


def _shown(value: float, form: str) -> str:
    return "–" if pd.isna(value) else format(max(0.0, value), form)


def _need(row: dict[str, Any]) -> str:
    need, have = row["forecast_bytes"], row["budget_bytes"]
    if row["status"] in ("oom", "skipped") and pd.notna(need) and pd.notna(have) and need > have:
        return f"needs {need / GIB:.1f} GiB, has {have / GIB:.1f} GiB"
    return textwrap.shorten(str(row["cause"]), 60, placeholder=" …")


def _notes(row: dict[str, Any], standing: str) -> str:
    is_base = row["num_devices"] == row["baseline_devices"]
    parts = [
        standing,
        f"baseline: {baseline(int(row['num_devices']), row['strategy'])}" * is_base,
        *marks(row),
        "super-linear" * bool(row["efficiency_low"] > 1),
        f"{row['micro_batches']:.0f} micro-batches" * bool(row["micro_batches"] > 1),
        ("one step" if row["n_runs"] == 1 else "median") * (row["centre"] == "median"),
    ]
    return ", ".join(word for word in parts if word)


def changes(found: Sequence[Change]) -> Table:
    """One row per configuration of two sweeps."""
    names = ("devices", "batch", "before img/s", "after img/s", "ratio", "95 %", "p (Holm)", "runs")
    made = make_table("after vs. before", dict.fromkeys(names, "right"))
    made.add_column("")
    several = len({one.key["model"] for one in found}) > 1
    for one in found[:MOST_ROWS]:
        count = int(one.key["num_devices"])
        word = "slower" if one.ratio < 1 else "faster"
        parts = [
            escape(str(one.key["model"])) * several,
            escape(one.name),
            word * one.is_different,
            "beyond the limit" * (one.is_slower and not one.is_lost),
            escape(one.note),
        ]
        made.add_row(
            device_count(count, one.key["hardware"]),
            f"{one.key['batch']}{' each' * (one.key['scaling'] == 'weak')}",
            _shown(one.before, ".2f"), _shown(one.after, ".2f"), _shown(one.ratio, ".3f"),
            f"{one.low:.3f} to {one.high:.3f}" if pd.notna(one.low) else "–",
            _shown(one.p_adjusted, ".2g"), f"{one.runs[0]}, {one.runs[1]}",
            ", ".join(part for part in parts if part),
        )  # fmt: skip
    if len(found) > MOST_ROWS:
        made.caption = f"{counted(len(found) - MOST_ROWS, 'more row')}: see comparison.csv"
    return made
