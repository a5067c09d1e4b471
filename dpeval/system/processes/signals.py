"""Signals that ask this process to stop: collected, deferred, or turned into KeyboardInterrupt."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from dpeval.errors import DpevalError

STOP_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGXCPU,
)
"""From Ctrl-C, a scheduler, a dropped connection, a CPU time limit: all stop the work cleanly."""
_ALWAYS = (signal.SIGINT, signal.SIGTERM)
"""Handled even if the parent process ignores them. nohup ignores SIGHUP on purpose, so it is not
here."""

_Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


class _Collector:
    """The handler that :func:`stop_signals` installs."""

    def __init__(self) -> None:
        self.received: list[str] = []

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        # When a connection drops, the kernel and the shell may both send it: count it once.
        if number != signal.SIGHUP or name not in self.received:
            self.received.append(name)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[str]]:
    """Collect the names of stop signals instead of being terminated by them.

    Inside another such context, the same list is yielded.
    """
    around = signal.getsignal(signal.SIGTERM)
    if isinstance(around, _Collector):
        yield around.received
        return
    collector = _Collector()
    with _handled_by(collector):
        yield collector.received


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """Raise KeyboardInterrupt on every stop signal, as Python does on Ctrl-C.

    It is raised again where a library has replaced it by an error of its own.
    """
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.default_int_handler(number, frame)

    with _handled_by(interrupt):
        try:
            yield
        except Exception as error:
            if received and not isinstance(error, DpevalError):
                raise KeyboardInterrupt from error
            raise


@contextlib.contextmanager
def _handled_by(handler: _Handler) -> Iterator[None]:
    previous: dict[signal.Signals, _Handler] = {}
    try:
        for number in STOP_SIGNALS:
            before = signal.getsignal(number)
            if number in _ALWAYS or before is not signal.SIG_IGN:
                previous[number] = signal.signal(number, handler)
    except ValueError:
        # Only the main thread can set signal handlers; other threads leave them to their caller.
        previous = {}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextlib.contextmanager
def unsent_to_children() -> Iterator[None]:
    """Start child processes here to which stop signals are never delivered.

    A terminal and some schedulers signal a whole process group. The signals are blocked rather
    than ignored, so that one for this process is delivered when the context ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
