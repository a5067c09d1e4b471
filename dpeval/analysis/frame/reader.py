"""Records read one by one or by several processes: a row each, or one line why not.

Run as a module it reads a pickled list of paths from standard input and writes the pickled lines
to standard output. A pool of :mod:`multiprocessing` would run the caller's main script again in
every worker, where it has no guard; a plain subprocess cannot.
"""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dpeval
from dpeval import record
from dpeval.analysis.frame.columns import row, text
from dpeval.errors import RecordError
from dpeval.util.cpus import allowed_cpus
from dpeval.util.units import MIB

Line = dict[str, Any] | str
"""A run's row, or why it has none."""

MOST_BYTES = 256 * MIB
"""A larger file is no record: 100,000 steps of 100 ranks take less."""
PARALLEL_FROM = 2_000
"""Starting processes takes about a second; fewer records are read sooner than that."""
MOST_PROCESSES = 8


def parse(file: Path) -> Line:
    """The file's row, or one line that says why it has none."""
    try:
        if file.stat().st_size > MOST_BYTES:
            return text(f"{file}: larger than {MOST_BYTES >> 20} MiB, no record is")
        return row(record.read(file), file.parent)
    except RecordError as error:
        return text(error)
    except (OSError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        # Valid by its types and nonsense by its values: of one record, never of the analysis.
        return text(f"{file}: cannot be used ({type(error).__name__}: {error})")


def parse_all(files: Sequence[Path]) -> list[Line]:
    """A line for each of `files`, in their order."""
    processes = min(len(allowed_cpus()), MOST_PROCESSES)
    if len(files) < PARALLEL_FROM or processes < 2:
        return [parse(file) for file in files]
    shares = [files[start::processes] for start in range(processes)]
    with ThreadPoolExecutor(processes) as pool:
        parts = list(pool.map(_elsewhere, shares))
    lines: list[Line] = [""] * len(files)
    for start, part in enumerate(parts):
        lines[start::processes] = part
    return lines


def _elsewhere(files: Sequence[Path]) -> list[Line]:
    """The lines of `files`, read by a process of its own."""
    root = str(Path(dpeval.__file__).resolve().parents[1])
    found = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([root, found]) if found else root
    done = subprocess.run(
        [sys.executable, "-m", "dpeval.analysis.frame.reader"],
        input=pickle.dumps([str(file) for file in files]),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    if done.returncode:
        # Killed for its memory, perhaps: what is left to do is done here.
        return [parse(file) for file in files]
    lines: list[Line] = pickle.loads(done.stdout)  # written by ourselves, just now
    return lines


def main() -> None:
    """Answer one list of paths."""
    # Rows only pile up here, and going through all of them again and again finds nothing to free.
    gc.disable()
    files = pickle.load(sys.stdin.buffer)
    sys.stdout.buffer.write(pickle.dumps([parse(Path(file)) for file in files], protocol=5))


if __name__ == "__main__":
    main()
