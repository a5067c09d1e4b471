"""The scheduler's warning before it ends a job, turned into an orderly end of the run."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from dpeval.run import forkserver


@contextlib.contextmanager
def told_to_end() -> Iterator[list[str]]:
    """Turn the scheduler's early warning (USR2) into the stop that a run already understands.

    The fork server is started while USR2 is ignored: it keeps that over its exec, and so do the
    ranks; where the scheduler signals every process of a job they would die of it otherwise.
    """
    stops: list[str] = []

    def warn(number: int, _frame: FrameType | None) -> None:
        stops.append(signal.Signals(number).name)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    forkserver.warm_up()
    previous = signal.signal(signal.SIGUSR2, warn)
    # After a preemption SLURM sends CONT and TERM; submitit has bent both to nothing.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    try:
        yield stops
    finally:
        signal.signal(signal.SIGUSR2, previous)
