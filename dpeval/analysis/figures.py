"""The four figures of a study: components, throughput over cores and GPUs, the best count.

Colour-blind-safe (Okabe & Ito), legible in grey by hatch and marker, error bars are 95 %
intervals, and a line never bridges a configuration that was not measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpeval.record import PHASES

FORMATS = ("png", "svg")
PHASE_STYLE = {
    "data": ("waiting for data", "#E69F00", "//"),
    "h2d": ("copy to device", "#F0E442", ".."),
    "forward": ("forward", "#56B4E9", ""),
    "backward": ("backward", "#0072B2", ""),
    "comm_exposed": ("exposed communication", "#D55E00", "\\\\"),
    "optimizer": ("optimizer", "#009E73", "xx"),
    "other": ("other", "#999999", ""),
}
LINES = (
    ("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"),
    ("#E69F00", "v"), ("#56B4E9", "P"), ("#000000", "X"),
)  # fmt: skip
STATUS_WORDS = {"skipped": "not run", "oom": "out of memory", "failed": "failed"}


@dataclass(frozen=True)
class Drawn:
    """One figure that was drawn."""

    stem: str
    title: str
    alt: str
    files: tuple[Path, ...]


def draw_all(pooled: pd.DataFrame, out: Path) -> list[Drawn]:
    """Draw every figure that `pooled` (see :func:`dpeval.analysis.frame.pool`) supports."""
    drawn: list[Drawn] = []
    for (hardware, scaling), study in pooled.groupby(["hardware", "scaling"]):
        series = list(dict.fromkeys(study["series"]))
        for number, name in enumerate(series):
            suffix = f"_{number + 1}" if len(series) > 1 else ""
            group = study[study["series"] == name]
            drawn += _study(group, str(hardware), str(scaling), name, suffix, out)
    return drawn


def _study(
    group: pd.DataFrame, hardware: str, scaling: str, series: str, suffix: str, out: Path
) -> list[Drawn]:
    unit = "GPU" if hardware == "gpu" else "core"
    ending = f"{'gpus' if hardware == 'gpu' else 'cores'}{'_weak' * (scaling == 'weak')}{suffix}"
    good = group[group["ok"] > 0]
    if good.empty:
        return []
    drawn = [
        _save(components(group, unit, series), out, f"time_components_{ending}",
              f"Where the time of a step goes, by number of {unit}s",
              _components_alt(good, unit)),
        _save(throughput(group, unit, scaling, series), out, f"throughput_{ending}",
              f"Throughput over {unit}s", _throughput_alt(good, unit)),
    ]  # fmt: skip
    if good["num_devices"].nunique() > 1:
        drawn.append(
            _save(best_counts(group, unit, series), out, f"best_count_{ending}",
                  f"The number of {unit}s with the highest throughput, for each batch",
                  _best_alt(good, unit))
        )  # fmt: skip
    return drawn


def _save(figure: Figure, out: Path, stem: str, title: str, alt: str) -> Drawn:
    out.mkdir(parents=True, exist_ok=True)
    files = []
    # No date and no random ids in the file: the same records give the same bytes.
    with mpl.rc_context({"svg.hashsalt": stem}):
        for ending in FORMATS:
            path = out / f"{stem}.{ending}"
            figure.savefig(path, dpi=160, metadata={"Date": None} if ending == "svg" else None)
            files.append(path)
    return Drawn(stem, title, alt, tuple(files))


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    with sns.axes_style("whitegrid"), sns.plotting_context("notebook", font_scale=0.95):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False, sharey=True)[0]
    for axis in axes:
        axis.grid(axis="x", visible=False)
        sns.despine(ax=axis)
    return figure, list(axes)


def _caption(figure: Figure, title: str, group: pd.DataFrame, series: str) -> None:
    figure.suptitle(title, fontsize=13, fontweight="bold", x=0.01, ha="left")
    notes = [series]
    if group["stand_in"].any():
        notes.append("generated stand-in images")
    if group["oversubscribed"].any():
        notes.append("* oversubscribed: more ranks than cores")
    if (~group.loc[group["ok"] > 0, "steady"].astype(bool)).any():
        notes.append("hollow: no steady state")
    figure.supxlabel("\n".join(_wrapped("; ".join(notes), 110)), fontsize=7.5, color="#555555")


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)


def components(group: pd.DataFrame, unit: str, series: str) -> Figure:
    """Stacked phases of the mean step (s) per device count, one panel per batch."""
    batches = sorted(group["batch"].unique())
    counts = sorted(group["num_devices"].unique())
    figure, axes = _figure(
        max(6.4, 0.8 + len(batches) * (1.2 + 0.55 * len(counts))), 4.8, len(batches)
    )
    for axis, batch in zip(axes, batches, strict=True):
        part = group[group["batch"] == batch].set_index("num_devices").reindex(counts)
        _stack(axis, part, counts)
        axis.set_title(f"batch {batch}", fontsize=11)
        axis.set_xlabel(f"number of {unit}s")
    axes[0].set_ylabel("time of a step (s)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", frameon=False, fontsize=9)
    _caption(figure, "Where the time of a step goes", group, series)
    return figure


def _stack(axis: Axes, part: pd.DataFrame, counts: list[int]) -> None:
    places = np.arange(len(counts))
    bottom = np.zeros(len(counts))
    ok = (part["ok"].fillna(0) > 0).to_numpy()
    for phase in PHASES:
        label, colour, hatch = PHASE_STYLE[phase]
        height = np.where(ok, part[f"{phase}_s"].fillna(0.0).to_numpy(dtype=float), 0.0)
        axis.bar(
            places, height, 0.72, bottom=bottom, label=label, color=colour, hatch=hatch,
            edgecolor="white", linewidth=0.4,
        )  # fmt: skip
        bottom = bottom + height
    half = ((part["high"] - part["low"]) / 2 / part["img_per_s"]).to_numpy(dtype=float) * bottom
    axis.errorbar(
        places[ok], bottom[ok], yerr=half[ok], fmt="none", ecolor="black", capsize=3, linewidth=1
    )
    marks = part["oversubscribed"].fillna(value=False).to_numpy(dtype=bool)
    axis.set_xticks(
        places, [f"{count}{'*' if star else ''}" for count, star in zip(counts, marks, strict=True)]
    )
    _mark_absent(axis, part, ok, places)


def _mark_absent(axis: Axes, part: pd.DataFrame, ok: Any, places: Any) -> None:
    """Say in the figure what was not measured and why, never a gap or a zero."""
    for place, is_ok, status, cause in zip(
        places, ok, part["status"], part["cause_kind"], strict=True
    ):
        if is_ok:
            continue
        word = STATUS_WORDS.get(str(status), "absent")
        reason = f" ({cause})" if isinstance(cause, str) and cause and status == "skipped" else ""
        axis.annotate(
            f"{word}{reason}", (place, 0.02), xycoords=("data", "axes fraction"), rotation=90,
            ha="center", va="bottom", fontsize=8, color="#777777",
        )  # fmt: skip


def throughput(group: pd.DataFrame, unit: str, scaling: str, series: str) -> Figure:
    """Throughput (img/s) over devices, a line per batch, with 95 % intervals and the ideal."""
    figure, (axis,) = _figure(7.2, 4.8)
    counts = sorted(int(count) for count in group["num_devices"].unique())
    for (colour, marker), (batch, part) in zip(_styles(), group.groupby("batch"), strict=False):
        each = " per device" if scaling == "weak" else ""
        _line(
            axis,
            part.set_index("num_devices").reindex(counts),
            counts,
            colour,
            marker,
            f"batch {batch}{each}",
        )
    _ideal(axis, group, counts)
    axis.set_xticks(counts)
    axis.set_xlabel(f"number of {unit}s")
    axis.set_ylabel("throughput (img/s)")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize=9)
    absent = group.groupby("num_devices")["ok"].sum().reindex(counts)
    for count in [count for count in counts if not absent[count]]:
        reason = group.loc[group["num_devices"] == count, "cause_kind"].iloc[0]
        axis.annotate(
            f"not run ({reason})" if reason else "absent", (count, 0.02),
            xycoords=("data", "axes fraction"), rotation=90, ha="center", va="bottom",
            fontsize=8, color="#777777",
        )  # fmt: skip
    _caption(figure, f"Throughput over {unit}s", group, series)
    return figure


def _styles() -> list[tuple[str, str]]:
    return list(LINES) * 4


def _line(
    axis: Axes, part: pd.DataFrame, counts: list[int], colour: str, marker: str, label: str
) -> None:
    """Points with their intervals; NaN in the series breaks the line where a point is absent."""
    values = part["img_per_s"].to_numpy(dtype=float)
    low = values - part["low"].to_numpy(dtype=float)
    high = part["high"].to_numpy(dtype=float) - values
    axis.errorbar(
        counts, values, yerr=np.vstack([low, high]), color=colour, marker=marker, label=label,
        capsize=3, linewidth=1.6, markersize=6,
    )  # fmt: skip
    steady = part["steady"].fillna(value=True).to_numpy(dtype=bool)
    hollow = ~steady & np.isfinite(values)
    axis.plot(
        np.array(counts)[hollow], values[hollow], marker, mfc="white", mec=colour, ms=7, zorder=5
    )


def _ideal(axis: Axes, group: pd.DataFrame, counts: list[int]) -> None:
    """The line on which every device adds what the first one does, for the fastest baseline."""
    ones = group[(group["num_devices"] == 1) & (group["ok"] > 0)]
    if ones.empty or len(counts) < 2:
        return
    best = ones.loc[ones["img_per_s"].idxmax()]
    base = float(best["img_per_s"])
    axis.plot(
        counts,
        [base * count for count in counts],
        "--",
        color="#999999",
        linewidth=1,
        label="ideal",
    )


def best_counts(group: pd.DataFrame, unit: str, series: str) -> Figure:
    """For each batch the device count of highest throughput; ties inside the error are shown."""
    batches = sorted(int(batch) for batch in group["batch"].unique())
    figure, (axis,) = _figure(max(5.6, 1.6 + 0.9 * len(batches)), 4.4)
    for place, batch in enumerate(batches):
        part = group[(group["batch"] == batch) & (group["ok"] > 0)]
        if part.empty:
            axis.annotate("not measured", (place, 0.05), xycoords=("data", "axes fraction"),
                          rotation=90, ha="center", fontsize=8, color="#777777")  # fmt: skip
            continue
        best = part.loc[part["img_per_s"].idxmax()]
        tied = part[part["high"] >= best["low"]]["num_devices"].astype(int).tolist()
        axis.bar(place, best["num_devices"], 0.6, color="#0072B2")
        words = f"{best['img_per_s']:.3g} img/s"
        others = [count for count in tied if count != int(best["num_devices"])]
        if others:
            words += f"\ntied with {', '.join(map(str, sorted(others)))}"
        axis.annotate(words, (place, best["num_devices"]), xytext=(0, 4),
                      textcoords="offset points", ha="center", fontsize=8.5)  # fmt: skip
    axis.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    axis.set_yticks(range(int(group["num_devices"].max()) + 2))
    axis.set_xlabel("batch")
    axis.set_ylabel(f"number of {unit}s")
    _caption(figure, f"Best number of {unit}s for each batch", group, series)
    return figure


def _components_alt(good: pd.DataFrame, unit: str) -> str:
    parts = [
        f"{int(row.num_devices)} {unit}s, batch {int(row.batch)}: step {row.step_s:.3g} s, "
        f"{row.comm_exposed_s / row.step_s:.0%} of it exposed communication"
        for row in good.itertuples()
    ]
    return "Stacked bars of the parts of a step. " + "; ".join(parts) + "."


def _throughput_alt(good: pd.DataFrame, unit: str) -> str:
    parts = [
        f"{int(row.num_devices)} {unit}s, batch {int(row.batch)}: {row.img_per_s:.3g} img/s "
        f"({row.low:.3g} to {row.high:.3g})"
        for row in good.itertuples()
    ]
    return "Throughput with 95 % intervals. " + "; ".join(parts) + "."


def _best_alt(good: pd.DataFrame, unit: str) -> str:
    best = good.loc[good.groupby("batch")["img_per_s"].idxmax()]
    parts = [f"batch {int(row.batch)}: {int(row.num_devices)} {unit}s" for row in best.itertuples()]
    return "Device count of highest throughput. " + "; ".join(parts) + "."
