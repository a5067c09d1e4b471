"""Peak memory of a rank against its batch, with the forecast and the budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from dpeval.analysis.figures import style
from dpeval.analysis.figures.figure_data import Drawing, FigureData
from dpeval.analysis.figures.panels import Panel, grid, left_out
from dpeval.analysis.frame.configurations import Family
from dpeval.analysis.frame.labels import cell_name
from dpeval.errors import UnsupportedError
from dpeval.util.display.units import GIB

_PEAK, _FORECAST, _BUDGET = "#0b5a8f", "#5c5c5c", "#d55e00"


def memory(figure_data: FigureData) -> Drawing:
    """Measured peak (marker) and forecast (line) over the fullest rank's batch; budget above.

    Raises:
        UnsupportedError: no record holds a forecast or a measured peak.
    """
    wanted = [
        (family, family.batches)
        for family in figure_data.families
        if family.cells[["peak_bytes", "need_bytes"]].notna().any(axis=None)
    ]
    if not wanted:
        raise UnsupportedError("no record holds a memory forecast or a measured peak")
    title = "Memory of the fullest rank"
    figure, panels = grid(title, figure_data.words(), wanted, size=(4.4, 3.0), lanes=False)
    said = [_draw(panel) for panel in panels]
    figure.legend(handles=_handles([family for family, _ in wanted]), loc="outside right center")
    notes = ["Measured: highest peak over runs; whiskers span the runs.", left_out(wanted)]
    style.footnotes(figure, notes)
    return Drawing(figure, f"{title}: measured peak, forecast and budget. " + " ".join(said))


def rank_batch(cells: pd.DataFrame) -> Any:
    """Batch of the rank that has most: the global batch dealt as evenly as possible."""
    return np.ceil(cells["global_batch"].astype(float) / cells["num_devices"].astype(float))


def _draw(panel: Panel) -> str:
    axes, family = panel.axes, panel.family
    cells = family.cells.assign(rank_batch=rank_batch(family.cells)).sort_values("rank_batch")
    axes.set_xticks([])
    axes.set_xlim(auto=True)
    _draw_forecast(panel, cells)
    measured = cells[(cells["status"] == "ok") & cells["peak_bytes"].notna()]
    low = (measured["peak_bytes"] - measured["peak_low_bytes"]) / GIB
    axes.errorbar(
        measured["rank_batch"], measured["peak_bytes"] / GIB, yerr=[low, 0 * low],
        fmt="o", color=_PEAK, elinewidth=1.1, zorder=3,
    )  # fmt: skip
    _draw_absent(panel, cells[cells["status"].isin(["oom", "skipped"])])
    budgets = sorted(set(cells["have_bytes"].dropna()))
    for budget in budgets[:1]:
        axes.axhline(budget / GIB, color=_BUDGET, linewidth=1.4, zorder=2)
        axes.annotate(
            f"budget {budget / GIB:.1f} GiB", (0.01, budget / GIB), xytext=(0, 3),
            xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=7.5,
        )  # fmt: skip
    ticks = sorted({int(batch) for batch in cells["rank_batch"]})
    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("per-device batch of the fullest rank")
    axes.set_ylabel("memory (GiB)")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.08, y=0.12)
    return _sentence(family, measured, budgets)


def _draw_forecast(panel: Panel, cells: pd.DataFrame) -> None:
    known = cells.dropna(subset=["need_bytes"]).groupby("rank_batch")["need_bytes"].max()
    panel.axes.plot(
        known.index, known / GIB, color=_FORECAST, linestyle=(0, (5, 2)), linewidth=1.2,
        marker="_", markersize=8, zorder=2.5,
    )  # fmt: skip


def _draw_absent(panel: Panel, absent: pd.DataFrame) -> None:
    """A hollow cross at the forecast of a cell that did not fit, with what it needs."""
    for cell in absent.dropna(subset=["need_bytes"]).itertuples():
        panel.axes.plot(
            cell.rank_batch, cell.need_bytes / GIB, marker="X", markersize=10, linestyle="none",
            markerfacecolor="white", markeredgecolor=_BUDGET, markeredgewidth=1.4, zorder=3.2,
        )  # fmt: skip
        word = {"oom": "out of memory"}.get(str(cell.status), str(cell.status))
        have = f" of {cell.have_bytes / GIB:.1f}" if pd.notna(cell.have_bytes) else ""
        where = cell_name(cell)
        point = (cell.rank_batch, cell.need_bytes / GIB)
        to_axes = panel.axes.transData + panel.axes.transAxes.inverted()
        is_left = to_axes.transform(point)[0] < 0.5
        panel.axes.annotate(
            f"{word}: {cell.need_bytes / GIB:.1f}{have} GiB\n{where}",
            point, xytext=(9 if is_left else -9, 0), ha="left" if is_left else "right",
            va="center", textcoords="offset points", fontsize=7,
        )  # fmt: skip


def _handles(families: Sequence[Family]) -> list[Line2D]:
    """The key of what is in the figure, and of nothing else."""
    cells = pd.concat([family.cells for family in families])
    is_absent = cells["status"].isin(["oom", "skipped"]) & cells["need_bytes"].notna()
    is_there = (
        (cells["status"].eq("ok") & cells["peak_bytes"].notna()).any(),
        cells["need_bytes"].notna().any(),
        cells["have_bytes"].notna().any(),
        is_absent.any(),
    )
    handles = [
        Line2D([], [], marker="o", linestyle="none", color=_PEAK, label="measured peak"),
        Line2D([], [], color=_FORECAST, linestyle=(0, (5, 2)), marker="_", label="forecast"),
        Line2D([], [], color=_BUDGET, label="budget of one rank"),
        Line2D([], [], marker="X", linestyle="none", markerfacecolor="white", markersize=9,
               markeredgecolor=_BUDGET, label="did not fit (forecast)"),
    ]  # fmt: skip
    return [one for one, there in zip(handles, is_there, strict=True) if there]


def _sentence(family: Family, measured: pd.DataFrame, budgets: list[float]) -> str:
    words = [family.label] if family.label else []
    if len(measured):
        top = measured.loc[measured["peak_bytes"].idxmax()]
        words.append(f"highest peak {top.peak_bytes / GIB:.1f} GiB at {top.rank_batch:.0f} images")
    if budgets:
        words.append(f"budget {budgets[0] / GIB:.1f} GiB")
    return ", ".join(words) + "."
