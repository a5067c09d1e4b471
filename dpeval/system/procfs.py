"""Reading what the kernel tells in /proc and /sys, of this host or of a copied tree."""

from __future__ import annotations

import contextlib
import os
from io import FileIO
from pathlib import Path

ROOT = Path("/")
_ENOUGH = 1 << 16


def read_text(path: Path) -> str:
    """The file's text; empty where it is not there or must not be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


class KernelFile:
    """A file of the kernel that is read again and again, a tenth as dear as opening it anew.

    It stays with the process that it was opened for: another one with its number is not read.
    """

    def __init__(self, path: Path) -> None:
        self._file: FileIO | None = None
        with contextlib.suppress(OSError):
            self._file = path.open("rb", buffering=0)

    def read(self) -> str:
        """The text as it is now (at most 64 KiB); empty where it cannot be read."""
        if self._file is None:
            return ""
        try:
            return os.pread(self._file.fileno(), _ENOUGH, 0).decode(errors="replace")
        except OSError:
            return ""

    def close(self) -> None:
        """Let go of the file; it reads as empty from then on."""
        if self._file is not None:
            self._file.close()
            self._file = None
