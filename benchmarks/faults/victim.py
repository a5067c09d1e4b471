"""A real sweep of two runs, the faults that it suffers, and what it leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.faults.drawing import PAUSE_S, Fault, Phase

ROOT = Path(__file__).resolve().parents[2]
RUNS = 2
SWEEP = (
    "-m", "model=calibrated", "dataset=calibrated", "measure=quick", "measure.time_limit_s=4",
    "measure.max_steps=60", "measure.conditions=false", "measure.ablation=false", "analyze=false",
    "num_devices=2", "hardware.oversubscribe=true", "batch=4,8", "study=faults",
)  # fmt: skip
_LONGEST_S = 180.0
"""Of a sweep without a fault, on a loaded machine."""


@dataclass
class Victim:
    """One sweep in a folder of its own."""

    folder: Path
    process: subprocess.Popen[str]
    session: int
    """Every process that it starts is in this session."""
    hit_s: float = field(default=0.0)
    """When the fault was injected, on the monotonic clock; 0: not yet."""
    ended_s: float = 0.0

    @property
    def sweep(self) -> Path:
        return self.folder / "sweep"

    @property
    def err(self) -> str:
        return (self.folder / "log").read_text(errors="replace")


def start(folder: Path, overrides: Sequence[str] = (), *, file_blocks: int | None = None) -> Victim:
    """Start the sweep in `folder`.

    Args:
        folder: is made; holds the sweep, its log and its temporary folder.
        overrides: further overrides.
        file_blocks: the most KiB that it may write to one file.
    """
    temporary = folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "dpeval.train", *SWEEP, f"hydra.sweep.dir={folder / 'sweep'}"]
    if file_blocks is not None:
        limit = f'ulimit -f {file_blocks}; exec "$@"'
        command = ["bash", "-c", limit, "bash", *command]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, *overrides],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    return Victim(folder, process, process.pid)


def inject(victim: Victim, fault: Fault) -> bool:
    """Wait for the fault's moment and inject it; return whether the sweep still ran then."""
    if not _await(victim, fault.phase):
        return False
    time.sleep(fault.after_s)
    targets = _targets(victim, fault)
    if victim.process.poll() is not None or not targets:
        return False
    victim.hit_s = time.monotonic()
    if fault.kind == "PAUSE":
        _send(targets, signal.SIGSTOP)
        time.sleep(PAUSE_S)
        _send(targets, signal.SIGCONT)
    else:
        _send(targets, signal.Signals[fault.kind])
    return True


def finish(victim: Victim) -> bool:
    """Wait for the sweep to end; return whether it did."""
    try:
        victim.process.wait(_LONGEST_S)
    except subprocess.TimeoutExpired:
        for process in left_of(victim):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        victim.process.wait()
        return False
    victim.ended_s = time.monotonic()
    return True


def left_of(victim: Victim) -> list[psutil.Process]:
    """Every living process of the sweep."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess, PermissionError):
            process = psutil.Process(pid)
            if os.getsid(pid) == victim.session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _await(victim: Victim, phase: Phase) -> bool:
    deadline_s = time.monotonic() + _LONGEST_S
    while not _has_begun(victim, phase):
        if victim.process.poll() is not None or time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def _has_begun(victim: Victim, phase: Phase) -> bool:
    if phase == "import":
        return True
    if phase == "starting":
        return (victim.sweep / "0" / "job.json").exists()
    if phase == "measuring":
        return len(_ranks(victim)) == 2
    return (victim.sweep / "0" / "metrics.json").exists()


def _ranks(victim: Victim) -> list[psutil.Process]:
    """The ranks, each of which leads a process group of its own."""
    return [
        process
        for process in left_of(victim)
        if process.pid != victim.session and os.getpgid(process.pid) == process.pid
    ]


def _targets(victim: Victim, fault: Fault) -> list[int]:
    with contextlib.suppress(ProcessLookupError):
        if fault.target == "rank":
            ranks = _ranks(victim)
            return [ranks[fault.number % len(ranks)].pid] if ranks else []
        if fault.target == "group":
            return [-victim.session]
        if fault.target == "helper":
            # Not Python's own resource tracker, whose loss its successor tells in tracebacks.
            own = [
                process.pid
                for process in left_of(victim)
                if process.ppid() == victim.session
                and "resource_tracker" not in " ".join(process.cmdline())
            ]
            return own[fault.number % len(own) :][:1] if own else []
        return [victim.process.pid]
    return []


def _send(targets: Sequence[int], number: signal.Signals) -> None:
    for pid in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
