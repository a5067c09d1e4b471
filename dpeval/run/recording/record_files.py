"""Saves records, whatever the file system does: a measurement cannot be repeated."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from pathlib import Path

from dpeval import record
from dpeval.record.schema import Record

_PAUSES_S = (0.1, 0.5, 0.0)
"""After a failed attempt to write a record; a network file system may recover."""


class RecordFiles:
    """Writes records, and remembers those that could not be written to their folder."""

    def __init__(self) -> None:
        self.elsewhere: dict[Path, Path | None] = {}
        """Where the record of each such folder is instead; None: it was printed."""

    def keep(self, made: Record, folder: Path) -> None:
        """Write `made` to `folder`, else to the temporary folder, else to standard output.

        A file system that refuses raises nothing: the other runs of a sweep go on."""
        path = folder / record.FILE_NAME
        error = _write(made, path)
        self.elsewhere.pop(folder, None)
        if error is None:
            return
        place = _second_place(made)
        self.elsewhere[folder] = place
        why = f"dpeval: cannot write the record to {path} ({error.strerror})"
        if place is not None:
            # A provisional record there would stand for this one, and keep it from its place.
            with contextlib.suppress(OSError):
                path.unlink()
            print(f"{why}; it was saved as {place}: copy it there", file=sys.stderr, flush=True)
            return
        print(f"{why} or to a temporary folder; here it is:", file=sys.stderr, flush=True)
        print(made.model_dump_json(), flush=True)


def keep_provisional(made: Record, folder: Path) -> None:
    """Write `made` to `folder` if that succeeds: another record will replace it."""
    with contextlib.suppress(OSError):
        record.write(made, folder / record.FILE_NAME)


def _write(made: Record, path: Path) -> OSError | None:
    """Write `made`; return the error of the last attempt if none succeeds."""
    failure: OSError | None = None
    for pause_s in _PAUSES_S:
        try:
            record.write(made, path)
        except OSError as error:
            failure = error
            time.sleep(pause_s)
        else:
            return None
    return failure


def _second_place(made: Record) -> Path | None:
    """Write `made` to the temporary folder; return where, or None if that fails too."""
    try:
        path = Path(tempfile.mkdtemp(prefix="dpeval-record-")) / record.FILE_NAME
        record.write(made, path)
    except OSError:
        return None
    return path
