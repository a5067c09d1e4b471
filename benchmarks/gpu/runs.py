"""Runs of dpeval's own commands, as a user starts them, and their records."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.setting import Setting, environment
from dpeval.record.io import read
from dpeval.record.schema import Record


def train(setting: Setting, study: str, *overrides: str, multirun: bool = False) -> list[Record]:
    """The records of one call of ``python -m dpeval.train``, in the order of its runs.

    Args:
        setting: the hardware, and the folder that the records go to.
        study: name of the study.
        overrides: besides hardware and study.
        multirun: whether values with commas are lists of runs.
    """
    folder = setting.folder / "outputs" / study
    before = set(folder.rglob("metrics.json"))
    command = [sys.executable, "-m", "dpeval.train", *(["-m"] if multirun else [])]
    command += [setting.hardware, f"study={study}", *overrides]
    call(command, setting.folder, study)
    made = sorted(set(folder.rglob("metrics.json")) - before, key=_number)
    return [read(path) for path in made]


def _number(path: Path) -> tuple[str, int]:
    name = path.parent.name
    return (str(path.parent.parent), int(name)) if name.isdigit() else (str(path.parent), 0)


def call(command: list[str], folder: Path, log: str) -> int:
    """Run a command in `folder`; its output goes to a log there. Returns its exit status."""
    with (folder / f"{log}.log").open("ab") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        return subprocess.run(
            command, cwd=folder, env=environment(), stdout=output, stderr=output, check=False
        ).returncode
