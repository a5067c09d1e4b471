"""Makes the data, figures and terminal pictures of the documentation, with dpeval itself.

    python docs/illustrations.py

The CPU records are those of ``tests/unit/golden``. ``pages/data/h200_steps.csv`` holds every step
of the five runs of ``pages/gpu``, whose records are not part of the repository.
"""

from __future__ import annotations

import csv
import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from dpeval import record
from dpeval.record.schema import Record

PAGES = Path(__file__).parent / "pages"
DATA, IMAGES = PAGES / "data", PAGES / "images"
GOLDEN = PAGES.parents[1] / "tests" / "unit" / "golden"
HEAD = ("size", "rank", "batch_size", "loading_time", "computation_time")
COLUMNS, LINES = 118, 50
FIRST_STEPS = 20
"""How many steps a naive mean takes, the first included."""
_REMOTE_FONT = re.compile(r"@font-face \{.*?\}\s*", re.S)

Row = tuple[object, ...]


def cpu_records() -> list[Record]:
    """The measured runs of one small sweep: two batches on one and two cores, each twice."""
    found = [record.read(path) for path in sorted(GOLDEN.glob("*/metrics.json"))]
    return [one for one in found if one.status == "ok"]


def rows(run: Record, steps: slice) -> Iterator[Row]:
    """What a script that times these steps would print: one row per rank, mean times in s."""
    for rank in run.ranks:
        taken = [series[steps] for series in (rank.phase_s["data"], rank.step_s)]
        data_s, step_s = (sum(part) / len(part) for part in taken)
        shown = (f"{data_s:.6f}", f"{step_s - data_s:.6f}")
        yield (len(run.ranks), rank.rank, run.config["batch"], *shown)


def main_window(run: Record) -> slice:
    """The measured steps of a run."""
    assert run.window is not None
    return slice(run.window.first, run.window.first + run.window.steps)


def tables(runs: Iterable[Record]) -> dict[str, tuple[tuple[str, ...], list[Row]]]:
    """The study's tables: name to heading and rows."""
    runs = list(runs)
    first = [row for run in runs for row in rows(run, slice(0, 1))]
    steady = [row for run in runs for row in rows(run, main_window(run))]
    cold = [
        row
        for run in runs
        for row in rows(run, slice(0, 1) if len(run.ranks) == 1 else main_window(run))
    ]
    twice = [
        ("AB"[run.repetition], *row)
        for run in runs
        if len(run.ranks) == 2 and run.config["batch"] == 8
        for row in rows(run, main_window(run))
    ]
    return {
        "first_step": (HEAD, first),
        "steady": (HEAD, steady),
        "cold_baseline": (HEAD, cold),
        "same_twice": (("variant", *HEAD), twice),
    }


def write_tables() -> None:
    """Write the tables beside the page that shows them."""
    for name, (head, body) in tables(cpu_records()).items():
        with (DATA / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([head, *body])


def analyzed(arguments: list[str], out: Path) -> str:
    """What ``dpeval analyze`` prints on a terminal of :data:`COLUMNS` columns."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    command = [sys.executable, "-m", "dpeval", "analyze", *arguments, "--out", str(out)]
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    process = subprocess.Popen(command, stdout=child, stderr=child, env=environment)
    os.close(child)
    said = bytearray()
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        said += part
    if process.wait():
        raise RuntimeError(said.decode())
    return said.decode().replace("\r\n", "\n")


def terminal_picture(command: str, said: str, target: Path) -> None:
    """Draw a terminal with `command` and what it printed, as SVG without remote fonts."""
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(Text(f"$ {command}", style="bold"))
    console.print(Text.from_ansi(said))
    svg = console.export_svg(title="dpeval", unique_id="dpeval")
    target.write_text(_REMOTE_FONT.sub("", svg))


def main() -> None:
    """Make everything anew."""
    for folder in (DATA, IMAGES):
        folder.mkdir(exist_ok=True)
    write_tables()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sweep = folder / "outputs"
        for path in GOLDEN.glob("[0-9]*/metrics.json"):
            shutil.copytree(path.parent, sweep / path.parent.name)
        said = analyzed([str(sweep)], folder / "analysis")
        shown = said.replace(str(folder / "analysis"), "outputs/default/SWEEP/analysis")
        command = "python -m dpeval.analyze outputs/default/SWEEP"
        terminal_picture(command, shown, IMAGES / "sweep_end.svg")
        for table in ("first_step", "steady", "cold_baseline"):
            analyzed(["--from-csv", str(DATA / f"{table}.csv")], folder / table)
            shutil.copy(folder / table / "speedup.png", IMAGES / f"speedup_{table}.png")
        for figure in ("step_times", "throughput_cpu"):
            shutil.copy(folder / "analysis" / f"{figure}.png", IMAGES / f"{figure}.png")


if __name__ == "__main__":
    main()
