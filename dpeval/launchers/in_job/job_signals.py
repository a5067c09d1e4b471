"""Turn a scheduler's warning before the time limit into an orderly stop of the run."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from dpeval.system.processes.signals import STOP_SIGNALS

_HELD = frozenset({signal.SIGUSR2, *STOP_SIGNALS})


def hold() -> None:
    """Keep the signals that stop a job pending until :func:`deliver`.

    Until a run can end in order, submitit's handlers or the default would end the job without a
    record or with a traceback.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)


def deliver() -> None:
    """Let the signals that :func:`hold` keeps take effect."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)


@contextlib.contextmanager
def stop_on_warning() -> Iterator[list[str]]:
    """Turn the scheduler's early warning (USR2) into SIGTERM, which stops a run in order.

    Yields the names of the warnings received so far. The ranks ignore USR2, see
    :func:`dpeval.run.forkserver.warm_up`.
    """
    stops: list[str] = []

    def warn(number: int, _frame: FrameType | None) -> None:
        stops.append(signal.Signals(number).name)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGUSR2, warn)
    # SLURM preempts with CONT and TERM, and submitit ignores both: restore their effect.
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    try:
        yield stops
    finally:
        # The job is about to end by itself: let it finish its record.
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
