"""``python -m benchmarks.faults``: inject faults into real sweeps and check what they leave."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.faults import command, drawing, files, schedulers, victim
from benchmarks.faults.drawing import COUNTS, Fault, Tier
from benchmarks.faults.invariants import violations
from benchmarks.faults.programs import Zygote
from dpeval.system.processes.signals import STOP_SIGNALS

_printing = threading.Lock()


def main() -> int:
    """The command line; returns 1 if something was lost, doubled or left."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--tier", choices=COUNTS, action="append", help="default: all")
    parser.add_argument("--count", type=int, default=60, help="faults, divided among the tiers")
    parser.add_argument("--only", type=int, help="the number of one fault of the tier")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--together", type=int, default=4, help="sweeps at a time (4)")
    parser.add_argument("--keep", action="store_true", help="keep the folders of failing faults")
    asked = parser.parse_args()
    tiers = asked.tier or list(COUNTS)
    if asked.only is not None:
        faults = [drawing.draw(tier, asked.only, asked.seed) for tier in tiers]
    else:
        faults = chosen(tiers, asked.count, asked.seed)
    begun_s = time.monotonic()
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # a shell's background jobs would pass on "ignored"
    zygote = Zygote()
    with ThreadPoolExecutor(asked.together) as pool:
        held = list(pool.map(lambda fault: _holds(fault, zygote, keep=asked.keep), faults))
    zygote.close()
    failed, took_s = held.count(False), time.monotonic() - begun_s
    print(f"{len(faults)} faults in {took_s / 60:.1f} min: {failed} left something wrong")
    return 1 if failed else 0


def chosen(tiers: Sequence[Tier], count: int, seed: int) -> list[Fault]:
    """`count` faults, divided among `tiers` as in a whole campaign."""
    whole = sum(COUNTS[tier] for tier in tiers)
    return [
        drawing.draw(tier, number, seed)
        for tier in tiers
        for number in range(max(1, round(count * COUNTS[tier] / whole)))
    ]


def _holds(fault: Fault, zygote: Zygote, *, keep: bool) -> bool:
    folder = Path(tempfile.mkdtemp(prefix="dpeval-faults-"))
    begun_s = time.monotonic()
    try:
        found = list(_carry_out(fault, folder, zygote))
    except Exception as error:  # of the campaign itself: told with the fault that met it
        found = [f"the campaign failed: {type(error).__name__}: {error}"]
    state = "; ".join(found) or "holds"
    took_s = time.monotonic() - begun_s
    with _printing:
        print(f"{fault.tier} {fault.number}: {fault.words}: {state} ({took_s:.0f} s)")
        if found:
            print(f"    repeat: {fault.command}" + (f"; folder: {folder}" if keep else ""))
        sys.stdout.flush()
    if not (found and keep):
        shutil.rmtree(folder, ignore_errors=True)
    return not found


def _carry_out(fault: Fault, folder: Path, zygote: Zygote) -> Iterator[str]:
    if fault.tier == "files":
        yield from files.carry_out(fault, folder, zygote)
    elif fault.tier == "schedulers":
        yield from schedulers.carry_out(fault, folder, zygote)
    elif fault.tier == "command":
        yield from command.carry_out(fault, folder, zygote)
    elif fault.call:
        sweep = victim.start(zygote, folder, fault, failing=victim.signal_at_call(fault))
        ended = victim.finish(sweep)
        yield from violations(zygote, sweep, fault, hit=False, ended=ended)
    else:
        sweep = victim.start(None if fault.phase == "import" else zygote, folder, fault)
        hit = victim.inject(sweep, fault)
        ended = victim.finish(sweep)
        yield from violations(zygote, sweep, fault, hit=hit, ended=ended)


if __name__ == "__main__":
    sys.exit(main())
