"""``python -m benchmarks.faults``: inject faults into real sweeps and check what they leave."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.faults import command, drawing, files, victim
from benchmarks.faults.drawing import COUNTS, Fault, Tier
from benchmarks.faults.findings import Finding, other, summary
from benchmarks.faults.invariants import violations
from benchmarks.faults.programs import Zygote
from benchmarks.faults.scheduling import faults as schedulers
from dpeval.system.processes.signals import STOP_SIGNALS

_printing = threading.Lock()


@dataclass(frozen=True)
class Outcome:
    """What came of one fault: a line of the file of results."""

    tier: str
    number: int
    seed: int
    broken: tuple[str, ...]
    """The kinds of promises that it broke."""
    words: str


def main() -> int:
    """The command line; returns 1 if something was lost, doubled or left."""
    asked = _parser().parse_args()
    tiers, left_out = asked.tier or list(COUNTS), _impossible()
    if left_out:
        print(f"left out, as they need root and strace: {', '.join(left_out)}")
        tiers = [tier for tier in tiers if tier not in left_out]
        if os.environ.get("DPEVAL_NO_SKIP") or not tiers:
            return 1
    if asked.only is not None:
        faults = [drawing.draw(tier, asked.only, asked.seed) for tier in tiers]
    else:
        faults = chosen(tiers, asked.count, asked.seed, evenly=asked.evenly)
    known = _read(asked.results)
    done = {(one.tier, one.number, one.seed) for one in known if not one.broken}
    missing = [one for one in faults if (one.tier, one.number, one.seed) not in done]
    campaign = _Campaign(asked)
    made = campaign.carry_out(missing)
    outcomes = {(one.tier, one.number, one.seed): one for one in [*known, *made]}
    left = len(missing) - len(made)
    failed = sum(bool(one.broken) for one in outcomes.values())
    print(
        f"{len(outcomes)} faults"
        + f" ({len(made)} now)" * bool(known)
        + f" in {campaign.took_s / 60:.1f} min: {len(outcomes) - failed} hold; "
        + summary(one.broken for one in outcomes.values())
        + f"; {left} of those asked for are left" * bool(left)
    )
    return 1 if failed else 0


def _impossible() -> tuple[Tier, ...]:
    """The tiers that this machine cannot carry out: mounts and namespaces need root."""
    is_able = os.geteuid() == 0 and shutil.which("strace") is not None
    return () if is_able else ("files", "command")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--tier", choices=COUNTS, action="append", help="default: all")
    parser.add_argument(
        "--count", type=int, help="faults, divided among the tiers (default: a whole campaign)"
    )
    parser.add_argument("--evenly", action="store_true", help="as many of each tier")
    parser.add_argument("--only", type=int, help="the number of one fault of the tier")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--together", type=int, default=4, help="sweeps at a time (4)")
    parser.add_argument("--keep", action="store_true", help="keep the folders of failing faults")
    parser.add_argument(
        "--results", type=Path, help="a file; faults that hold in it are counted, not repeated"
    )
    parser.add_argument("--minutes", type=float, help="start no fault after this time")
    return parser


def chosen(
    tiers: Sequence[Tier], count: int | None, seed: int, *, evenly: bool = False
) -> list[Fault]:
    """`count` faults of `tiers`, mixed, so that each part of them is like the whole.

    Args:
        tiers: which.
        count: None: those of a whole campaign.
        seed: of the drawing.
        evenly: as many of each tier, not in the proportions of a whole campaign.
    """
    whole = sum(COUNTS[tier] for tier in tiers)
    shares = {tier: 1 / len(tiers) if evenly else COUNTS[tier] / whole for tier in tiers}
    numbers = {tier: max(1, round((count or whole) * share)) for tier, share in shares.items()}
    mixed = sorted((number / numbers[tier], tier, number) for tier in tiers
                   for number in range(numbers[tier]))  # fmt: skip
    return [drawing.draw(tier, number, seed) for _, tier, number in mixed]


def _read(results: Path | None) -> list[Outcome]:
    if results is None or not results.exists():
        return []
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    return [Outcome(**{**line, "broken": tuple(line["broken"])}) for line in lines]


class _Campaign:
    """Carries out faults, several at a time."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self._together, self._keep = asked.together, asked.keep
        self._results: Path | None = asked.results
        self._begun_s = time.monotonic()
        self._until_s = self._begun_s + 60 * asked.minutes if asked.minutes else float("inf")

    @property
    def took_s(self) -> float:
        return time.monotonic() - self._begun_s

    def carry_out(self, faults: Sequence[Fault]) -> list[Outcome]:
        """The outcomes of those for which there was time."""
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)  # a background job's would be "ignored"
        zygote = Zygote()
        with ThreadPoolExecutor(self._together) as pool:
            made = list(pool.map(lambda fault: self._outcome(fault, zygote), faults))
        zygote.close()
        return [one for one in made if one is not None]

    def _outcome(self, fault: Fault, zygote: Zygote) -> Outcome | None:
        if time.monotonic() > self._until_s:
            return None
        folder = Path(tempfile.mkdtemp(prefix="dpeval-faults-"))
        begun_s = time.monotonic()
        try:
            found = list(_carry_out(fault, folder, zygote))
        except Exception as error:  # of the campaign itself: told with the fault that met it
            found = [other(f"the campaign failed: {type(error).__name__}: {error}")]
        words = "; ".join(one.words for one in found) or "holds"
        made = Outcome(
            fault.tier, fault.number, fault.seed, tuple(one.kind for one in found), words
        )
        took_s = time.monotonic() - begun_s
        with _printing:
            print(f"{fault.tier} {fault.number}: {fault.words}: {words} ({took_s:.0f} s)")
            if found:
                print(f"    repeat: {fault.command}" + f"; folder: {folder}" * self._keep)
                if failures := os.environ.get("DPEVAL_TEST_RESULTS"):  # see scripts/test.sh
                    with Path(failures).open("a") as file:
                        file.write(f"{fault.command}\n")
            sys.stdout.flush()
            if self._results is not None:
                with self._results.open("a") as file:
                    file.write(json.dumps(asdict(made)) + "\n")
        if not (found and self._keep):
            shutil.rmtree(folder, ignore_errors=True)
        return made


def _carry_out(fault: Fault, folder: Path, zygote: Zygote) -> Iterator[Finding]:
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
