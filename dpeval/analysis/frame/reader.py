"""Read records, in one process or several: one row each, or one line that says why not."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from dpeval import record
from dpeval.analysis.frame.row import row, text
from dpeval.errors import RecordError
from dpeval.util.cpus import allowed_cpus
from dpeval.util.display.units import MIB

Line = dict[str, Any] | str
"""A run's row, or why it has none."""

MOST_BYTES = 256 * MIB
"""A larger file is not a record: 100,000 steps of 100 ranks take less."""
PARALLEL_FROM = 2_000
"""One process reads fewer records just as fast."""
MOST_PROCESSES = 8
_CHUNK = 100
"""Records per task of a process."""


def parse(file: Path) -> Line:
    """The file's row, or one line that says why it has none."""
    try:
        if file.stat().st_size > MOST_BYTES:
            return text(f"{file}: larger than {MOST_BYTES >> 20} MiB, so not a record")
        return row(record.read(file), file.parent)
    except RecordError as error:
        return text(error)
    except (OSError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        # Its types are valid and its values are not: that must fail one record, never the analysis.
        return text(f"{file}: cannot be used ({type(error).__name__}: {error})")


def parse_all(files: Sequence[Path]) -> list[Line]:
    """One line for each of `files`, in order."""
    processes = min(len(allowed_cpus()), MOST_PROCESSES)
    if len(files) < PARALLEL_FROM or processes < 2:
        return [parse(file) for file in files]
    lines: list[Line] = []
    # Forked: other workers would run the caller's main script again, which may have no guard. Rows
    # accumulate here, and the garbage collector would visit all of them again and again.
    context = multiprocessing.get_context("fork")
    try:
        with ProcessPoolExecutor(processes, context, initializer=gc.disable) as pool:
            for line in pool.map(parse, files, chunksize=_CHUNK):
                lines.append(line)
    except BrokenProcessPool:
        pass  # a worker was killed, perhaps for its memory: read the rest here
    return lines + [parse(file) for file in files[len(lines) :]]
