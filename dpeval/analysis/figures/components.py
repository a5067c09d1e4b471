"""Time components of a step, as stacked bars over devices."""

from __future__ import annotations

import textwrap

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dpeval.analysis.figures import style
from dpeval.analysis.figures.figure_data import Drawing, FigureData
from dpeval.analysis.figures.panels import (
    INTERVAL_NOTE,
    UNTIMED_COPIES_NOTE,
    Panel,
    grid,
    has_untimed_copies,
    left_out,
    notes_on,
    shade_oversubscribed,
)
from dpeval.analysis.frame.configurations import Family
from dpeval.analysis.frame.labels import device_count
from dpeval.errors import UnsupportedError
from dpeval.record.phases import PHASE_WORDS, PHASES


def time_components(figure_data: FigureData) -> Drawing:
    """Mean time of every phase of a step, stacked, for each device count and batch.

    Raises:
        UnsupportedError: no run was measured.
    """
    wanted = [
        (family, [batch])
        for family in figure_data.families
        for batch in family.batches
        if len(family.measured(batch))
    ]
    if not wanted:
        raise UnsupportedError("no run was measured")
    title = "Where the time of a step goes"
    figure, panels = grid(title, figure_data.words(), wanted, size=(3.7, 2.9))
    several = sum(len(f.batches) for f in figure_data.families) > 1
    said = []
    for panel in panels:
        said.append(_draw(panel, several))
    _legend(figure, {phase for panel in panels for phase in _present(panel)})
    families = list({id(panel.family): panel.family for panel in panels}.values())
    notes = [f"Mean over steps and runs. {INTERVAL_NOTE}", *notes_on(families)]
    if any(has_untimed_copies(family.measured()).any() for family in families):
        notes.append(UNTIMED_COPIES_NOTE)
    notes.append(left_out(wanted))
    style.footnotes(figure, notes)
    return Drawing(figure, f"{title}: stacked bars of phases. " + " ".join(said))


def _draw(panel: Panel, several: bool) -> str:
    axes, family, batch = panel.axes, panel.family, panel.batches[0]
    shade_oversubscribed(panel)
    points = family.measured(batch)
    scale = 1e3 if points["step_s"].max() < 1.0 else 1.0
    x = [panel.x(int(n)) for n in points["num_devices"]]
    bottom = pd.Series(0.0, index=points.index)
    for phase in PHASES:
        colour, hatch = style.PHASE_STYLE[phase]
        height = points[f"{phase}_s"].fillna(0.0) * scale
        axes.bar(x, height, bottom=bottom, width=0.72, color=colour, hatch=hatch,
                 edgecolor="white", linewidth=0.5, zorder=2)  # fmt: skip
        bottom += height
    down = ((points["step_s"] - points["step_low_s"]) * scale).clip(lower=0)
    up = ((points["step_high_s"] - points["step_s"]) * scale).clip(lower=0)
    axes.errorbar(x, points["step_s"] * scale, yerr=[down, up], fmt="none", ecolor=style.INK,
                  elinewidth=1.1, zorder=3)  # fmt: skip
    for at, cell in zip(x, points.itertuples(), strict=True):
        mark = ("○" if not cell.steady else "") + ("!" if cell.bad else "")
        axes.annotate(mark, (at, cell.step_high_s * scale), xytext=(0, 3), ha="center",
                      textcoords="offset points", fontweight="bold")  # fmt: skip
    name = f"{family.batch_name} {batch}"
    if several:
        title = f"{family.label} · {name}" if family.label else name
        axes.set_title(textwrap.fill(title, 38), fontsize=8.5)
    axes.set_ylabel("time per step (ms)" if scale == 1e3 else "time per step (s)")
    axes.margins(y=0.12)
    return _sentence(family, batch, points)


def _sentence(family: Family, batch: int, points: pd.DataFrame) -> str:
    last = points.iloc[-1]
    parts = {phase: last[f"{phase}_s"] for phase in PHASES if pd.notna(last[f"{phase}_s"])}
    largest = max(parts, key=lambda phase: float(parts[phase]), default="other")
    return (
        f"{family.label} {family.batch_name} {batch}: at {device_count(last.num_devices)} a step "
        f"takes {last.step_s:.3g} s, most of it {PHASE_WORDS[largest]}."
    ).strip()


def _present(panel: Panel) -> list[str]:
    points = panel.family.measured(panel.batches[0])
    return [phase for phase in PHASES if (points[f"{phase}_s"].fillna(0.0) > 0).any()]


def _legend(figure: Figure, present: set[str]) -> None:
    handles = [
        Patch(facecolor=style.PHASE_STYLE[phase][0], hatch=style.PHASE_STYLE[phase][1],
              edgecolor="white", label=PHASE_WORDS[phase])
        for phase in PHASES if phase in present
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside right center", handleheight=1.3, reverse=True)
