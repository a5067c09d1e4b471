"""Read /proc and /sys, of this host or of a copied tree."""

from __future__ import annotations

import contextlib
import os
from io import FileIO
from pathlib import Path

ROOT = Path("/")
_MAX_BYTES = 1 << 16


def read_text(path: Path) -> str:
    """The file's text; empty if it is missing or not readable."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


class KernelFile:
    """A kernel file that is read repeatedly, at a tenth of the cost of reopening it.

    It stays bound to the process for which it was opened, even if the process id is reused.
    """

    def __init__(self, path: Path) -> None:
        self._file: FileIO | None = None
        with contextlib.suppress(OSError):
            self._file = path.open("rb", buffering=0)

    def read(self) -> str:
        """The current text (at most 64 KiB); empty if it cannot be read."""
        if self._file is None:
            return ""
        try:
            return os.pread(self._file.fileno(), _MAX_BYTES, 0).decode(errors="replace")
        except OSError:
            return ""

    def close(self) -> None:
        """Close the file; from then on it reads as empty."""
        if self._file is not None:
            self._file.close()
            self._file = None
