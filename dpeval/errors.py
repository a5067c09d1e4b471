"""The errors that dpeval raises on purpose.

::

    DpevalError               exit status 1
    ├── ConfigError           2    a key, type, name or value of the configuration
    │   └── ModelError        2    the user's model cannot be built or trained
    ├── MachineError          2    the machine lacks devices, memory or a backend
    ├── DataError             2    a dataset is missing, damaged or cannot be prepared
    ├── RecordError           2    a metrics.json cannot be read
    ├── UnsupportedError      2    the records lack what a figure or function needs
    ├── SlowerError           3    a sweep is slower than its reference
    ├── LaunchError           1    a scheduler refused or lost a submission
    ├── RunFailed             1    a run ended without a measurement
    ├── RunInterrupted      130    the user or the scheduler stopped the work
    └── NoForecast            1    memory cannot be forecast; always caught

A message says what was asked, what is wrong, and what to do next. It is printed on one line,
without a traceback. Any other exception is a bug and ends with a traceback."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class DpevalError(Exception):
    """Base class; ``exit_status`` is the exit status of the command that it ends."""

    exit_status = 1


class ConfigError(DpevalError):
    """A key, type, name or value in the configuration cannot be used."""

    exit_status = 2


class ModelError(ConfigError):
    """The user's model fails when it is built, or returns nothing that can be trained.

    In a sweep, only the runs with this model fail."""


class MachineError(DpevalError):
    """The machine lacks something that the run requires (devices, memory, a backend)."""

    exit_status = 2


class DataError(DpevalError):
    """A dataset is missing, damaged or cannot be prepared."""

    exit_status = 2


class RecordError(DpevalError):
    """A ``metrics.json`` cannot be read as a record of any known version."""

    exit_status = 2


class RunFailed(DpevalError):
    """A run ended without a measurement; its record holds the cause."""

    exit_status = 1


class RunInterrupted(DpevalError):
    """The user or the scheduler stopped the work; the steps measured so far are recorded."""

    exit_status = 130


class UnsupportedError(DpevalError):
    """The records lack something that a figure or function needs; the message names it."""

    exit_status = 2


class SlowerError(DpevalError):
    """A sweep is slower than its reference by more than the tolerance."""

    exit_status = 3


class LaunchError(DpevalError):
    """A scheduler refused or lost a submission."""

    exit_status = 1


class NoForecast(DpevalError):
    """Memory cannot be forecast: the model or optimizer needs something fake tensors do not
    have."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest of `choices`, or ``""``."""
    match = get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, 200 characters at most."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def users_line(error: BaseException) -> str:
    """``" (model.py, line 3)"``: the innermost line of the user's own code that led to `error`.

    Empty if only dpeval, installed packages and Python took part.
    """
    frame = _users_frame(error)
    return "" if frame is None else f" ({Path(frame.filename).name}, line {frame.lineno})"


def _users_frame(error: BaseException) -> traceback.FrameSummary | None:
    others = (str(Path(__file__).parent), sysconfig.get_path("stdlib"), "<")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        is_installed = {"site-packages", "dist-packages"} & set(Path(frame.filename).parts)
        if not is_installed and not frame.filename.startswith(others):
            return frame
    return None


def raised_at(error: BaseException, caller: str = "") -> str:
    """``" (model.py, line 3)"``: where `error` was raised, or what a SyntaxError is about.

    That is a line of the user's own code, where there is one. Empty if the file `caller` itself
    raised it, so that no other code is at fault.
    """
    frame = _users_frame(error) or traceback.extract_tb(error.__traceback__)[-1]
    file, line = frame.filename, frame.lineno
    if isinstance(error, SyntaxError):
        file, line = error.filename or file, error.lineno or line
    return "" if caller and Path(file) == Path(caller) else f" ({Path(file).name}, line {line})"
