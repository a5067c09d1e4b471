"""``python -m benchmarks.faults``: inject faults into real sweeps and check what they leave."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.faults import drawing, files, victim
from benchmarks.faults.drawing import TIERS, Fault
from benchmarks.faults.invariants import violations


def main() -> int:
    """The command line; returns 1 if something was lost, doubled or left."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--tier", choices=TIERS, action="append", help="default: all")
    parser.add_argument("--count", type=int, default=10, help="faults per tier (10)")
    parser.add_argument("--only", type=int, help="the number of one fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep the folders of failing faults")
    asked = parser.parse_args()
    numbers = range(asked.count) if asked.only is None else [asked.only]
    begun_s, failed, total = time.monotonic(), 0, 0
    for tier in asked.tier or TIERS:
        for number in numbers:
            total += 1
            failed += not _holds(drawing.draw(tier, number, asked.seed), keep=asked.keep)
    took_s = time.monotonic() - begun_s
    print(f"{total} faults in {took_s / 60:.1f} min: {failed} left something wrong")
    return 1 if failed else 0


def _holds(fault: Fault, *, keep: bool) -> bool:
    folder = Path(tempfile.mkdtemp(prefix="dpeval-faults-"))
    begun_s = time.monotonic()
    found = list(_carry_out(fault, folder))
    state = "; ".join(found) or "holds"
    print(
        f"{fault.tier} {fault.number}: {fault.words}: {state} ({time.monotonic() - begun_s:.0f} s)"
    )
    if found:
        print(f"    repeat: {fault.command}" + (f"; folder: {folder}" if keep else ""))
    sys.stdout.flush()
    if not (found and keep):
        shutil.rmtree(folder, ignore_errors=True)
    return not found


def _carry_out(fault: Fault, folder: Path) -> Iterator[str]:
    if fault.tier == "files":
        yield from files.carry_out(fault, folder)
        return
    sweep = victim.start(folder)
    hit = victim.inject(sweep, fault)
    ended = victim.finish(sweep)
    yield from violations(sweep, fault, hit=hit, ended=ended)


if __name__ == "__main__":
    sys.exit(main())
