"""Every figure of an analysis, each as PNG, SVG and PDF.

A figure that the data cannot support is not drawn, and its entry says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dpeval.analysis.figures import components, memory, scaling, steps, style, throughput, waterfall
from dpeval.analysis.figures.sheet import Drawing, Models, Sheet, UnsupportedError

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

    Raises:
        OSError: `out` cannot be written.
    """
    found = []
    with style.styled():
        for stem, title, draw in _CATALOGUE:
            try:
                drawing = draw(sheet)
            except UnsupportedError as lack:
                found.append(FigureInfo(stem, title, why_not=str(lack)))
                continue
            style.save(drawing.figure, out, stem)
            found.append(FigureInfo(stem, title, alt=drawing.alt))
    return found
