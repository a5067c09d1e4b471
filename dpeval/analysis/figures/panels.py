"""A grid of panels, each with a lane below it for requested configurations without a result."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from dpeval.analysis.figures import style
from dpeval.analysis.frame.configurations import Family, device_word, printable, shortfall
from dpeval.analysis.frame.labels import cell_name
from dpeval.record.codes import SHORT_WARNINGS
from dpeval.util.display.plural import counted

MOST_PANELS = 6
LOG_COUNTS = 5
MOST_LABELLED = 4
"""More lines than these have a legend instead of labels at their ends."""
_LABEL_GAP = 0.075
"""Between labels, as a share of the height of the axes."""
_LANE_INCHES = 0.4
UNSTEADY_NOTE = f"Open marker: {SHORT_WARNINGS['unsteady']}."
OVERSUBSCRIBED_NOTE = "Grey band: oversubscribed (more ranks than cores or GPUs)."
UNTIMED_NOTE = (
    "Exposed communication was not measured for every run; where absent, backward includes it."
)
UNTIMED_COPIES_NOTE = (
    "Gradient copies were not measured for every run; where absent, exposed communication "
    "includes them."
)
INTERVAL_NOTE = "Error bars: 95 % interval."


@dataclass(frozen=True)
class Panel:
    """One panel: the plot, the positions of its device counts, and its batches."""

    axes: Axes
    family: Family
    batches: list[int]
    counts: list[int]
    to_scale: bool = False

    def x(self, devices: int) -> float:
        """Position of a device count: to scale (log2 where :attr:`is_log`), or in order."""
        if not self.to_scale:
            return float(self.counts.index(devices))
        return math.log2(devices) if self.is_log else float(devices)

    @property
    def is_log(self) -> bool:
        """Whether device counts lie on a log2 axis: from five counts on, or beyond 16 devices."""
        return len(self.counts) >= LOG_COUNTS or self.counts[-1] > 16

    def beside(self, devices: int, index: int) -> float:
        """Position of one line's point, beside those of the other lines.

        Args:
            devices: its device count.
            index: number of the line.
        """
        lines = len(self.batches)
        return self.x(devices) + (index - (lines - 1) / 2) * min(0.3, 1.2 / lines) * self.half_gap

    @property
    def half_gap(self) -> float:
        """Half the distance between the two closest device counts."""
        places = [self.x(count) for count in self.counts]
        gaps = [after - before for before, after in pairwise(places)]
        return min(gaps, default=1.0) / 2


def grid(
    title: str,
    subtitle: str,
    wanted: Sequence[tuple[Family, list[int]]],
    *,
    size: tuple[float, float] = (4.4, 3.0),
    share_y: bool = False,
    lanes: bool = True,
    to_scale: bool = False,
) -> tuple[Figure, list[Panel]]:
    """Lay out one panel per (family, batches), with lanes below it for absent cells.

    Panels beyond :data:`MOST_PANELS` are left out; the caller notes it (:func:`left_out`).

    Args:
        title: heading of the figure.
        subtitle: what all panels share.
        wanted: the family and the batches of each panel.
        size: width and height of one panel without its lanes, inches.
        share_y: use one scale of the y axis for all panels.
        lanes: draw the lanes.
        to_scale: place device counts by value instead of evenly.
    """
    shown = list(wanted)[:MOST_PANELS]
    columns = min(len(shown), 2 if len(shown) in (2, 4) else 3, max(1, int(15 / size[0])))
    rows = math.ceil(len(shown) / columns)
    absent = [_lanes(*each) if lanes else [] for each in shown]
    lanes_of_row = [
        max(len(each) for each in absent[row * columns : (row + 1) * columns])
        for row in range(rows)
    ]
    width = max(6.4, size[0] * columns)
    height = 0.9 + sum(size[1] + _LANE_INCHES * count for count in lanes_of_row)
    figure = style.titled(width, height, title, subtitle)
    heights = [
        part for count in lanes_of_row for part in (size[1], max(_LANE_INCHES * count, 0.01))
    ]
    cells = figure.add_gridspec(2 * rows, columns, height_ratios=heights)
    panels: list[Panel] = []
    for index, (family, batches) in enumerate(shown):
        row, column = divmod(index, columns)
        axes = figure.add_subplot(
            cells[2 * row, column], sharey=panels[0].axes if share_y and panels else None
        )
        panel = Panel(axes, family, batches, family.device_counts, to_scale)
        _device_axis(axes, panel)
        shared = subtitle.split(" · ")
        if own := " · ".join(part for part in family.label.split(" · ") if part not in shared):
            axes.set_title(textwrap.fill(own, int(size[0] * 11)))
        if absent[index]:
            lane = figure.add_subplot(cells[2 * row + 1, column], sharex=axes)
            _draw_lanes(lane, panel, absent[index])
            axes.tick_params(labelbottom=False)
            axes.set_xlabel("")
        panels.append(panel)
    return figure, panels


def left_out(wanted: Sequence[tuple[Family, list[int]]]) -> str:
    """A note on the panels, and the batches of a panel, that :func:`grid` left out."""
    shown = list(wanted)[:MOST_PANELS]
    panels = len(wanted) - len(shown)
    batches = sum(len(family.batches) - len(chosen) for family, chosen in shown if len(chosen) > 1)
    notes = []
    if panels:
        notes.append(counted(panels, "more panel"))
    if batches:
        notes.append(counted(batches, "more batch", plural="more batches"))
    return f"Not drawn for lack of space: {', '.join(notes)} (see the tables)." if notes else ""


def _device_axis(axes: Axes, panel: Panel) -> None:
    places = [panel.x(count) for count in panel.counts]
    margin = 1.2 * panel.half_gap
    axes.set_xlim(places[0] - margin, places[-1] + margin)
    axes.set_xticks(places, [str(count) for count in panel.counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(device_word(panel.family.hardware))


def _lanes(family: Family, batches: list[int]) -> list[int]:
    """Batches that lack a measurement at some device count."""
    wanted = len(family.device_counts)
    return [batch for batch in batches if len(family.measured(batch)) < wanted]


def _draw_lanes(lane: Axes, panel: Panel, batches: list[int]) -> None:
    lane.set_ylim(len(batches), 0)
    lane.set_yticks(
        [row + 0.28 for row in range(len(batches))], [f"batch {batch}" for batch in batches]
    )
    lane.tick_params(axis="y", length=0, labelsize=7)
    lane.grid(visible=False)
    for side in ("left", "bottom"):
        lane.spines[side].set_visible(False)
    lane.tick_params(axis="x", length=0)
    lane.set_xlabel(device_word(panel.family.hardware))
    for row, batch in enumerate(batches):
        for counts, text in _absent_boxes(panel, batch):
            left = panel.x(counts[0]) - 0.9 * panel.half_gap
            right = panel.x(counts[-1]) + 0.9 * panel.half_gap
            style.hatched(lane, left, row + 0.08, right - left, 0.4)
            at, align = (left + right) / 2, "center"
            if counts[0] == panel.counts[0]:
                at, align = left, "left"
            elif counts[-1] == panel.counts[-1]:
                at, align = right, "right"
            lane.text(at, row + 0.54, text, ha=align, va="top", fontsize=7, color=style.INK)


def _absent_boxes(panel: Panel, batch: int) -> list[tuple[list[int], str]]:
    """Adjacent absent device counts with the same reason, and that reason."""
    rows = {int(cell.num_devices): cell for cell in panel.family.of_batch(batch).itertuples()}
    boxes: list[tuple[list[int], str]] = []
    before: str | None = None
    for count in panel.counts:
        cell = rows.get(count)
        if cell is not None and cell.status == "ok":
            before = None
            continue
        text = "no record" if cell is None else shortfall(cell)
        if text == before:
            boxes[-1][0].append(count)
        else:
            boxes.append(([count], text))
        before = text
    return boxes


def name_lines(panel: Panel, ends: Mapping[int, float]) -> None:
    """Name the lines: at their right ends, or in a legend if they are many.

    Called when the y axis has its limits.

    Args:
        panel: where the lines are.
        ends: the last value of each batch that has a line.
    """
    if len(panel.batches) > MOST_LABELLED:
        _batch_legend(panel)
        return
    low, high = panel.axes.get_ylim()
    colours = style.sequential(len(panel.batches))
    each = " each" * (panel.family.scaling == "weak")
    at = -math.inf
    for batch, value in sorted(ends.items(), key=lambda item: item[1]):
        at = max((value - low) / (high - low), at + _LABEL_GAP)
        panel.axes.annotate(
            f"batch {batch}{each}", (1.0, at), xycoords="axes fraction", xytext=(5, 0),
            textcoords="offset points", va="center", fontsize=8, annotation_clip=False,
            color=style.darkened(colours[panel.batches.index(batch)]),
        )  # fmt: skip


def _batch_legend(panel: Panel) -> None:
    """A key of batches by colour, dash and marker, outside the data."""
    colours = style.sequential(len(panel.batches))
    handles = [
        Line2D([], [], color=colours[i], linestyle=style.DASHES[i % len(style.DASHES)],
               marker=style.MARKERS[i % len(style.MARKERS)], label=str(batch))
        for i, batch in enumerate(panel.batches)
    ]  # fmt: skip
    panel.axes.legend(
        handles=handles[::-1], title=panel.family.batch_name, title_fontsize=8,
        loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=3.2,
    )  # fmt: skip


def shade_oversubscribed(panel: Panel) -> None:
    """A grey band behind oversubscribed device counts."""
    over = panel.family.cells.groupby("num_devices")["oversubscribed"].any()
    for count in over.index[over]:
        at = panel.x(int(count))
        panel.axes.axvspan(
            at - panel.half_gap, at + panel.half_gap, color="#ededed", linewidth=0, zorder=0
        )


def mark_bad(panel: Panel) -> None:
    """An exclamation mark above points that were measured on a disturbed machine."""
    for cell in panel.family.measured().itertuples():
        if cell.bad and cell.batch in panel.batches:
            panel.axes.annotate(
                "!", (panel.x(int(cell.num_devices)), cell.high), xytext=(0, 3),
                textcoords="offset points", ha="center", fontweight="bold", color=style.INK,
            )  # fmt: skip


def ring_unsettled(panel: Panel) -> bool:
    """A ring around points that a limit left less precise than asked; whether there are any."""
    shown = panel.family.measured()
    open_ones = shown[~shown["settled"].astype(bool) & shown["batch"].isin(panel.batches)]
    for cell in open_ones.itertuples():
        at = panel.beside(int(cell.num_devices), panel.batches.index(int(cell.batch)))
        panel.axes.plot(
            at, cell.img_per_s, marker="o", markersize=13, markerfacecolor="none",
            markeredgecolor=style.INK, markeredgewidth=0.8, linestyle="none", zorder=3.6,
        )  # fmt: skip
    return len(open_ones) > 0


def is_untimed(cells: pd.DataFrame) -> pd.Series[bool]:
    """Which measured cells have a backward time that includes communication."""
    return cells["backward_s"].notna() & cells["comm_exposed_s"].isna()


def has_untimed_copies(cells: pd.DataFrame) -> pd.Series[bool]:
    """Which measured cells have an exposed communication that includes gradient copies."""
    return (cells["comm_exposed_s"] > 0) & cells["grad_copy_s"].isna()


def notes_on(chosen: list[Family]) -> list[str]:
    """Notes for every figure of these families."""
    notes = []
    table = pd.concat([family.cells for family in chosen])
    ok = table[table["status"] == "ok"]
    if not ok["steady"].all():
        notes.append(UNSTEADY_NOTE)
    if ok["oversubscribed"].any():
        notes.append(OVERSUBSCRIBED_NOTE)
    if is_untimed(ok).any():
        notes.append(UNTIMED_NOTE)
    for cell in ok[ok["bad"] != ""].itertuples():
        bad = printable(cell.bad, 160)
        notes.append(f"! {cell_name(cell)}: {bad}")
    return notes
