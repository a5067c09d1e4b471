"""Every figure of an analysis, each as PNG, SVG and PDF.

A figure that the data cannot support is not drawn, and its entry says why.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from dpeval.analysis.figures import components, memory, scaling, steps, style, throughput, waterfall
from dpeval.analysis.figures.figure_data import Drawing, Models, Sheet, UnsupportedError
from dpeval.errors import MachineError
from dpeval.util.cpus import allowed_cpus

__all__ = ["FigureInfo", "Models", "Sheet", "draw_all"]


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

    @property
    def drawn(self) -> bool:
        return not self.why_not


_MOST_WORKERS = 4
_inherited: tuple[Sheet, Path]
"""What a worker of the pool draws from and where to; set there alone, once."""
_CATALOGUE: tuple[tuple[str, str, Callable[[Sheet], Drawing]], ...] = (
    ("time_components", "Where the time of a step goes", components.time_components),
    ("throughput_cpu", "Throughput over CPU devices", throughput.over_cores),
    ("throughput_gpu", "Throughput over GPUs, by batch", throughput.over_gpus),
    ("speedup", "Speed-up against the ideal", scaling.speedup),
    ("efficiency", "Parallel efficiency", scaling.efficiency_map),
    ("waterfall", "What efficiency is lost to", waterfall.waterfall),
    ("best_devices", "Best device count of each batch", throughput.best_devices),
    ("step_times", "Step times of each run", steps.distribution),
    ("timeline", "One step across ranks", steps.timeline),
    ("memory", "Memory of the fullest rank", memory.memory),
)


def draw_all(sheet: Sheet, out: Path) -> list[FigureInfo]:
    """Draw every figure that `sheet` supports into `out`, an existing folder.

    Figures are drawn side by side where there are cores: in forked processes, which inherit the
    sheet instead of unpickling it.

    Raises:
        MachineError: a process was killed.
        OSError: `out` cannot be written.
    """
    workers = min(_MOST_WORKERS, len(allowed_cpus())) if sys.platform == "linux" else 1
    if workers == 1:
        return [_draw(sheet, out, *entry) for entry in _CATALOGUE]
    context = multiprocessing.get_context("fork")
    try:
        with ProcessPoolExecutor(workers, context, _inherit, (sheet, out)) as pool:
            return list(pool.map(_draw_inherited, range(len(_CATALOGUE))))
    except BrokenProcessPool as error:
        raise MachineError("a process that draws figures was killed; is memory short?") from error


def _inherit(sheet: Sheet, out: Path) -> None:
    global _inherited
    _inherited = sheet, out


def _draw_inherited(position: int) -> FigureInfo:
    sheet, out = _inherited
    return _draw(sheet, out, *_CATALOGUE[position])


def _draw(
    sheet: Sheet, out: Path, stem: str, title: str, draw: Callable[[Sheet], Drawing]
) -> FigureInfo:
    with style.styled():
        try:
            drawing = draw(sheet)
        except UnsupportedError as lack:
            return FigureInfo(stem, title, why_not=str(lack))
        style.save(drawing.figure, out, stem)
        return FigureInfo(stem, title, alt=drawing.alt)
