"""How the ranks of a run ended: results, or the first failure rather than its echoes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from dpeval.record.codes import FailureCode, StopReason
from dpeval.util.display.plural import counted
from dpeval.worker.messages import RankFailure, RankResult

PEER: Literal["peer"] = "peer"
"""Kind of a failure that only echoes another node's."""
COLLECTIVE_ERRORS = (
    "gloo", "nccl", "rccl", "connection closed by peer", "connection reset", "broken pipe",
)  # fmt: skip
"""Errors of a collective whose peer has ended."""


@dataclass(frozen=True)
class Failure:
    """Why the ranks of a run were stopped."""

    kind: FailureCode
    rank: int | None
    message: str
    exception: str | None = None
    signal: str | None = None
    log: str = ""
    user_error: bool = False


@dataclass
class Outcome:
    """What the supervisor saw."""

    results: dict[int, RankResult] = field(default_factory=dict["int", "RankResult"])
    failure: Failure | None = None
    interrupted_by: str | None = None
    stopped_by: StopReason = "interrupted"
    """Why measuring ended, as far as it is known before the ranks return it."""
    peak_bytes: dict[int, int] = field(default_factory=dict["int", "int"])
    """Peak memory observed per rank whose device is the CPU, bytes."""
    pauses: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """When the whole run was suspended: begin and end on the monotonic clock, s."""
    notes: list[str] = field(default_factory=list[str])
    """What went wrong in a script after it was measured, one line each."""


def is_echo(failure: Failure | RankFailure) -> bool:
    """Whether a failure only reports that a peer has ended."""
    if isinstance(failure, Failure):
        if failure.kind != "exception":
            return failure.kind == PEER
    elif failure.out_of_memory:
        return False  # NCCL reports its own lack of memory, too
    text = f"{failure.exception} {failure.message}".lower()
    return not failure.user_error and any(phrase in text for phrase in COLLECTIVE_ERRORS)


def may_be_echo(failure: Failure) -> bool:
    """Whether a failure may be the consequence of another rank's.

    The watchdogs of NCCL abort a rank whose peer has ended, and a rank that ends without a result
    gives no reason, so another rank's error explains both."""
    ended = failure.kind == "signal" and failure.signal == "SIGABRT"
    return ended or failure.kind in ("exit", "lost_node") or is_echo(failure)


def root_cause(failures: Iterable[Failure]) -> Failure:
    """The failure that caused the others, in whatever order they were noticed.

    Out of memory ranks first; then anything that ended a rank from outside, because other ranks may
    report it in words that :func:`is_echo` does not know; then a rank's own errors, ranks that
    ended without a reason, and echoes. Among equals, the first in `failures` is the cause."""
    return min(failures, key=_distance_from_cause)


def _distance_from_cause(failure: Failure) -> int:
    if failure.kind == "oom":
        return 0
    if not may_be_echo(failure):
        return 2 if failure.kind == "exception" else 1
    if failure.kind == PEER:
        return 6
    if is_echo(failure):
        return 5
    return 4 if failure.kind == "lost_node" else 3


def first_exception(failures: Iterable[RankFailure]) -> Failure:
    """The failure of the rank whose error caused those of the others."""
    first = min(failures, key=lambda one: (not one.out_of_memory, is_echo(one), one.at_s))
    kind: FailureCode = "script" if first.script_error else "exception"
    return Failure(
        kind="oom" if first.out_of_memory else kind,
        rank=first.rank,
        message=first.message,
        exception=first.exception,
        log=first.log,
        user_error=first.user_error,
    )


def disagreement(results: Mapping[int, RankResult], steps: Mapping[int, int]) -> Failure | None:
    """The failure of a script whose loop ended by itself, but not at the same step on all ranks.

    Args:
        results: from the ranks that have sent one.
        steps: how many steps each rank has finished, whether or not it sent a result.
    """
    early = {rank for rank, result in results.items() if result.stopped_by == "ended"}
    if not early or (early == set(steps) and len(set(steps.values())) == 1):
        return None
    first = min(early, key=lambda rank: (steps[rank], rank))
    other = max(set(steps) - {first}, key=lambda rank: (steps[rank], rank not in early))
    if steps[first] == steps[other] and other not in early:
        rest = f"while rank {other} went on"
    else:
        rest = f"and that of rank {other} had taken {steps[other]}"
    message = (
        f"the ranks disagree: the loop of rank {first} ended after "
        f"{counted(steps[first], 'step')} {rest}; give every rank as many batches, for example "
        "with DistributedSampler and drop_last=True"
    )
    return Failure("script", first, message)


def killed_for_memory(rank: int, place: str, signal: str) -> Failure:
    """The failure of a rank that the OOM killer killed.

    Args:
        rank: the rank.
        place: ``host``, or the folder of the cgroup whose limit was exceeded.
        signal: the name of the signal.
    """
    whose = "the host" if place == "host" else f"the limit of cgroup {place}"
    message = f"rank {rank} was killed by the OOM killer ({whose} ran out of memory)"
    return Failure("oom", rank, message, signal=signal)
