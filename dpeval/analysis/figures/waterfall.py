"""The efficiency waterfall: from ideal to measured, one named factor at a time."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from dpeval.analysis.figures import style
from dpeval.analysis.figures.figure_data import Drawing, FigureData
from dpeval.analysis.figures.panels import MOST_PANELS
from dpeval.analysis.frame.configurations import CELL, Family
from dpeval.analysis.frame.labels import cell_name, device_count
from dpeval.errors import UnsupportedError
from dpeval.util.display.plural import counted
from dpeval.util.display.ranges import UNKNOWN, percent, span

_LOSS, _GAIN, _WHOLE = "#d55e00", "#3fb893", "#0b5a8f"


def waterfall(figure_data: FigureData) -> Drawing:
    """Parallel efficiency as a product of factors, for the most devices of each batch.

    Every bar takes the running product from before its factor to after it, so that the bars'
    lengths add up to what is lost (in points of efficiency) and end at the measured efficiency.

    Raises:
        UnsupportedError: no configuration has efficiency factors.
    """
    wanted = _chosen(figure_data)
    if not wanted:
        raise UnsupportedError("no configuration with two or more devices has efficiency factors")
    shown = wanted[:MOST_PANELS]
    columns = min(len(shown), 2)
    rows = math.ceil(len(shown) / columns)
    longest = max(len(factors) for _, _, factors in shown)
    title = "Where the efficiency goes"
    size = (max(6.4, 5.0 * columns), 1.1 + rows * (0.95 + 0.3 * longest))
    figure = style.titled(*size, title, figure_data.words())
    said = []
    for index, (family, cell, factors) in enumerate(shown):
        axes = figure.add_subplot(rows, columns, index + 1)
        _draw(axes, factors, _ends(cell))
        devices = device_count(cell.num_devices, family.hardware)
        name = f"{family.label} · {devices}, {family.batch_name} {cell.batch}"
        axes.set_title(textwrap.fill(name.removeprefix(" · "), 46), fontsize=8.5)
        said.append(_sentence(cell, factors))
    more = len(wanted) - len(shown)
    notes = [
        "Each bar spans the efficiency before and after its factor; the product of the factors is "
        "the measured efficiency. Intervals: 95 %, where known.",
        f"{counted(more, 'more configuration')}: see the tables." if more else "",
    ]
    style.footnotes(figure, notes)
    return Drawing(figure, f"{title}: waterfalls of factors. " + " ".join(said))


def _chosen(figure_data: FigureData) -> list[tuple[Family, Any, pd.DataFrame]]:
    """Of each family and batch, the configuration with the most devices that has factors."""
    found = []
    if figure_data.factors.empty:
        return []
    known = dict(iter(figure_data.factors.groupby(list(CELL), dropna=False)))
    for family in figure_data.families:
        for batch in family.batches:
            for cell in reversed(list(family.measured(batch).itertuples())):
                key = (*family.key.values(), cell.num_devices, cell.batch)
                if cell.num_devices > 1 and key in known:
                    found.append((family, cell, known[key]))
                    break
    return found


def _ends(cell: Any) -> tuple[float, float]:
    """The 95 % interval of a cell's efficiency."""
    return float(cell.efficiency_low), float(cell.efficiency_high)


def _draw(axes: Axes, factors: pd.DataFrame, ends: tuple[float, float]) -> None:
    level, names = 1.0, ["ideal"]
    axes.barh(0, 1.0, color=_WHOLE, height=0.62, zorder=2)
    for row, factor in enumerate(factors.itertuples(), start=1):
        after = level * factor.value
        colour, hatch = (_LOSS, "////") if after <= level else (_GAIN, "xx")
        axes.barh(row, after - level, left=level, color=colour, hatch=hatch, height=0.62,
                  edgecolor="white", linewidth=0.5, zorder=2)  # fmt: skip
        axes.plot([level, level], [row - 0.69, row + 0.31], color=style.MUTED, linewidth=0.7)
        _label(axes, row, _words(factor))
        names.append(textwrap.fill(str(factor.factor), 24))
        level = after
    last = len(names)
    axes.plot([level, level], [last - 0.69, last + 0.31], color=style.MUTED, linewidth=0.7)
    axes.barh(last, level, color=_WHOLE, height=0.62, zorder=2)
    low, high = ends
    reach = [[max(0.0, level - low)], [max(0.0, high - level)]]
    axes.errorbar(level, last, xerr=reach, color=style.INK, elinewidth=1.1, zorder=3)
    right = high if math.isfinite(high) else level
    known = f"{percent(level, 1)} {span(level, low, high, 1, as_percent=True)}"
    _label(axes, last, known, fontweight="bold", fontsize=8.5)
    names.append("measured")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.03 * max(1.0, right))
    axes.set_xticks([0, 0.5, 1.0], ["0", "50 %", "100 %"])
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("parallel efficiency")


def _words(factor: Any) -> str:
    known = span(factor.value, factor.low, factor.high, 3)
    return f"× {factor.value:.3f}" + (f" {known}" if known != UNKNOWN else "")


def _label(axes: Axes, row: int, words: str, **font: Any) -> None:
    """The value of a row, right of the axes: intervals are too long for a place beside a bar."""
    axes.annotate(
        words, (1.0, row), xycoords=("axes fraction", "data"), xytext=(6, 0), va="center",
        textcoords="offset points", annotation_clip=False, **({"fontsize": 8} | font),
    )  # fmt: skip


def _sentence(cell: Any, factors: pd.DataFrame) -> str:
    worst = factors.loc[factors["value"].idxmin()]
    return (
        f"{cell_name(cell)}: {factors['value'].prod():.2f}, "
        f"lowest factor {worst['factor']} {worst['value']:.2f}."
    )
