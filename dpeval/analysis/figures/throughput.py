"""Throughput over devices, and the best device count of each batch."""

from __future__ import annotations

from typing import Any

from dpeval.analysis.figures import style
from dpeval.analysis.figures.figure_data import Drawing, FigureData
from dpeval.analysis.figures.panels import (
    INTERVAL_NOTE,
    Panel,
    grid,
    left_out,
    mark_bad,
    name_lines,
    notes_on,
    ring_unsettled,
    shade_oversubscribed,
)
from dpeval.analysis.frame.configurations import Family, segments, shortfall
from dpeval.analysis.frame.labels import device_count
from dpeval.errors import UnsupportedError
from dpeval.util.display.plural import counted
from dpeval.util.display.ranges import number, with_span

_MOST_ABOVE = 1.4
"""The axis ends so far above the highest value, if an interval goes on."""


def over_cores(figure_data: FigureData) -> Drawing:
    """Throughput over CPU devices, one line per batch."""
    return _over_devices(figure_data, "cpu", "Throughput over CPU devices")


def over_gpus(figure_data: FigureData) -> Drawing:
    """Throughput over GPUs, one line per batch."""
    return _over_devices(figure_data, "gpu", "Throughput over GPUs, by batch")


def _over_devices(figure_data: FigureData, hardware: str, title: str) -> Drawing:
    chosen = [family for family in figure_data.families if family.hardware == hardware]
    if not any(len(family.measured()) for family in chosen):
        raise UnsupportedError(f"no run on hardware={hardware} was measured")
    wanted = [(family, family.shown_batches) for family in chosen if len(family.measured())]
    figure, panels = grid(title, figure_data.words(hardware), wanted, to_scale=True)
    cuts = [draw_lines(panel) for panel in panels]
    rings = [ring_unsettled(panel) for panel in panels]
    single = any((family.measured()["n_runs"] == 1).any() for family in chosen)
    own = " That of a single run excludes the spread between runs." * single
    cut = "Arrowhead: the interval extends beyond the axis." * any(cuts)
    ring = "Ring: a limit ended the run before it was as precise as requested." * any(rings)
    notes = [f"{INTERVAL_NOTE}{own}", cut, ring, *notes_on(chosen), left_out(wanted)]
    style.footnotes(figure, notes)
    return Drawing(figure, _alt(title, chosen))


def draw_lines(panel: Panel) -> bool:
    """One line with error bars per batch; no line passes over a point that is absent.

    Returns whether an interval goes beyond the axis.
    """
    axes, family = panel.axes, panel.family
    shade_oversubscribed(panel)
    colours = style.sequential(len(panel.batches))
    for index, batch in enumerate(panel.batches):
        points = family.measured(batch).set_index("num_devices")
        for run in segments(panel.counts, {int(n) for n in points.index}):
            part = points.loc[run]
            x = [panel.beside(n, index) for n in run]
            style.draw_points(axes, x, part, index, colours[index])
    axes.set_ylabel(f"throughput ({family.unit}/s)")
    is_cut = _limit(panel)
    if len(panel.batches) > 1 or family.scaling == "weak":
        ok = family.measured()
        ends = {b: float(ok[ok["batch"] == b]["img_per_s"].iloc[-1])
                for b in panel.batches if (ok["batch"] == b).any()}  # fmt: skip
        name_lines(panel, ends)
    mark_bad(panel)
    return is_cut


def _limit(panel: Panel) -> bool:
    """Let the axis follow the values, not an interval far beyond them; mark what is cut."""
    ok = panel.family.measured()
    ok = ok[ok["batch"].isin(panel.batches)]
    most = float(ok["img_per_s"].max())
    top = 1.12 * min(float(ok["high"].fillna(ok["img_per_s"]).max()), _MOST_ABOVE * most)
    panel.axes.set_ylim(0, top)
    cut = ok[ok["high"] > top]
    for cell in cut.itertuples():
        at = panel.beside(int(cell.num_devices), panel.batches.index(int(cell.batch)))
        panel.axes.plot(at, top, marker="^", color=style.INK, markersize=5, clip_on=False)
    return len(cut) > 0


def _alt(title: str, chosen: list[Family]) -> str:
    lines = []
    for family in chosen[:3]:
        ok = family.measured()
        best = ok.loc[ok["img_per_s"].idxmax()] if len(ok) else None
        if best is not None:
            lines.append(
                f"{family.label or 'all runs'}: highest {number(best.img_per_s)} {family.unit}/s "
                f"at {device_count(best.num_devices)}, {family.batch_name} {best.batch}"
            )
    return f"{title}, lines with 95 % intervals. " + "; ".join(lines) + "."


def best_devices(figure_data: FigureData) -> Drawing:
    """For each batch, the device count with the highest throughput; ties are called ties.

    Raises:
        UnsupportedError: no study measured several device counts.
    """
    wanted = [
        (family, family.shown_batches)
        for family in figure_data.families
        if len(family.measured()) and len(family.device_counts) > 1
    ]
    if not wanted:
        raise UnsupportedError("no study measured more than one device count")
    title = "Best device count of each batch"
    most_counts = max(len(family.device_counts) for family, _ in wanted)
    most_batches = max(len(batches) for _, batches in wanted)
    size = (max(4.4, 1.0 + 0.62 * most_counts), 0.8 + 0.5 * most_batches)
    figure, panels = grid(title, figure_data.words(), wanted, size=size, lanes=False)
    said = [sentence for panel in panels for sentence in _draw_best(panel)]
    units = dict.fromkeys(f"{family.unit}/s" for family, _ in wanted)
    notes = [
        f"Numbers: throughput with its 95 % interval, {', '.join(units)}.",
        "Filled: highest mean. Outlined: could also be the best of its batch (95 % confidence).",
        left_out(wanted),
    ]
    style.footnotes(figure, notes)
    return Drawing(figure, f"{title}. " + " ".join(said[:12]))


def _draw_best(panel: Panel) -> list[str]:
    axes, family, said = panel.axes, panel.family, []
    for row, batch in enumerate(panel.batches):
        points = family.measured(batch)
        best = points.loc[points["speedup"].idxmax()] if len(points) else None
        able = set(points.loc[points["could_be_fastest"].eq(True), "num_devices"])
        for cell in family.of_batch(batch).itertuples():
            at = panel.x(int(cell.num_devices))
            if cell.status != "ok" or best is None:
                style.hatched(axes, at - 0.45, row - 0.4, 0.9, 0.8)
                style.label_box(axes, at, row, shortfall(cell, narrow=True), fontsize=6.6)
                continue
            is_best = cell.num_devices == best.num_devices
            _draw_choice(panel, at, row, cell, is_best, cell.num_devices in able)
        if best is not None:
            more = counted(len(able) - 1, "other")
            said.append(
                f"Batch {batch}: {device_count(best.num_devices)}, "
                f"{number(best.img_per_s)} {family.unit}/s"
                f"{f' ({more} could be the best, too)' * (len(able) > 1)}."
            )
    axes.set_ylim(-0.6, len(panel.batches) - 0.4)
    axes.set_yticks(range(len(panel.batches)), [str(batch) for batch in panel.batches])
    axes.set_ylabel(family.batch_name)
    axes.grid(visible=False)
    return said


def _draw_choice(panel: Panel, x: float, y: int, cell: Any, best: bool, tie: bool) -> None:
    rate = with_span(cell.img_per_s, cell.low, cell.high).replace(" ", "\n", 1)
    weight = "bold" if best else "normal"
    if best or tie:
        box = {"boxstyle": "round,pad=0.25", "linewidth": 1.3, "edgecolor": "#0b5a8f",
               "facecolor": "#0b5a8f" if best else "white"}  # fmt: skip
        colour = "white" if best else "#0b5a8f"
        panel.axes.text(x, y, rate, ha="center", va="center", bbox=box, color=colour,
                        fontweight=weight, fontsize=8,
 linespacing=0.95)  # fmt: skip
    else:
        panel.axes.text(
            x, y, rate, ha="center", va="center", color=style.MUTED, fontsize=8, linespacing=0.95
        )
