"""Interactive charts of a report, as plain Plotly specifications for JSON.

The page sets the colours, to suit its light or dark theme: ``meta`` of a trace names its phase or
its place in an ordered sequence. All text from records is escaped, because Plotly interprets some
HTML in hover texts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from dpeval.analysis.figures.figure_data import FigureData
from dpeval.analysis.figures.memory import rank_batch
from dpeval.analysis.frame.configurations import Family, device_word, shortfall
from dpeval.analysis.frame.labels import device_count
from dpeval.record.phases import PHASE_WORDS, PHASES
from dpeval.util.display.plural import counted
from dpeval.util.display.ranges import number, percent, span
from dpeval.util.display.units import GIB

MOST_FAMILIES = 12
_MOST_PATHS = 3
_MOST_LABELLED = 6
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x")
_DASHES = ("solid", "dash", "dot", "dashdot")

Json = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """One interactive chart."""

    key: str
    title: str
    summary: str
    """The text alternative, for screen readers."""
    spec: Json
    """``data`` and ``layout`` of Plotly."""


@dataclass(frozen=True)
class Group:
    """The charts of one family of configurations."""

    label: str
    charts: list[Chart]


def groups(figure_data: FigureData) -> list[Group]:
    """The charts of each measured family, at most :data:`MOST_FAMILIES`."""
    found = []
    for family in figure_data.families[:MOST_FAMILIES]:
        if family.measured().empty:
            continue
        runs = _runs_of(figure_data, family)
        charts = [_throughput(family, runs), _components(family, runs)]
        if any(len(family.measured(batch)) > 1 for batch in family.shown_batches):
            charts.insert(1, _efficiency(family, runs))
        if family.cells["peak_bytes"].notna().any():
            charts.append(_memory(family, runs))
        found.append(Group(family.label or figure_data.words() or "all runs", charts))
    return found


Runs = dict[tuple[int, int], list[str]]
"""Paths of the records of one (num_devices, batch)."""


def _runs_of(figure_data: FigureData, family: Family) -> Runs:
    runs = figure_data.runs
    for column, value in family.key.items():
        same = runs[column] == value
        runs = runs[same if pd.notna(value) else runs[column].isna()]
    return {
        (int(devices), int(batch)): [str(path) for path in group["path"]]
        for (devices, batch), group in runs.groupby(["num_devices", "batch"])
    }


def _where(runs: Runs, cell: Any) -> str:
    """The records of a cell, for a hover text."""
    paths = runs.get((int(cell.num_devices), int(cell.batch)), [])
    shown = [escape(path[-90:]) for path in paths[:_MOST_PATHS]]
    more = len(paths) - len(shown)
    return "<br>".join([*shown, *([f"… and {more} more"] if more > 0 else [])])


def _marks(cell: Any) -> str:
    marks = []
    if not cell.steady:
        marks.append("no steady state")
    if cell.oversubscribed:
        marks.append("oversubscribed")
    if not cell.settled:
        marks.append("not settled: a limit ended it before it was as precise as asked")
    if cell.stand_in:
        marks.append("stand-in data")
    if cell.bad:
        marks.append(escape(str(cell.bad)[:160]))
    return f"<br><b>{'; '.join(marks)}</b>" if marks else ""


def _head(family: Family, cell: Any) -> str:
    return f"<b>{device_count(cell.num_devices)}, {family.batch_name} {cell.batch}</b>"


def _throughput(family: Family, runs: Runs) -> Chart:
    traces = []
    for index, batch in enumerate(family.shown_batches):
        cells = list(family.measured(batch).itertuples())
        hover = [
            f"{_head(family, cell)}<br>{number(cell.img_per_s)} {escape(family.unit)}/s<br>"
            f"95 % interval {number(cell.low)} to {number(cell.high)} {escape(family.unit)}/s, "
            f"{counted(cell.n_runs, 'run')}"
            f"{_marks(cell)}<br>{_where(runs, cell)}"
            for cell in cells
        ]
        values = [(cell.img_per_s, cell.low, cell.high) for cell in cells]
        traces += _lines(family, batch, index, cells, values, hover)
    layout = _layout(family, f"throughput ({escape(family.unit)}/s)")
    _add_absent(family, runs, traces, layout)
    summary = _best_words(family)
    return Chart("throughput", "Throughput", summary, {"data": traces, "layout": layout})


def _efficiency(family: Family, runs: Runs) -> Chart:
    traces = []
    for index, batch in enumerate(family.shown_batches):
        cells = list(family.measured(batch).itertuples())
        shares = [(c.efficiency, c.efficiency_low, c.efficiency_high) for c in cells]
        hover = [
            f"{_head(family, cell)}<br>"
            f"efficiency {percent(share[0], 1)} {span(*share, 1, as_percent=True)}<br>"
            f"speedup {cell.speedup:.2f}×"
            f"{_marks(cell)}<br>{_where(runs, cell)}"
            for cell, share in zip(cells, shares, strict=True)
        ]
        values = [(100 * value, 100 * low, 100 * high) for value, low, high in shares]
        traces += _lines(family, batch, index, cells, values, hover)
    layout = _layout(family, "parallel efficiency")
    ideal = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 100, "y1": 100,
             "line": {"dash": "dash", "width": 1, "color": "#888888"}}  # fmt: skip
    layout["shapes"] = [ideal]
    layout["yaxis"]["ticksuffix"] = " %"
    _add_absent(family, runs, traces, layout)
    summary = "Efficiency per device count, one line per batch; 100 % is ideal."
    return Chart("efficiency", "Parallel efficiency", summary, {"data": traces, "layout": layout})


def _lines(
    family: Family,
    batch: int,
    index: int,
    cells: list[Any],
    values: list[tuple[float, float, float]],
    hover: list[str],
) -> list[Json]:
    """The line of one batch, broken (None) where a device count was not measured."""
    at = {int(cell.num_devices): place for place, cell in enumerate(cells)}
    places = [at.get(count) for count in family.device_counts]
    symbol = _SYMBOLS[index % len(_SYMBOLS)]

    def spread(pick: Any) -> list[Any]:
        return [None if place is None else pick(place) for place in places]

    return [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": f"batch {batch}",
            "x": family.device_counts,
            "y": spread(lambda i: values[i][0]),
            "error_y": {
                "type": "data",
                "symmetric": False,
                "array": spread(lambda i: max(0.0, values[i][2] - values[i][0])),
                "arrayminus": spread(lambda i: max(0.0, values[i][0] - values[i][1])),
                "thickness": 1.3,
                "width": 4,
            },
            "text": spread(lambda i: hover[i]),
            "hovertemplate": "%{text}<extra></extra>",
            "connectgaps": False,
            "line": {"dash": _DASHES[index % len(_DASHES)], "width": 2},
            "marker": {
                "size": 9,
                "symbol": [
                    symbol if place is None or cells[place].steady else f"{symbol}-open"
                    for place in places
                ],
            },
            "meta": {"place": index, "of": len(family.shown_batches)},
        }
    ]


def _layout(family: Family, y: str) -> Json:
    counts = family.device_counts
    return {
        "xaxis": {
            "title": {"text": device_word(family.hardware)},
            "tickvals": counts,
            "ticktext": [str(count) for count in counts],
            "type": "log" if len(counts) >= 5 or counts[-1] > 16 else "linear",
        },
        "yaxis": {"title": {"text": y}, "rangemode": "tozero"},
        "hovermode": "closest",
    }


def _add_absent(family: Family, runs: Runs, traces: list[Json], layout: Json) -> None:
    """Add a hatched strip below the plot for configurations requested but not measured."""
    wanted = family.cells["batch"].isin(family.shown_batches)
    absent = list(family.cells[wanted & (family.cells["status"] != "ok")].itertuples())
    if not absent:
        return
    names = [f"batch {batch}" for batch in sorted({int(cell.batch) for cell in absent})]
    height = min(0.32, 0.08 * len(names))
    layout["yaxis"]["domain"] = [height + 0.04, 1]
    layout["yaxis2"] = {"domain": [0, height], "range": [0, len(names)], "showgrid": False,
                        "tickvals": [i + 0.5 for i in range(len(names))], "ticktext": names,
                        "zeroline": False, "fixedrange": True}  # fmt: skip
    layout["xaxis"]["anchor"] = "y2"
    if len(family.device_counts) <= _MOST_LABELLED:
        layout["annotations"] = [
            {"yref": "y2", "x": int(cell.num_devices), "text": escape(_short(cell)),
             "y": names.index(f"batch {cell.batch}") + 0.5, "showarrow": False}
            for cell in absent
        ]  # fmt: skip
    traces.append(
        {
            "type": "bar",
            "name": "not measured",
            "yaxis": "y2",
            "x": [int(cell.num_devices) for cell in absent],
            "base": [names.index(f"batch {cell.batch}") + 0.1 for cell in absent],
            "y": [0.8] * len(absent),
            "width": 0.8,
            "text": [
                f"{_head(family, cell)}<br>{escape(shortfall(cell))}<br>{_where(runs, cell)}"
                for cell in absent
            ],
            "textposition": "none",
            "hovertemplate": "%{text}<extra></extra>",
            "meta": {"absent": True},
            "marker": {"pattern": {"shape": "/", "size": 6}},
        }
    )


def _short(cell: Any) -> str:
    need, have = cell.need_bytes, cell.have_bytes
    if cell.status in ("oom", "skipped") and pd.notna(need) and pd.notna(have) and need > have:
        return f"{need / GIB:.1f} of {have / GIB:.1f} GiB"
    return str(cell.status)


def _components(family: Family, runs: Runs) -> Chart:
    ok = family.measured()
    ok = ok[ok["batch"].isin(family.shown_batches)].sort_values(["batch", "num_devices"])
    cells = list(ok.itertuples())
    axis: list[list[str]] = [
        [f"batch {cell.batch}" for cell in cells],
        [str(cell.num_devices) for cell in cells],
    ]
    traces: list[Json] = []
    for phase in PHASES:
        values = [getattr(cell, f"{phase}_s") for cell in cells]
        values = [0.0 if pd.isna(value) else value for value in values]
        if not any(values):
            continue
        hover = [
            f"{_head(family, cell)}<br>{PHASE_WORDS[phase]}: {value * 1e3:.4g} ms, "
            f"{percent(value / cell.step_s, 1)} of the step{_marks(cell)}<br>{_where(runs, cell)}"
            for cell, value in zip(cells, values, strict=True)
        ]
        traces.append(
            {
                "type": "bar",
                "name": PHASE_WORDS[phase],
                "x": axis,
                "y": [value * 1e3 for value in values],
                "text": hover,
                "textposition": "none",
                "hovertemplate": "%{text}<extra></extra>",
                "meta": {"phase": phase},
                "marker": {"pattern": {"shape": "/" if phase == "comm_exposed" else ""}},
            }
        )
    if traces:
        traces[-1]["error_y"] = {
            "type": "data", "symmetric": False, "thickness": 1.3, "width": 4,
            "array": [max(0.0, cell.step_high_s - cell.step_s) * 1e3 for cell in cells],
            "arrayminus": [max(0.0, cell.step_s - cell.step_low_s) * 1e3 for cell in cells],
        }  # fmt: skip
    layout = {
        "barmode": "stack",
        "xaxis": {"title": {"text": device_word(family.hardware)}, "type": "multicategory"},
        "yaxis": {"title": {"text": "time per step (ms)"}},
        # Plotly's default margin has no room for a title below two rows of labels.
        "margin": {"b": 72},
        "hovermode": "closest",
    }
    summary = "Stacked bars: mean time of each phase, by batch and device count."
    return Chart("components", "Where the time goes", summary, {"data": traces, "layout": layout})


def _memory(family: Family, runs: Runs) -> Chart:
    cells = family.cells.assign(rank_batch=rank_batch(family.cells)).sort_values("rank_batch")
    measured = list(cells[cells["peak_bytes"].notna()].itertuples())
    forecast = list(cells.dropna(subset=["need_bytes"]).itertuples())
    unfit = [cell for cell in forecast if cell.status in ("oom", "skipped")]
    kinds = (
        ("measured peak", measured, "peak_bytes", {"symbol": "circle", "size": 9}),
        ("forecast", forecast, "need_bytes", {"symbol": "line-ew-open", "size": 12}),
        ("did not fit", unfit, "need_bytes", {"symbol": "x-open", "size": 13}),
    )
    traces = [
        _dots(name, chosen, column, family, runs, marker)
        for name, chosen, column, marker in kinds
        if chosen
    ]
    layout: Json = {
        "xaxis": {
            "title": {"text": "largest per-device batch (images)"},
            "rangemode": "tozero",
        },
        "yaxis": {"title": {"text": "memory (GiB)"}, "rangemode": "tozero"},
        "hovermode": "closest",
    }
    budget = cells["have_bytes"].min()
    if pd.notna(budget):
        line = {"color": "#d55e00", "width": 2}
        layout["shapes"] = [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "line": line,
                             "y0": budget / GIB, "y1": budget / GIB}]  # fmt: skip
        layout["annotations"] = [{"xref": "paper", "x": 0, "y": budget / GIB, "showarrow": False,
                                  "text": f"budget {budget / GIB:.1f} GiB", "yanchor": "bottom",
                                  "xanchor": "left"}]  # fmt: skip
    summary = "Highest peak memory of any rank by its batch, with forecast and budget."
    return Chart("memory", "Memory", summary, {"data": traces, "layout": layout})


def _dots(
    name: str, cells: list[Any], column: str, family: Family, runs: Runs, marker: Json
) -> Json:
    values = [getattr(cell, column) / GIB for cell in cells]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [cell.rank_batch for cell in cells],
        "y": values,
        "text": [
            f"{_head(family, cell)}<br>{name}: {value:.2f} GiB<br>{_where(runs, cell)}"
            for cell, value in zip(cells, values, strict=True)
        ],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": marker,
        "meta": {"memory": name},
    }


def finite(value: Any) -> Any:
    """`value` with NaN and infinities replaced by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def _best_words(family: Family) -> str:
    ok = family.measured()
    best = ok.loc[ok["img_per_s"].idxmax()]
    return (
        f"Highest: {number(best.img_per_s)} {family.unit}/s (95 % interval "
        f"{number(best.low)} to {number(best.high)}) at "
        f"{device_count(best.num_devices)}, {family.batch_name} {best.batch}."
    )
