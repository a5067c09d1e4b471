"""Every figure of an analysis, each as PNG, SVG and PDF.

A figure that the data cannot support is not drawn, and its entry says why.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from dpeval.analysis.figures import components, memory, scaling, steps, style, throughput, waterfall
from dpeval.analysis.figures.figure_data import Drawing, Models, Sheet, UnsupportedError
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

    Figures are drawn side by side where there are cores: in forked processes, as they all need
    the whole sheet.

    Raises:
        OSError: `out` cannot be written.
    """
    workers = min(_MOST_WORKERS, len(allowed_cpus())) if sys.platform == "linux" else 1
    if workers == 1:
        return [_draw(sheet, out, *entry) for entry in _CATALOGUE]
    context = multiprocessing.get_context("fork")
    turn = context.Value("i", 0)
    pipes, processes = [], []
    for _ in range(workers):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_take_turns, args=(sheet, out, turn, theirs))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    found: dict[int, FigureInfo] = {}
    failed: BaseException | None = None
    for pipe, process in zip(pipes, processes, strict=True):
        try:
            answer = pipe.recv()
        except EOFError:
            answer = RuntimeError("a process that draws figures died; is memory short?")
        process.join()
        if isinstance(answer, BaseException):
            failed = failed or answer
        else:
            found |= answer
    if failed is not None:
        raise failed
    return [found[position] for position in range(len(_CATALOGUE))]


def _take_turns(sheet: Sheet, out: Path, turn: Synchronized[int], pipe: Connection) -> None:
    """Draw the next figure that nobody has taken, until there is none; send what was drawn."""
    made: dict[int, FigureInfo] = {}
    try:
        while True:
            with turn.get_lock():
                position, turn.value = turn.value, turn.value + 1
            if position >= len(_CATALOGUE):
                break
            made[position] = _draw(sheet, out, *_CATALOGUE[position])
    except Exception as error:
        pipe.send(error)
    else:
        pipe.send(made)


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
