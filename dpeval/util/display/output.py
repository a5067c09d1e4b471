"""Standard streams that never break a command, even if closed, without a reader, or ASCII-only."""

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
"""Replacements for terminals that lack these characters; others become a question mark."""
ERRORS = "dpeval"
"""Name of the error handler that replaces characters."""


def protect() -> None:
    """Make standard output and error streams whose writes never fail.

    Closed descriptors are opened on ``/dev/null`` first; otherwise the next file to be opened would
    take their number and receive the output.
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
    """A stream that continues without its file once the file cannot be written."""

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
        """Discard further output; say why, unless the reader has simply closed the pipe."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            super().flush()
        has_left = error.errno in (errno.EPIPE, errno.EIO)
        if not has_left and self is not sys.stderr and sys.stderr is not None:
            print(
                f"dpeval: standard output cannot be written ({error.strerror}); continuing",
                file=sys.stderr,
            )
