"""A real sweep of two runs, and the faults that hit its processes."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.faults.drawing import Fault, Phase
from benchmarks.faults.programs import (
    LOOK_S,
    Program,
    Zygote,
    awaited,
    environment_of,
    start_anew,
)
from benchmarks.faults.zygote import Failing

RUNS = 2
RANKS = 2
SWEEP = (
    "-m", "model=calibrated", "model.args.forward_s=0.008", "model.args.backward_s=0.012",
    "dataset=calibrated", "measure=quick", "measure.time_limit_s=6", "measure.max_steps=40",
    "measure.rel_precision=0.01", "measure.conditions=false", "measure.ablation=false",
    "analyze=false", "hardware.oversubscribe=true", "study=faults",
)  # fmt: skip
_RUNS = ("num_devices=2", "batch=4,8")
_SUBMITTED_RUNS = ("num_devices=1,2", "batch=4")
"""Two requests, so that they are submitted one after the other unless they share a job."""
LONGEST_S = 150.0
"""Of a sweep, on a machine that is busy with others; longer is a hang."""


@dataclass
class Victim:
    """One sweep in a folder of its own."""

    folder: Path
    program: Program
    sweep: Path
    words: tuple[str, ...]
    """What it measures: the overrides that a sweep which resumes it shares."""
    hit_s: float = 0.0
    """When the fault was over, on the monotonic clock; 0: it did not come."""
    ended_s: float = 0.0


def start(
    zygote: Zygote | None,
    folder: Path,
    fault: Fault,
    *,
    overrides: Sequence[str] = (),
    sweep: Path | None = None,
    environment: Mapping[str, str] | None = None,
    limits: Mapping[str, int] | None = None,
    failing: Failing | None = None,
    traced: bool = False,
    skew_s: float = 0.0,
    before: Sequence[str] = (),
    log: str = "log",
) -> Victim:
    """Start the sweep in `folder`.

    Args:
        zygote: forks it; None: it is started anew, as a user does.
        folder: holds the sweep, its log and its temporary folder.
        fault: says in which order the runs are measured.
        overrides: further overrides.
        sweep: the sweep's folder, if not that of `folder`.
        environment: variables instead of the usual ones.
        limits: of :mod:`resource`; with a zygote only.
        failing: calls that are hit; with a zygote only.
        traced: see :meth:`Zygote.start`.
        skew_s: likewise.
        before: words before the command; without a zygote only.
        log: the file for what it prints.
    """
    named = "sweep" if sweep is None else str(sweep)  # alike in all, see the zygote
    sweep = folder / named
    variables = {**environment_of(folder), **(environment or {})}
    order = "sequential" if fault.sequential else "auto"
    words = (*SWEEP, *(_SUBMITTED_RUNS if fault.tier == "schedulers" else _RUNS))
    arguments = [*words, f"sweep.order={order}", f"hydra.sweep.dir={named}", *overrides]
    if zygote is None:
        program = start_anew(folder, arguments, variables, before=before, log=log)
    else:
        program = zygote.start(
            folder, arguments, variables,
            limits=limits, failing=failing, traced=traced, skew_s=skew_s, log=log,
        )  # fmt: skip
    return Victim(folder, program, sweep, words)


def inject(victim: Victim, fault: Fault) -> bool:
    """Wait for the fault's moment and inject it; return whether the sweep still ran then."""
    if not awaited(lambda: _has_begun(victim, fault.phase), LONGEST_S):
        return False
    time.sleep(fault.after_s)
    targets = _targets(victim, fault)
    if not victim.program.is_running or not targets:
        return False
    if fault.kind in ("PAUSE", "frozen"):
        _send(targets, signal.SIGSTOP)
        time.sleep(fault.pause_s)
        _send(targets, signal.SIGCONT)
    else:
        killed = fault.kind == "all_killed"
        _send(targets, signal.SIGKILL if killed else signal.Signals[fault.kind])
    victim.hit_s = time.monotonic()
    return True


def finish(victim: Victim, limit_s: float = LONGEST_S) -> bool:
    """Wait for the sweep to end; return whether it did."""
    ended = victim.program.wait(limit_s)
    victim.ended_s = time.monotonic()
    if not ended:
        victim.program.kill_all()
        victim.program.wait(10.0)
    return ended


def _has_begun(victim: Victim, phase: Phase) -> bool:
    if phase in ("", "import") or not victim.program.is_running:
        return True
    if phase == "starting":
        return (victim.sweep / "0" / "job.json").exists()
    if phase == "measuring":
        return len(_ranks(victim)) >= RANKS
    return (victim.sweep / "0" / "metrics.json").exists()


def _ranks(victim: Victim) -> list[psutil.Process]:
    """The ranks, each of which leads a process group of its own."""
    found = []
    for process in victim.program.living():
        with contextlib.suppress(ProcessLookupError):
            if process.pid != victim.program.pid and os.getpgid(process.pid) == process.pid:
                found.append(process)
    return found


def _targets(victim: Victim, fault: Fault) -> list[int]:
    if fault.target == "rank":
        awaited(lambda: _ranks(victim) or not victim.program.is_running, 2 * LOOK_S)
        ranks = _ranks(victim)
        return [ranks[fault.number % len(ranks)].pid] if ranks else []
    if fault.target == "group":
        return [-victim.program.pid]
    if fault.target == "helper":
        own = [process.pid for process in victim.program.living() if _is_helper(process, victim)]
        return own[fault.number % len(own) :][:1] if own else []
    if fault.target == "command":
        return [process.pid for process in victim.program.living()]
    return [victim.program.pid]


def _is_helper(process: psutil.Process, victim: Victim) -> bool:
    """Whether it is a child of the sweep's process, but not Python's resource tracker.

    Python itself prints a traceback when it has to start a new tracker."""
    with contextlib.suppress(psutil.Error):
        is_tracker = "resource_tracker" in " ".join(process.cmdline())
        return process.ppid() == victim.program.pid and not is_tracker
    return False


def _send(targets: Sequence[int], number: signal.Signals) -> None:
    for pid in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def signal_at_call(fault: Fault) -> Failing:
    """A signal that arrives when the sweep's process makes a call."""
    return Failing(call=fault.call, at=fault.at, signal=fault.kind)
