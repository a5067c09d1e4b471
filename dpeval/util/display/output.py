"""Standard streams that never end a command: closed, without their reader, or with few letters."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys

APPROXIMATIONS = {
    "±": "+-", "…": "...", "–": "-", "—": "-", "−": "-", "×": "x", "µ": "u", "μ": "u", "≥": ">=",
    "≤": "<=", "≈": "~", "→": "->", "’": "'", "‘": "'", "“": '"', "”": '"', "·": "-", "•": "*",
    "²": "^2", "√": "sqrt ", "Δ": "d", "σ": "s",
}  # fmt: skip
"""What terminals show that lack these letters; anything else becomes a question mark."""
ERRORS = "dpeval"
"""The name of the way in which letters are replaced."""


def protect() -> None:
    """Make standard output and error streams whose writes never fail.

    Closed descriptors are opened on ``/dev/null`` first: the next file that is opened would take
    their number, and receive what is printed.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    codecs.register_error(ERRORS, _approximate)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _Lasting(_binary(descriptor), "utf-8", ERRORS, line_buffering=True))
        elif type(stream) is io.TextIOWrapper:
            with contextlib.suppress(OSError):
                stream.flush()
            lasting = _Lasting(
                _binary(stream.fileno()),
                stream.encoding,
                ERRORS,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, lasting)


def _binary(descriptor: int) -> io.BufferedWriter:
    return io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False))


def _approximate(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    return "".join(APPROXIMATIONS.get(letter, "?") for letter in found), error.end


class _Lasting(io.TextIOWrapper):
    """A stream that goes on without its file if that can no longer be written."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._go_on_without(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._go_on_without(error)

    def _go_on_without(self, error: OSError) -> None:
        """Let further output go nowhere; say why, unless the reader has just left."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            super().flush()
        has_left = error.errno in (errno.EPIPE, errno.EIO)
        if not has_left and self is not sys.stderr and sys.stderr is not None:
            print(
                f"dpeval: standard output cannot be written ({error.strerror}); going on without",
                file=sys.stderr,
            )
