"""Programs of the campaign: forked from a :mod:`benchmarks.faults.zygote`, or started anew."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.faults.zygote import Failing, Request

ROOT = Path(__file__).resolve().parents[2]
SWEEP_PROGRAM = ("dpeval.train", "main")
LOOK_S = 0.03
"""How often a program is looked at."""


@dataclass
class Program:
    """A process that leads a session, in which everything that it starts is."""

    pid: int
    log: Path
    ended: threading.Event = field(default_factory=threading.Event)
    status: int | None = None
    """Its exit status; the negative number of a signal that killed it."""

    def wait(self, limit_s: float) -> bool:
        """Wait for its end; return whether it came within `limit_s`."""
        return self.ended.wait(limit_s)

    @property
    def is_running(self) -> bool:
        return not self.ended.is_set()

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def living(self) -> list[psutil.Process]:
        """Every living process of its session."""
        found = []
        for name in os.listdir("/proc"):  # noqa: PTH208
            if not name.isdigit():
                continue
            with contextlib.suppress(ProcessLookupError, psutil.Error, PermissionError):
                pid = int(name)
                if os.getsid(pid) == self.pid:
                    process = psutil.Process(pid)
                    if process.status() != psutil.STATUS_ZOMBIE:
                        found.append(process)
        return found

    def kill_all(self) -> None:
        """End every process of the session at once."""
        for process in self.living():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def send(self, number: signal.Signals) -> None:
        """Signal the program itself."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


class Zygote:
    """Starts programs that need no imports; safe to use from several threads."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="dpeval-zygote-")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.faults.zygote", self._folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self._keys = itertools.count()
        self._lock = threading.Lock()
        self._started: dict[int, threading.Event] = {}
        self._programs: dict[int, Program] = {}
        self._logs: dict[int, Path] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def start(
        self,
        folder: Path,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        program: tuple[str, str] = SWEEP_PROGRAM,
        log: str = "log",
        limits: Mapping[str, int] | None = None,
        failing: Failing | None = None,
        traced: bool = False,
        skew_s: float = 0.0,
    ) -> Program:
        """Fork one program.

        Args:
            folder: its working folder.
            arguments: its command line.
            environment: its variables.
            program: a module and the function in it that is called.
            log: the file in `folder` for what it prints.
            limits: of :mod:`resource`.
            failing: calls that are hit.
            traced: whether it waits for a tracer before it begins.
            skew_s: how far its clock is ahead.
        """
        assert self._process.stdin is not None
        request = Request(
            next(self._keys), *program, list(arguments), str(folder), str(folder / log),
            dict(environment), dict(limits or {}), failing, traced, skew_s,
        )  # fmt: skip
        started = self._started[request.key] = threading.Event()
        self._logs[request.key] = folder / log
        with self._lock:
            self._process.stdin.write(request.line)
            self._process.stdin.flush()
        if not started.wait(60):
            raise TimeoutError("the zygote does not answer")
        return self._programs[request.key]

    def close(self) -> None:
        """End the zygote; programs that it has started go on."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            key = answer["key"]
            if "pid" in answer:
                self._programs[key] = Program(answer["pid"], self._logs[key])
                self._started[key].set()
            else:
                self._programs[key].status = answer["status"]
                self._programs[key].ended.set()


def start_anew(
    folder: Path,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    before: Sequence[str] = (),
    log: str = "log",
) -> Program:
    """Start ``python -m dpeval.train`` as a user does.

    Args:
        folder: its working folder.
        arguments: its command line.
        environment: its variables.
        before: words before the command, such as ``unshare -n``.
        log: the file in `folder` for what it prints.
    """
    with (folder / log).open("a") as file:
        process = subprocess.Popen(
            [*before, sys.executable, "-m", "dpeval.train", *arguments],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    program = Program(process.pid, folder / log)

    def reap() -> None:
        program.status = process.wait()
        program.ended.set()

    threading.Thread(target=reap, daemon=True).start()
    return program


def environment_of(folder: Path) -> dict[str, str]:
    """The variables of a program in `folder`, with a temporary folder of its own."""
    temporary = folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    own = {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    return kept | own | {"DPEVAL_DATA": str(folder / "data")}


def awaited(condition: Callable[[], object], limit_s: float) -> bool:
    """Look at the callable `condition` until it holds; return whether it did in `limit_s`."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(LOOK_S)
    return True
