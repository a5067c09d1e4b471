"""The style of all figures: palette, markers, layout, saving."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

FORMATS = ("png", "svg", "pdf")
PNG_DPI = 160
COLUMN = 6.4
"""Width of a column of figures, inches."""
WIDTHS = (COLUMN, 1.5 * COLUMN, 2 * COLUMN)
ROW = 0.4
"""Heights are multiples of this, inches."""
_TIGHTER = 0.05
"""A figure may have this much less width than it asks for, to fit a narrower size."""

INK, MUTED, FAINT = "#1a1a1a", "#5c5c5c", "#d9d9d9"
MARKERS = "osD^vPX*"
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1, 2)))

PHASE_STYLE = {
    "data": ("#e69f00", ""),
    "h2d": ("#f5e663", ".."),
    "forward": ("#8ecbf0", ""),
    "backward": ("#0b5a8f", ""),
    "comm_exposed": ("#d55e00", "////"),
    "grad_copy": ("#cc79a7", "\\\\\\\\"),
    "optimizer": ("#3fb893", "xx"),
    "other": ("#c9c9c9", ""),
}
"""Fill and hatch per phase: Okabe-Ito hues spread in lightness, so that grey prints keep them."""
_RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "hatch.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "errorbar.capsize": 3,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "dpeval",
    "svg.fonttype": "path",
    # Names come from records: a dollar sign in one is a character, not mathematics.
    "text.parse_math": False,
    "text.hinting": "none",
}


@contextmanager
def styled() -> Iterator[None]:
    """The settings under which all figures are made and saved."""
    with sns.plotting_context("paper"), sns.axes_style("whitegrid"), mpl.rc_context(_RC):
        yield


def sequential(count: int) -> list[tuple[float, float, float, float]]:
    """`count` colours from dark to light of one perceptually uniform map (ordered quantities)."""
    colours = sns.color_palette("viridis", as_cmap=True)
    last = max(count - 1, 1)
    return [colours(0.05 + 0.75 * index / last) for index in range(count)]


def darkened(colour: Sequence[float]) -> tuple[float, float, float]:
    """A colour in which small text can be read on white."""
    red, green, blue = (0.72 * part for part in colour[:3])
    return red, green, blue


def on_grid(width: float, height: float) -> tuple[float, float]:
    """The next size of the grid that all figures share: one, one and a half or two columns wide.

    Args:
        width, height: what is needed, inches.
    """
    wide = next((one for one in WIDTHS if width <= one * (1 + _TIGHTER)), WIDTHS[-1])
    return wide, math.ceil(height / ROW - 1e-9) * ROW


def titled(width: float, height: float, title: str, subtitle: str) -> Figure:
    """An empty figure with a heading, laid out without overlaps.

    Args:
        width, height: what its contents need, inches; its size is the next of :func:`on_grid`.
        title: first line of the heading, bold.
        subtitle: lines below it; wrapped.
    """
    width, height = on_grid(width, height)
    figure = Figure(
        figsize=(width, height), dpi=PNG_DPI, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)
    )
    wrapped = textwrap.wrap(subtitle, int(width * 15))
    place: Any = {"x": 0.012, "ha": "left", "va": "top"}
    # The layout makes space for a suptitle only: its blank lines hold the place of the subtitle.
    heading = "\n".join([title, *("" for _ in wrapped)])
    figure.suptitle(heading, fontsize=11.5, fontweight="bold", **place)
    below = 0.98 - 0.235 / height
    figure.text(y=below, s="\n".join(wrapped), fontsize=8.5, color=MUTED, **place)
    return figure


def footnotes(figure: Figure, notes: Sequence[str], most: int = 5) -> None:
    """Write notes under the figure.

    Args:
        figure: made by :func:`titled`.
        notes: one line each; empty and repeated ones are dropped.
        most: how many notes to show; the last one then counts the others.
    """
    unique = list(dict.fromkeys(note for note in notes if note))
    if len(unique) > most:
        unique = [*unique[: most - 1], f"… {len(unique) - most + 1} more notes: see the report"]
    width = int(figure.get_figwidth() * 17)
    lines = [textwrap.fill(note, width, subsequent_indent="   ") for note in unique]
    if lines:
        figure.supxlabel("\n".join(lines), x=0.012, ha="left", fontsize=7.5, color=MUTED)


def hatched(axes: Axes, x: float, y: float, width: float, height: float) -> None:
    """A hatched box: requested, but not measured.

    Args:
        axes: where to draw.
        x, y: lower left corner, data coordinates.
        width, height: data units.
    """
    axes.add_patch(
        Rectangle(
            (x, y),
            width,
            height,
            facecolor="#f4f4f4",
            edgecolor="#9a9a9a",
            hatch="////",
            linewidth=0.6,
            zorder=1.5,
        )
    )


def label_box(axes: Axes, x: float, y: float, text: str, **options: Any) -> None:
    """Small text that stays readable over a hatch.

    Args:
        axes: where to draw.
        x, y: position, data coordinates.
        text: the label.
        **options: of :meth:`matplotlib.axes.Axes.text`.
    """
    axes.text(
        x,
        y,
        text,
        ha=options.pop("ha", "center"),
        va=options.pop("va", "center"),
        fontsize=options.pop("fontsize", 7),
        color=INK,
        zorder=4,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.92},
        **options,
    )


def draw_points(
    axes: Axes, x: Sequence[float], part: Any, index: int, colour: tuple[float, ...]
) -> None:
    """Draw adjacent points of one line with error bars; markers of unsteady runs are open.

    Args:
        axes: where to draw.
        x: position of each point, shape (points,).
        part: one row per point with `img_per_s`, `low`, `high` (img/s) and `steady`.
        index: number of the line, which sets its dash and marker.
        colour: RGBA.
    """
    marker = MARKERS[index % len(MARKERS)]
    down, up = part["img_per_s"] - part["low"], part["high"] - part["img_per_s"]
    axes.errorbar(
        x, part["img_per_s"], yerr=[down.clip(lower=0), up.clip(lower=0)], color=colour,
        linestyle=DASHES[index % len(DASHES)], marker="none", elinewidth=1.1, zorder=3,
    )  # fmt: skip
    steady = part["steady"].to_numpy(dtype=bool)
    for chosen, face in ((steady, colour), (~steady, "white")):
        if chosen.any():
            axes.plot(
                np.asarray(x)[chosen], part["img_per_s"].to_numpy()[chosen], marker=marker,
                markerfacecolor=face, markeredgecolor=colour, markeredgewidth=1.3,
                linestyle="none", zorder=3.5,
            )  # fmt: skip


def save(figure: Figure, out: Path, stem: str) -> None:
    """Write `figure` as PNG, SVG and PDF; equal input gives equal bytes.

    Args:
        figure: the finished figure.
        out: an existing folder.
        stem: name of the files without their ending.

    Raises:
        OSError: `out` cannot be written.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    figure.savefig(out / f"{stem}.png", dpi=PNG_DPI, metadata={"Software": "dpeval"})
    figure.savefig(out / f"{stem}.svg", metadata={"Date": None, "Creator": "dpeval"})
    figure.savefig(out / f"{stem}.pdf", metadata={"CreationDate": None, "Creator": "dpeval"})
