"""The command line of ``dpeval.export``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dpeval.analysis.export.exporting import TOOLS, export
from dpeval.commands.main import run_main
from dpeval.util.display.plural import counted

MOST_PROBLEMS = 5


def run() -> int:
    """Run it; returns the exit status."""
    given = parser().parse_args()
    return run_main(lambda: _command(given.paths, given.to, given.out))


def _command(paths: list[Path], tool: str, out: Path | None) -> None:
    done = export(paths, tool, out)
    for problem in done.problems[:MOST_PROBLEMS]:
        print(f"left out: {problem}", file=sys.stderr)
    more = len(done.problems) - MOST_PROBLEMS
    if more > 0:
        print(f"left out: {more} more", file=sys.stderr)
    before = f"; {done.earlier} were there already" if done.earlier else ""
    print(f"{counted(done.runs, 'run')} written to {done.folder}{before}")
    print(f"look at them with: {done.look}")


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    made = argparse.ArgumentParser(
        prog="python -m dpeval.export",
        description="Write every record as a run of MLflow, TensorBoard or Weights & Biases. "
        "Nothing is sent anywhere.",
    )
    made.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="folders with records")
    made.add_argument("--to", required=True, choices=TOOLS, help="the tool to write for")
    made.add_argument("--out", type=Path, help="output folder (default: PATH/analysis/TOOL)")
    return made
