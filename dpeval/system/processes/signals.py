"""Signals that ask this process to stop: collected, deferred, or turned into KeyboardInterrupt."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

STOP_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGXCPU,
)
"""Ctrl-C, a scheduler, a dropped connection, a limit of processor time: all end in order."""
_ALWAYS = (signal.SIGINT, signal.SIGTERM)
"""Handled even where the parent process ignores them; nohup, for one, ignores SIGHUP on purpose."""

_Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


class _Collector:
    """The handler that :func:`stop_signals` installs."""

    def __init__(self) -> None:
        self.received: list[str] = []

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        # When a connection drops, the kernel and the shell may both send it: no second request.
        if number != signal.SIGHUP or name not in self.received:
            self.received.append(name)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[str]]:
    """Collect the names of stop signals instead of being terminated by them.

    In a context of this kind, the same list is yielded again.
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
    """Raise KeyboardInterrupt on every stop signal, as Python does on Ctrl-C."""
    with _handled_by(signal.default_int_handler):
        yield


@contextlib.contextmanager
def _handled_by(handler: _Handler) -> Iterator[None]:
    previous: dict[signal.Signals, _Handler] = {}
    try:
        for number in STOP_SIGNALS:
            before = signal.getsignal(number)
            if number in _ALWAYS or before is not signal.SIG_IGN:
                previous[number] = signal.signal(number, handler)
    except ValueError:
        # Only the main thread can set signal handlers; elsewhere the caller has its own.
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
