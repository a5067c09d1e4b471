"""Step times of single runs: their distribution, and one step across ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from dpeval.analysis.figures import style
from dpeval.analysis.figures.figure_data import Drawing, FigureData
from dpeval.analysis.frame.configurations import FAMILY, printable
from dpeval.analysis.frame.labels import configuration
from dpeval.errors import UnsupportedError
from dpeval.record.phases import PHASE_WORDS, PHASES
from dpeval.record.schema import RankRecord, Record
from dpeval.util.display.plural import counted
from dpeval.util.display.ranges import with_span

MOST_RUNS = 24
MOST_RANKS = 16
_MOST_DOTS = 400
_DOT, _WARM = "#0b5a8f", "#b5b5b5"


def distribution(figure_data: FigureData) -> Drawing:
    """Every step time of each run: warm-up in grey, measured steps as dots under a box.

    Raises:
        UnsupportedError: no run kept its step times.
    """
    records = [
        r for r in figure_data.records(_telling_runs(figure_data)) if _slowest(r) is not None
    ]
    if not records:
        raise UnsupportedError("no run kept its step times")
    title = "Step times of each run"
    height = 1.5 + 0.3 * len(records)
    figure = style.titled(9.4, height, title, figure_data.words())
    axes = figure.add_subplot()
    left, right = _limits(records)
    for row, record in enumerate(records):
        _draw_run(axes, len(records) - 1 - row, record, right)
    axes.set_yticks(
        range(len(records)), [_run_name(record) for record in reversed(records)], fontsize=7.5
    )
    axes.set_ylim(-0.7, len(records) - 0.3)
    axes.set_xlabel("step time of the slowest rank over the run's mean (1 = mean)")
    axes.set_xlim(left, right)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.legend(handles=_handles(), loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    total = int((figure_data.runs["status"] == "ok").sum())
    notes = [
        "Box: quartiles and median of the measured steps; whiskers: 5th to 95th percentile.",
        "Arrow: warm-up steps beyond the axis.",
        f"{len(records)} of {total} measured runs shown." if total > len(records) else "",
    ]
    style.footnotes(figure, notes)
    return Drawing(
        figure, f"{title}: dots and boxes for {counted(len(records), 'run')}, warm-up in grey."
    )


def _telling_runs(figure_data: FigureData) -> pd.DataFrame:
    """Runs to show one by one: all, else one per configuration, else an even choice of those."""
    order = [*FAMILY, "batch", "num_devices", "repetition"]
    runs = figure_data.runs[figure_data.runs["status"] == "ok"].sort_values(order)
    if len(runs) > MOST_RUNS:
        runs = runs.drop_duplicates([*FAMILY, "batch", "num_devices"])
    if len(runs) > MOST_RUNS:
        runs = runs.iloc[np.linspace(0, len(runs) - 1, MOST_RUNS).astype(int)]
    return runs


def _slowest(record: Record) -> RankRecord | None:
    """The rank that stands for the run, if it kept its steps."""
    rank, window = record.slowest, record.window
    if rank is None or window is None or len(rank.step_s) <= window.first:
        return None
    return rank


def _run_name(record: Record) -> str:
    config = record.config
    devices, batch = (printable(config.get(key, "?"), 8) for key in ("num_devices", "batch"))
    scaling, hardware = (config.get(key, {}).get("kind") for key in ("scaling", "hardware"))
    name = configuration(devices, batch, scaling, hardware)
    if config.get("repeat", 1) != 1 or record.repetition:
        name += f" · run {record.repetition + 1}"
    marks = []
    if record.window is not None and record.window.steadiness != "steady":
        drifting = record.window.steadiness == "drifting"
        marks.append("unsteady" if drifting else "drift not known")
    if record.dataset is not None and record.dataset.is_stand_in:
        marks.append("stand-in data")
    if record.plan is not None and record.plan.is_oversubscribed:
        marks.append("oversubscribed")
    mark = f" ({', '.join(marks)})" if marks else ""
    return name + mark


def _draw_run(axes: Axes, y: int, record: Record, right: float) -> None:
    rank, window = _slowest(record), record.window
    if rank is None or window is None:
        return
    mean = window.step_s
    steps = np.asarray(rank.step_s) / mean.mean
    warm, main = steps[: window.first], _main(record) / mean.mean
    # Dots are spread by a fixed pattern: the same record gives the same picture.
    for part, colour, size in ((warm[warm <= right], _WARM, 12), (main, _DOT, 9)):
        shown = part[:: max(1, len(part) // _MOST_DOTS)]
        spread = 0.26 * np.sin(np.arange(len(shown)) * 2.399963)
        axes.scatter(
            shown, y + spread, s=size, color=colour, linewidths=0, zorder=2,
            alpha=0.4 if colour == _DOT else 0.9,
        )  # fmt: skip
    if len(main) > 1:
        axes.boxplot(
            [main], positions=[y], widths=0.56, orientation="horizontal", showfliers=False,
            whis=(5, 95), manage_ticks=False, zorder=3,
            medianprops={"color": style.INK, "linewidth": 1.4},
        )  # fmt: skip
    low, high = (mean.mean - mean.low) / mean.mean, (mean.high - mean.mean) / mean.mean
    axes.errorbar(
        1.0, y, xerr=[[low], [high]], fmt="D", markersize=4, markerfacecolor="white",
        color="#d55e00", zorder=4,
    )  # fmt: skip
    beyond = int((warm > right).sum())
    if beyond:
        axes.plot(right, y, marker=">", color=_WARM, markersize=5, clip_on=False, zorder=2)
    known = with_span(mean.mean, mean.low, mean.high) if window.steps > 1 else f"{mean.mean:.3g}"
    axes.annotate(
        f"{known} s; first step {rank.step_s[0]:.3g} s",
        (1.0, y), xycoords=("axes fraction", "data"), xytext=(8, 0), va="center",
        textcoords="offset points", fontsize=7.5, color=style.MUTED, annotation_clip=False,
    )  # fmt: skip


def _main(record: Record) -> NDArray[np.float64]:
    """Measured step times of the slowest rank, s."""
    rank, window = _slowest(record), record.window
    if rank is None or window is None:
        return np.empty(0)
    return np.asarray(rank.step_s[window.first : window.first + window.steps])


def _limits(records: Sequence[Record]) -> tuple[float, float]:
    """The axis that holds every measured step (over its run's mean), warm-up or not."""
    ratios = [_main(r) / r.window.step_s.mean for r in records if r.window is not None]
    spread = np.concatenate(ratios)
    low, high = min(0.98, float(spread.min())), max(1.02, float(np.percentile(spread, 99.8)))
    room = 0.06 * (high - low)
    return low - room, high + room


def _handles() -> list[Line2D]:
    return [
        Line2D([], [], marker="o", linestyle="none", color=_WARM, label="warm-up step", ms=4),
        Line2D([], [], marker="o", linestyle="none", color=_DOT, label="measured step", ms=4),
        Line2D([], [], marker="D", color="#d55e00", markerfacecolor="white", ms=4,
               label="mean, 95 % interval"),
    ]  # fmt: skip


def timeline(figure_data: FigureData) -> Drawing:
    """The median step of the run with the most ranks: a compute and a communication lane each."""
    runs = figure_data.runs[figure_data.runs["status"] == "ok"].sort_values(
        ["num_devices", "repetition"]
    )
    record, step = _telling_step(figure_data.records(runs.tail(3)))
    ranks = [rank for rank in record.ranks if len(rank.step_s) > step]
    shown = ranks[:MOST_RANKS]
    title = "One step across ranks"
    words = f"{_run_name(record)} · step {step} · {figure_data.words()}"
    figure = style.titled(8.6, 1.7 + 0.5 * len(shown), title, words)
    axes = figure.add_subplot()
    starts = _starts(shown, step)
    scale = 1e3 if max(rank.step_s[step] for rank in shown) < 1.0 else 1.0
    for row, (rank, start) in enumerate(zip(shown, starts, strict=True)):
        _draw_rank(axes, row, rank, step, start, scale)
    labels = [f"rank {rank.rank}{' (slowest)' if rank is record.slowest else ''}" for rank in shown]
    axes.set_yticks(range(len(shown)), labels)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"time in the step ({'ms' if scale == 1e3 else 's'})")
    _timeline_legend(axes, shown, step)
    notes = [
        "Upper lane: what the rank computes; lower lane: all-reduce under way (hatched: exposed).",
        "Ranks are aligned by the host's clock."
        if _one_clock(shown, step)
        else "Ranks are aligned at the end of their all-reduce, which they leave together.",
        f"{len(shown)} of {len(ranks)} ranks shown." if len(ranks) > len(shown) else "",
    ]
    style.footnotes(figure, notes)
    alt = f"{title}: {len(shown)} ranks, lanes for computing and communication. {words}."
    return Drawing(figure, alt)


def _telling_step(records: Sequence[Record]) -> tuple[Record, int]:
    """The run with the most ranks and the median step of its main window."""
    usable = [
        record for record in records if _slowest(record) is not None and len(record.ranks) > 1
    ]
    if not usable:
        raise UnsupportedError("no run with two or more ranks kept its step times")
    record = max(usable, key=lambda record: len(record.ranks))
    main = _main(record)
    first = record.window.first if record.window is not None else 0
    return record, first + int(np.argsort(main)[len(main) // 2])


def _until_reduced(rank: RankRecord, step: int) -> float:
    last = PHASES.index("comm_exposed") + 1
    return sum(rank.phase_s[phase][step] for phase in PHASES[:last] if phase in rank.phase_s)


def _starts(ranks: Sequence[RankRecord], step: int) -> list[float]:
    """When each rank began the step: by the host's clock, else from leaving the all-reduce."""
    if _one_clock(ranks, step):
        begun = [rank.begin_s[step] for rank in ranks]
        return [at - min(begun) for at in begun]
    ends = [_until_reduced(rank, step) for rank in ranks]
    return [max(ends) - end for end in ends]


def _one_clock(ranks: Sequence[RankRecord], step: int) -> bool:
    return len({rank.host for rank in ranks}) == 1 and all(len(r.begin_s) > step for r in ranks)


def _draw_rank(
    axes: Axes, row: int, rank: RankRecord, step: int, start: float, scale: float
) -> None:
    at = start
    for phase in PHASES:
        length = rank.phase_s.get(phase, [0.0] * (step + 1))[step]
        colour, hatch = style.PHASE_STYLE[phase]
        if phase != "comm_exposed":
            _bar(axes, (at * scale, row - 0.38), (length * scale, 0.42), colour, hatch)
        else:
            _bar(axes, (at * scale, row + 0.08), (length * scale, 0.28), colour, hatch)
            hidden = rank.comm_hidden_s[step] if len(rank.comm_hidden_s) > step else 0.0
            left = (at - hidden) * scale
            _bar(axes, (left, row + 0.08), (hidden * scale, 0.28), "#f2b183", "")
        at += length


def _bar(
    axes: Axes, at: tuple[float, float], size: tuple[float, float], colour: str, hatch: str
) -> None:
    axes.bar(
        at[0], size[1], width=size[0], bottom=at[1], align="edge", color=colour, hatch=hatch,
        edgecolor="white", linewidth=0.4, zorder=2,
    )  # fmt: skip


def _timeline_legend(axes: Axes, ranks: Sequence[RankRecord], step: int) -> None:
    present = [
        phase for phase in PHASES
        if any(rank.phase_s.get(phase, [0.0] * (step + 1))[step] > 0 for rank in ranks)
    ]  # fmt: skip
    handles = [
        Patch(facecolor=style.PHASE_STYLE[phase][0], hatch=style.PHASE_STYLE[phase][1],
              edgecolor="white", label=PHASE_WORDS[phase])
        for phase in present
    ]  # fmt: skip
    handles.append(Patch(facecolor="#f2b183", label="hidden communication"))
    # Beside the lanes: at the top of the figure it would lie on the subtitle.
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1.03), handleheight=1.3)
