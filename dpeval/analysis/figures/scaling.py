"""Speedup against the ideal, and parallel efficiency as a heat map."""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import Normalize

from dpeval.analysis.figures import style
from dpeval.analysis.figures.figure_data import Drawing, FigureData
from dpeval.analysis.figures.panels import (
    INTERVAL_NOTE,
    Panel,
    grid,
    left_out,
    name_lines,
    notes_on,
    shade_oversubscribed,
)
from dpeval.analysis.frame.configurations import Family, segments, shortfall
from dpeval.analysis.frame.labels import baseline, device_count
from dpeval.analysis.scaling.speedup import ideal_at, ideal_speedup
from dpeval.errors import UnsupportedError
from dpeval.util.display.plural import inflected
from dpeval.util.display.ranges import UNKNOWN, percent, percents


def speedup(figure_data: FigureData) -> Drawing:
    """Speedup over devices against the ideal, with the fitted law where the data support one."""
    wanted = _with_several_counts(figure_data)
    title = "Speedup against the ideal"
    figure, panels = grid(title, figure_data.words(), wanted, to_scale=True)
    said = [sentence for panel in panels for sentence in _draw_speedup(panel)]
    fitted = [
        law
        for panel in panels
        for batch, colour in zip(panel.batches, style.sequential(len(panel.batches)), strict=True)
        for law in _draw_laws(figure_data, panel, batch, colour)
    ]
    bounded = [batch for panel in panels for batch in panel.batches if _draw_bound(panel, batch)]
    notes = [
        f"{_baselines(wanted)} Dashed: ideal. {INTERVAL_NOTE}",
        "Dotted: upper bound where the batch does not divide evenly among the ranks."
        if bounded
        else "",
        f"Thin line and band: fitted law, 95 % band ({'; '.join(fitted)})." if fitted else "",
        *notes_on([family for family, _ in wanted]),
        left_out(wanted),
    ]
    style.footnotes(figure, notes)
    return Drawing(figure, f"{title}, lines with 95 % intervals. " + " ".join(said[:12]))


def _with_several_counts(figure_data: FigureData) -> list[tuple[Family, list[int]]]:
    wanted = []
    for family in figure_data.families:
        batches = [batch for batch in family.shown_batches if len(family.measured(batch)) > 1]
        if batches:
            wanted.append((family, batches))
    if not wanted:
        raise UnsupportedError("no batch was measured at more than one device count")
    return wanted


def _baselines(wanted: list[tuple[Family, list[int]]]) -> str:
    """What the speedups of these families are relative to."""
    names = {
        baseline(int(row.baseline_devices), str(row.baseline)): None
        for family, batches in wanted
        for batch in batches
        for row in family.measured(batch).head(1).itertuples()
    }
    return f"{inflected(len(names), 'Baseline')}: {'; '.join(names)}."


def _draw_speedup(panel: Panel) -> list[str]:
    axes, family, said = panel.axes, panel.family, []
    shade_oversubscribed(panel)
    places = [panel.x(count) for count in panel.counts]
    axes.plot(places, panel.counts, color=style.MUTED, linestyle=(0, (4, 3)), linewidth=1, zorder=2)
    colours = style.sequential(len(panel.batches))
    for index, batch in enumerate(panel.batches):
        points = family.measured(batch)
        shown = points.assign(
            img_per_s=points["speedup"], low=points["speedup_low"], high=points["speedup_high"]
        ).set_index("num_devices")
        for run in segments(panel.counts, {int(n) for n in shown.index}):
            style.draw_points(
                axes, [panel.beside(n, index) for n in run], shown.loc[run], index, colours[index]
            )
        last = points.iloc[-1]
        at = device_count(last.num_devices)
        said.append(f"{family.batch_name} {batch}: {last.speedup:.2f}× at {at}.")
    ends = [family.measured(batch)["speedup_high"].max() for batch in panel.batches]
    highest = max(map(float, ends))
    axes.set_ylim(0, max(highest * 1.12, min(panel.counts[-1], highest * 1.6) * 1.05))
    axes.set_ylabel("speedup (×)")
    if len(panel.batches) > 1:
        name_lines(panel, {b: float(family.measured(b)["speedup"].iloc[-1]) for b in panel.batches})
    return said


def _draw_bound(panel: Panel, batch: int) -> bool:
    """Draw what a perfect machine would reach; False where that is the ideal."""
    points = panel.family.measured(batch)
    counts = np.arange(points["num_devices"].min(), points["num_devices"].max() + 1)
    scale = float(points["num_devices"].iloc[0] / ideal_speedup(points)[0])
    bound = scale * ideal_at(points, counts.astype(float))
    if np.allclose(bound, counts):
        return False
    colour = style.sequential(len(panel.batches))[panel.batches.index(batch)]
    places = [panel.x(int(count)) for count in counts]
    panel.axes.plot(places, bound, color=colour, linestyle=":", linewidth=1.3, zorder=2.1)
    return True


def _draw_laws(figure_data: FigureData, panel: Panel, batch: int, colour: Any) -> list[str]:
    named = []
    for name, curve in figure_data.laws(panel.family, batch):
        devices = curve["devices"].astype(float)
        x = np.log2(devices) if panel.is_log else devices
        panel.axes.plot(x, curve["speedup"], color=colour, linewidth=0.9, zorder=2.2)
        panel.axes.fill_between(x, curve["low"], curve["high"], color=colour, alpha=0.18, lw=0)
        named.append(f"{panel.family.label} {panel.family.batch_name} {batch}: {name}".strip())
    return named


def efficiency_map(figure_data: FigureData) -> Drawing:
    """Parallel efficiency for devices x batch; cells that were not measured are hatched."""
    wanted = [(family, family.shown_batches) for family, _ in _with_several_counts(figure_data)]
    title = "Parallel efficiency"
    most_counts = max(len(family.device_counts) for family, _ in wanted)
    most_batches = max(len(batches) for _, batches in wanted)
    size = (max(4.6, 1.0 + 0.62 * most_counts), 0.9 + 0.55 * most_batches)
    figure, panels = grid(title, figure_data.words(), wanted, size=size, lanes=False)
    highest = 1.0
    colours = mpl.colormaps["cividis"]
    scale = Normalize(0.0, highest)
    said = []
    for panel in panels:
        said.append(_draw_map(panel, colours, scale))
    bar = figure.colorbar(
        mpl.cm.ScalarMappable(scale, colours), ax=[panel.axes for panel in panels],
        shrink=0.9, aspect=18, pad=0.02, extend="max",
    )  # fmt: skip
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(lambda share, _: percent(share))
    notes = [
        "Efficiency: speedup over the baseline, per device, with its 95 % interval. "
        f"{_baselines(wanted)}",
        "After “of”: upper bound where the batch does not divide evenly among the ranks."
        if any("\nof " in text.get_text() for panel in panels for text in panel.axes.texts)
        else "",
        "Frame: the whole interval lies above 100 % (super-linear, needs an explanation)."
        if any(_super_linear(panel) for panel in panels)
        else "",
        left_out(wanted),
    ]
    style.footnotes(figure, notes)
    return Drawing(figure, f"{title}, a heat map. " + " ".join(said))


def _super_linear(panel: Panel) -> bool:
    """Whether any cell of the map has a frame."""
    points = panel.family.measured()
    return bool((points["efficiency_low"] > 1).any())


def _draw_map(panel: Panel, colours: Any, scale: Normalize) -> str:
    axes, family = panel.axes, panel.family
    lowest = (math.inf, 0, 0)
    for row, batch in enumerate(panel.batches):
        points = family.measured(batch)
        values = points.set_index("num_devices", drop=False) if len(points) else points
        cells = {int(cell.num_devices): cell for cell in family.of_batch(batch).itertuples()}
        for count in panel.counts:
            x, cell = panel.x(count), cells.get(count)
            if cell is None or cell.status != "ok":
                text = "no record" if cell is None else shortfall(cell, narrow=True)
                style.hatched(axes, x - 0.48, row - 0.46, 0.96, 0.92)
                style.label_box(axes, x, row, text, fontsize=6.4)
                continue
            point = values.loc[count]
            _draw_efficiency(panel, (x, row), point, colours(scale(point["efficiency"])))
            lowest = min(lowest, (float(point["efficiency"]), count, batch))
    axes.set_ylim(-0.55, len(panel.batches) - 0.45)
    axes.set_yticks(range(len(panel.batches)), [str(batch) for batch in panel.batches])
    axes.set_ylabel(family.batch_name)
    axes.grid(visible=False)
    if not math.isfinite(lowest[0]):
        return ""
    efficiency, count, batch = lowest
    return f"Lowest: {percent(efficiency)} at {device_count(count)}, {family.batch_name} {batch}."


def _draw_efficiency(
    panel: Panel, at: tuple[float, float], point: pd.Series[Any], colour: Any
) -> None:
    x, y = at
    efficiency, low, high = (
        float(point[name]) for name in ("efficiency", "efficiency_low", "efficiency_high")
    )
    is_beyond = low > 1.0
    panel.axes.add_patch(
        mpl.patches.Rectangle(
            (x - 0.48, y - 0.46), 0.96, 0.92, facecolor=colour, zorder=2,
            edgecolor="#d55e00" if is_beyond else "white", linewidth=2.2 if is_beyond else 0.5,
        )
    )  # fmt: skip
    dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 0.55
    is_base = point["num_devices"] == point["baseline_devices"]
    is_known = math.isfinite(low) and math.isfinite(high)
    interval = f"({percents(low, high)})" if is_known else UNKNOWN
    text = f"{percent(efficiency)}\n{'baseline' if is_base else interval}"
    bound = point["speedup_bound"] / point["num_devices"]
    if bound < 0.995:
        text += f"\nof {percent(bound)}"
    panel.axes.text(
        x, y, text, ha="center", va="center", fontsize=8, linespacing=0.95, zorder=3,
        color="white" if dark else style.INK,
    )  # fmt: skip
