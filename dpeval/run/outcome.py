"""How the ranks of a run ended: results, or one failure that is the cause and not its echo."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dpeval.record.codes import FailureCode
from dpeval.worker.messages import RankFailure, RankResult

PEER: Literal["peer"] = "peer"
"""Kind of a failure that only repeats another node's."""
COLLECTIVE_ERRORS = ("gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe")
"""What the end of one rank looks like to a peer that waits for it in a collective."""


@dataclass(frozen=True)
class Failure:
    """Why the ranks of a run were ended."""

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
    """The most memory that each rank's process was seen to hold, where its device is the CPU."""


def is_echo(failure: Failure | RankFailure) -> bool:
    """Whether a failure only reports that a peer ended."""
    if isinstance(failure, Failure) and failure.kind == PEER:
        return True
    text = f"{failure.exception} {failure.message}".lower()
    return any(word in text for word in COLLECTIVE_ERRORS)


def first_cause(failures: list[RankFailure]) -> Failure:
    """The failure that the others follow from: out of memory, then the earliest; echoes last."""
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
    """A rank that the OOM killer ended; `place` is ``host`` or the cgroup whose limit it hit."""
    whose = "the host" if place == "host" else f"the limit of cgroup {place}"
    message = f"rank {rank} was killed by the OOM killer ({whose} ran out of memory)"
    return Failure("oom", rank, message, signal=signal)
