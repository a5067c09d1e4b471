"""The real command in a process of its own, and its records."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from dpeval import record
from dpeval.record import Record

ROOT = Path(__file__).resolve().parents[2]
CALIBRATED = ("model=calibrated", "dataset=calibrated", "measure=quick", "analyze=false")
"""Sleeps instead of computing, so that many ranks fit on few cores and times are known."""


@dataclass(frozen=True)
class Finished:
    """A command that has ended, with what it left."""

    status: int
    out: str
    err: str
    folder: Path

    @property
    def records(self) -> list[Record]:
        paths = self.folder.glob("outputs/**/metrics.json")
        return [record.read(path) for path in sorted(paths, key=_number)]

    @property
    def record(self) -> Record:
        (only,) = self.records
        return only


def _number(path: Path) -> tuple[str, int]:
    name = path.parent.name
    return (str(path.parent.parent), int(name)) if name.isdigit() else (str(path.parent), 0)


@pytest.fixture
def environment(data_root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "DPEVAL_DATA": str(data_root)}


@pytest.fixture
def start(
    tmp_path: Path, environment: dict[str, str]
) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``dpeval.train`` and leave it running; what is left of it at the end is ended."""
    started: list[subprocess.Popen[str]] = []

    def run(*overrides: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "dpeval.train", *overrides],
            cwd=tmp_path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture
def train(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> Callable[..., Finished]:
    """Run ``dpeval.train`` to its end."""

    def run(*overrides: str) -> Finished:
        process = start(*overrides)
        out, err = process.communicate(timeout=240)
        return Finished(process.returncode, out, err, tmp_path)

    return run


def descendants(pid: int) -> list[psutil.Process]:
    """Every living process below `pid`."""
    return list(psutil.Process(pid).children(recursive=True))


def ranks_of(pid: int, count: int, timeout_s: float = 60.0) -> list[psutil.Process]:
    """The `count` rank processes below `pid`, once all of them train."""
    import time

    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        # A rank leads its own process group; the forkserver and its tracker do not.
        found = [child for child in descendants(pid) if os.getpgid(child.pid) == child.pid]
        if len(found) == count and all(child.num_threads() > 1 for child in found):
            time.sleep(2.0)
            return sorted(found, key=lambda child: child.pid)
        time.sleep(0.05)
    raise AssertionError(f"no {count} ranks below {pid} within {timeout_s} s")


def wait_for_none(processes: list[psutil.Process], timeout_s: float = 10.0) -> None:
    """All of `processes` end by themselves."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    left = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert not left, f"orphans: {left}"
