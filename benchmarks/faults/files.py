"""Faults of files: what is damaged, refused or claimed twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.faults import victim as victims
from benchmarks.faults.drawing import Fault
from benchmarks.faults.invariants import violations
from dpeval import record


def carry_out(fault: Fault, folder: Path) -> Iterator[str]:
    """Let a sweep in `folder` suffer `fault`; yield what it leaves that it should not have."""
    if fault.kind == "twins":
        yield from _twins(fault, folder)
        return
    blocks = 3 if fault.kind == "size_limit" else None
    if fault.kind == "no_folder":
        (folder / "sweep").write_text("a file where the sweep should be")
    sweep = victims.start(folder, file_blocks=blocks)
    ended = victims.finish(sweep)
    first = folder / "sweep" / "0"
    if fault.kind == "damaged_manifest" and ended:
        (folder / "sweep" / "sweep.json").write_text("{")
        found = list(violations(sweep, fault, hit=False, ended=True))
        yield from (line for line in found if not line.startswith("no status:"))
        return
    if fault.kind == "damaged_record" and ended:
        whole = (first / record.FILE_NAME).read_bytes()
        (first / record.FILE_NAME).write_bytes(whole[: len(whole) // 2])
        found = list(violations(sweep, fault, hit=False, ended=True))
        yield from (line for line in found if "is not complete JSON" not in line)
        return
    yield from violations(sweep, fault, hit=False, ended=ended)


def _twins(fault: Fault, folder: Path) -> Iterator[str]:
    """Two sweeps of one folder at once: one is refused, and the other's records are whole."""
    first, second = victims.start(folder), victims.start(folder)
    ended = [victims.finish(one) for one in (first, second)]
    statuses = sorted(one.process.returncode for one in (first, second))
    if statuses not in ([0, 2],):
        yield f"exit statuses {statuses}, not 0 and 2"
    yield from violations(first, fault, hit=False, ended=all(ended))
    count = len(list(folder.rglob(record.FILE_NAME)))
    if count != victims.RUNS:
        yield f"{count} records of {victims.RUNS} runs"
