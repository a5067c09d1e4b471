"""A process that has imported everything and forks one program per fault.

A sweep spends seconds on importing torch and Hydra, which no fault needs to see again. The forked
program is what ``python -m dpeval.train`` runs otherwise: it has a session, files and an
environment of its own, and ends as a Python process does.

Run as a module with a folder that it may use, it reads one JSON object a line (:class:`Request`),
and writes one a line: the pid of each program, then how it ended.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import importlib
import json
import os
import pickle
import resource
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Self

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, open_dict, read_write

MODULES = (
    "dpeval.commands.train_run",
    "dpeval.commands.sweep_status",
    "dpeval.launchers.in_job.run_job",
    "dpeval.run.session",
    "dpeval.run.console",
    "dpeval.sitting.sweep",
    "dpeval.components.calibrated",
    "dpeval.worker.script_rank",
    "submitit.core.submission",
    "torchvision",
    "scipy.special",
)
_PYTHON_NAMES = {
    "fsync": ("fsync",),
    "rename": ("rename", "replace"),
    "link": ("link",),
    "chmod": ("chmod",),
}
_TRACED_S = 10.0
"""How long a program waits for strace to hold it."""


@dataclass(frozen=True)
class Failing:
    """A call of the program's own process, not of its ranks, that is hit."""

    call: str
    at: int
    """Which of them, from 1."""
    error: str = ""
    """The errno that it and every later one return; empty: a signal arrives instead."""
    signal: str = ""
    once: bool = False
    """Only that one fails."""


@dataclass(frozen=True)
class Request:
    """One program."""

    key: int
    module: str
    """Whose function is called."""
    function: str
    arguments: list[str]
    folder: str
    log: str
    environment: dict[str, str]
    limits: dict[str, int] = field(default_factory=dict[str, int])
    """Of :mod:`resource`, such as RLIMIT_FSIZE."""
    failing: Failing | None = None
    traced: bool = False
    """Wait until a tracer holds the process."""
    skew_s: float = 0.0
    """How far the clock of the process, and of what it forks, is ahead."""

    @property
    def line(self) -> bytes:
        """As it is sent."""
        return json.dumps(asdict(self)).encode() + b"\n"


def main() -> None:
    """Serve requests until standard input ends; in a forked program, run it."""
    for name in MODULES:
        importlib.import_module(name)
    # Hydra's parser learns from what it has parsed.
    importlib.import_module("dpeval.commands.hydra_app").compose(["batch=4", "measure=quick"])
    _remember_compositions(Path(sys.argv[1]))
    _start_servers_by_fork()
    gc.collect()
    gc.freeze()  # what is imported is no garbage, and looking for some would copy its pages
    program = _serve()
    if program is not None:
        sys.exit(program())


def _remember_compositions(folder: Path) -> None:
    """Keep in `folder` what Hydra composes, so that only the first program spends 0.6 s on it.

    Programs that are started alike compose the same, but for their working directory.
    """
    compose = ConfigLoaderImpl._load_configuration_impl

    def remembered(loader: ConfigLoaderImpl, *arguments: Any, **named: Any) -> DictConfig:
        key = hashlib.sha256(repr((arguments, sorted(named.items()))).encode()).hexdigest()
        path = folder / key
        if not path.exists():
            made = compose(loader, *arguments, **named)
            new = path.with_name(f"{key}.{os.getpid()}")
            new.write_bytes(pickle.dumps(made))
            new.replace(path)
            return made
        found: DictConfig = pickle.loads(path.read_bytes())
        with read_write(found), open_dict(found):
            found.hydra.runtime.cwd = str(Path.cwd())
        return found

    setattr(ConfigLoaderImpl, compose.__name__, remembered)  # mypy refuses the assignment


def _start_servers_by_fork() -> None:
    """Fork the server of ranks, as a program does that has imported torch for it.

    One that takes the place of a dead one is a new Python, as usual.
    """
    from dpeval.run import forkserver

    start, first = forkserver._start, [forkserver._forking]

    def start_by_fork(way: AbstractContextManager[None]) -> None:
        start(first.pop()() if first else way)

    forkserver._start = start_by_fork


def _serve() -> Callable[[], Any] | None:
    """Answer requests; return what to run in a forked program, and None at the end."""
    keys: dict[int, int] = {}
    pending = b""
    is_open = True
    while is_open or keys:
        ready, _, _ = select.select([0] if is_open else [], [], [], 0.02)
        if ready:
            read = os.read(0, 1 << 16)
            is_open = bool(read)
            *lines, pending = (pending + read).split(b"\n")
            for line in lines:
                asked = json.loads(line)
                failing = asked.pop("failing")
                request = Request(**asked, failing=Failing(**failing) if failing else None)
                pid = os.fork()
                if pid == 0:
                    return _prepared(request)
                keys[pid] = request.key
                _say(key=request.key, pid=pid)
        while keys:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            _say(key=keys.pop(pid), status=os.waitstatus_to_exitcode(status))
    return None


def _say(**answer: int) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def _prepared(request: Request) -> Callable[[], Any]:
    """Make this fork what a new process would be; return its program."""
    os.setsid()
    log = os.open(request.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(log)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    tempfile.tempdir = None
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv[:] = [request.module, *request.arguments]
    program: Callable[[], Any] = getattr(importlib.import_module(request.module), request.function)
    if request.traced:
        _await_tracer()
    for name, value in request.limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    if request.failing is not None:
        _install(request.failing)
    if request.skew_s:
        _skew(request.skew_s)
    return program


def _await_tracer() -> None:
    deadline_s = time.monotonic() + _TRACED_S
    while "TracerPid:\t0\n" in Path("/proc/self/status").read_text():
        if time.monotonic() > deadline_s:
            raise TimeoutError("strace did not attach")
        time.sleep(0.01)


def _skew(ahead_s: float) -> None:
    """Set the clock that dpeval reads; those of the kernel and of files stay right."""
    right = time.time

    class Skewed(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) + timedelta(seconds=ahead_s)

    time.time = lambda: right() + ahead_s
    for name, module in list(sys.modules.items()):
        if name.startswith("dpeval.") and getattr(module, "datetime", None) is datetime:
            setattr(module, "datetime", Skewed)  # noqa: B010


def _install(failing: Failing) -> None:
    """Let the calls of this process fail, or be the moment of a signal, as `failing` says."""
    own, calls = os.getpid(), 0

    def hit(real: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        nonlocal calls
        if os.getpid() != own:  # a rank or the server of ranks
            return real(*arguments, **named)
        calls += 1
        if failing.signal and calls == failing.at:
            os.kill(own, signal.Signals[failing.signal])
        is_refused = calls == failing.at if failing.once else calls >= failing.at
        if failing.error and is_refused:
            number = getattr(errno, failing.error)
            raise OSError(number, os.strerror(number))
        return real(*arguments, **named)

    for name in _PYTHON_NAMES[failing.call]:
        real = getattr(os, name)
        setattr(os, name, lambda *args, _real=real, **named: hit(_real, *args, **named))


if __name__ == "__main__":
    main()
