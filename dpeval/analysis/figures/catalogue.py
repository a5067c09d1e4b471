"""The figures of an analysis, in the order of the report, and how they are drawn."""

from __future__ import annotations

import inspect
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from dpeval.analysis.figures import components, memory, scaling, steps, style, throughput, waterfall
from dpeval.analysis.figures.figure_data import Drawing, FigureData
from dpeval.errors import ConfigError, UnsupportedError, nearest
from dpeval.util.cpus import allowed_cpus
from dpeval.util.importing import locate


@dataclass(frozen=True)
class Plot:
    """A figure that can be drawn."""

    stem: str
    """Its name, and the name of its files without their ending."""
    title: str
    draw: Callable[[FigureData], Drawing]
    """Raises :class:`~dpeval.errors.UnsupportedError` where the data do not suffice."""


@dataclass(frozen=True)
class FigureInfo:
    """One figure of the catalogue: drawn, or the reason why not."""

    stem: str
    """File name without its ending."""
    title: str
    alt: str = ""
    """What the figure shows, in words."""
    why_not: str = ""
    """What the data lack; empty where the figure was drawn."""
    columns: float = 1
    """Its width, in columns of the grid."""

    @property
    def drawn(self) -> bool:
        return not self.why_not


_MOST_WORKERS = 4
CATALOGUE = (
    Plot("time_components", "Where the time of a step goes", components.time_components),
    Plot("throughput_cpu", "Throughput over CPU devices", throughput.over_cores),
    Plot("throughput_gpu", "Throughput over GPUs, by batch", throughput.over_gpus),
    Plot("speedup", "Speedup against the ideal", scaling.speedup),
    Plot("efficiency", "Parallel efficiency", scaling.efficiency_map),
    Plot("waterfall", "Where the efficiency goes", waterfall.waterfall),
    Plot("best_devices", "Best device count of each batch", throughput.best_devices),
    Plot("step_times", "Step times of each run", steps.distribution),
    Plot("timeline", "One step across ranks", steps.timeline),
    Plot("memory", "Memory of the fullest rank", memory.memory),
)


def find_plot(name: str) -> Plot:
    """The figure of that name in the catalogue, or ``package.module.function`` from anywhere.

    Such a function takes a :class:`FigureData` and returns a :class:`Drawing`; its name becomes
    the name of the files, and the first line of its docstring the title.

    Raises:
        ConfigError: there is no such figure, module or function.
    """
    known = {plot.stem: plot for plot in CATALOGUE}
    if name in known:
        return known[name]
    if "." not in name:
        raise ConfigError(
            f"there is no figure '{name}'{nearest(name, known)}; there are {', '.join(known)}, "
            "and package.module.function for one of your own"
        )
    found = locate(name, key="figure")
    stem = name.rpartition(".")[2]
    if stem in known:
        raise ConfigError(f"figure={name} would overwrite dpeval's own figure '{stem}'; rename it")
    title = (inspect.getdoc(found) or stem.replace("_", " ")).splitlines()[0].rstrip(".")
    return Plot(stem, title, found)


def draw(plot: Plot, figure_data: FigureData) -> Figure:
    """Draw one figure, without a file.

    Raises:
        UnsupportedError: the data do not suffice.
    """
    with style.styled():
        return plot.draw(figure_data).figure


def draw_all(figure_data: FigureData, out: Path, own: Sequence[Plot] = ()) -> list[FigureInfo]:
    """Draw every figure that `figure_data` supports into `out`, several at a time.

    Args:
        figure_data: what the figures draw.
        out: an existing folder.
        own: figures to draw after those of the catalogue.

    Raises:
        OSError: `out` cannot be written.
    """
    plots = [*CATALOGUE, *own]
    save = partial(_save, figure_data, out)
    workers = min(_MOST_WORKERS, len(allowed_cpus())) if sys.platform == "linux" else 1
    if workers == 1:
        return [save(plot) for plot in plots]
    # Forked: other ways of starting would run the caller's main script again.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        return list(pool.map(save, plots))


def _save(figure_data: FigureData, out: Path, plot: Plot) -> FigureInfo:
    with style.styled():
        try:
            drawing = plot.draw(figure_data)
        except UnsupportedError as lack:
            return FigureInfo(plot.stem, plot.title, why_not=str(lack))
        style.save(drawing.figure, out, plot.stem)
        columns = drawing.figure.get_figwidth() / style.COLUMN
        return FigureInfo(plot.stem, plot.title, alt=drawing.alt, columns=columns)
