"""The real command in a process of its own, and its records."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from dpeval import record
from dpeval.record.schema import Record
from tests.multiprocess.announcing import PREFIX

ROOT = Path(__file__).resolve().parents[2]
CALIBRATED = (
    "model=calibrated", "dataset=calibrated", "measure=quick", "measure.min_steps=6",
    "analyze=false",
)  # fmt: skip
"""Sleeps instead of computing, so that many ranks fit on few cores and times are known."""
ANNOUNCING = (*CALIBRATED, "model._target_=tests.multiprocess.announcing.build")
"""The same, for :func:`ranks_of`."""


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
        out, err = process.communicate(timeout=540)
        return Finished(process.returncode, out, err, tmp_path)

    return run


def descendants(pid: int) -> list[psutil.Process]:
    """Every living process below `pid`."""
    return list(psutil.Process(pid).children(recursive=True))


def ranks_of(
    process: subprocess.Popen[str], folder: Path, count: int, timeout_s: float = 150.0
) -> list[psutil.Process]:
    """The `count` ranks of ``ANNOUNCING`` that `process` started in `folder`, once all have
    trained for long enough that there is something to keep."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s and process.poll() is None:
        pids = [int(path.name.removeprefix(PREFIX)) for path in folder.glob(f"{PREFIX}*")]
        if len(pids) == count:
            return [psutil.Process(pid) for pid in sorted(pids)]
        time.sleep(0.05)
    raise AssertionError(f"no {count} ranks of {process.pid} trained within {timeout_s} s")


def wait_for_none(processes: list[psutil.Process], timeout_s: float = 60.0) -> None:
    """All of `processes` end by themselves."""
    deadline_s = time.monotonic() + timeout_s
    left = processes
    while (left := [process for process in left if lives(process)]) and (
        time.monotonic() < deadline_s
    ):
        time.sleep(0.05)
    assert not left, f"orphans: {left}"


def lives(process: psutil.Process) -> bool:
    """Whether `process` runs; one that nobody has reaped yet does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
