"""How the ranks of a run ended: results, or the first failure rather than its echoes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dpeval.record.codes import FailureCode
from dpeval.worker.messages import RankFailure, RankResult

PEER: Literal["peer"] = "peer"
"""Kind of a failure that only echoes another node's."""
COLLECTIVE_ERRORS = ("gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe")
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
    peak_bytes: dict[int, int] = field(default_factory=dict["int", "int"])
    """Peak memory observed per rank whose device is the CPU, bytes."""


def is_echo(failure: Failure | RankFailure) -> bool:
    """Whether a failure only reports that a peer has ended."""
    if isinstance(failure, Failure) and failure.kind == PEER:
        return True
    text = f"{failure.exception} {failure.message}".lower()
    return any(phrase in text for phrase in COLLECTIVE_ERRORS)


def first_cause(failures: list[RankFailure]) -> Failure:
    """The failure that caused the others: out of memory first, then the earliest; echoes last."""
    first = min(failures, key=lambda one: (not one.out_of_memory, is_echo(one), one.at_s))
    return Failure(
        kind="oom" if first.out_of_memory else "exception",
        rank=first.rank,
        message=first.message,
        exception=first.exception,
        log=first.log,
        user_error=first.user_error,
    )


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
