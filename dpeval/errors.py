"""The one hierarchy of errors that dpeval raises on purpose.

A message says what was asked, what is the case, and what to do next. Anything that is
not a :class:`DpevalError` is a bug and ends in a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class DpevalError(Exception):
    """Base class; ``exit_status`` is what the command line returns for it."""

    exit_status = 1


class ConfigError(DpevalError):
    """A key, type, name or value in the configuration is not usable."""

    exit_status = 2


class MachineError(DpevalError):
    """The machine lacks what the run asks for (devices, memory, a backend)."""

    exit_status = 2


class DataError(DpevalError):
    """A data set is absent, damaged, or cannot be prepared."""

    exit_status = 2


class RecordError(DpevalError):
    """A ``metrics.json`` cannot be read as a record of any known version."""

    exit_status = 2


class RunFailed(DpevalError):
    """A run ended without a measurement; its record says why."""

    exit_status = 1


class RunInterrupted(DpevalError):
    """The user or the scheduler ended the work; what was measured is recorded."""

    exit_status = 130


class UnsupportedError(DpevalError):
    """The records do not hold what a figure needs; the message says what is lacking."""

    exit_status = 2


class SlowerError(DpevalError):
    """A sweep is slower than another by more than is allowed."""

    exit_status = 3


class LaunchError(DpevalError):
    """A scheduler refused or lost a submission."""

    exit_status = 1


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest of `choices`, or ``""``."""
    match = get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else ""
