"""Which of several failures is the cause, and which only echo it."""

from __future__ import annotations

import itertools

import pytest

from dpeval.record.codes import StopReason
from dpeval.run.recording import endings
from dpeval.run.recording.outcome import PEER, Failure, first_exception, is_echo, root_cause
from dpeval.worker.messages import RankFailure
from tests.records import make_record

OOM = Failure("oom", 0, "CUDA out of memory", exception="OutOfMemoryError")
KILLED = Failure("signal", 1, "rank 1 was killed by SIGKILL", signal="SIGKILL")
ERROR = Failure("exception", 2, "an error of its own", exception="ValueError")
ABORTED = Failure("signal", 3, "rank 3 was killed by SIGABRT", signal="SIGABRT")
LOST = Failure("lost_node", None, "node 1 of the run returned no results")
ECHO = Failure("exception", 4, "Connection closed by peer [127.0.0.1]:4711", "RuntimeError")
PEER_FAILED = Failure(PEER, None, "node 1 of the run failed")
FROM_CAUSE_TO_ECHO = [OOM, KILLED, ERROR, ABORTED, LOST, ECHO, PEER_FAILED]


@pytest.mark.parametrize(("cause", "echo"), list(itertools.combinations(FROM_CAUSE_TO_ECHO, 2)))
def test_the_cause_does_not_depend_on_the_order_of_arrival(cause: Failure, echo: Failure) -> None:
    assert root_cause([cause, echo]) == root_cause([echo, cause]) == cause


def test_of_equals_the_first_is_the_cause() -> None:
    other = Failure("signal", 5, "rank 5 was killed by SIGKILL", signal="SIGKILL")
    assert root_cause([other, KILLED]) == other


def failed(rank: int, at_s: float, message: str, out_of_memory: bool = False) -> RankFailure:
    return RankFailure(rank, at_s, "DistBackendError", message, "", out_of_memory=out_of_memory)


def test_nccl_without_memory_is_no_echo() -> None:
    message = "NCCL error in: NCCLUtils.cpp:94\nLast error:\nCuda failure 2 'out of memory'"
    own = failed(1, 2.0, message, out_of_memory=True)
    echo = failed(0, 1.0, "NCCL error in: NCCLUtils.cpp:94, remote process exited")
    assert not is_echo(own)
    assert is_echo(echo)
    cause = first_exception([echo, own])
    assert (cause.kind, cause.rank) == ("oom", 1)
    assert not is_echo(cause)


@pytest.mark.parametrize(
    ("stopped_by", "status"),
    [
        ("ratios", "ok"),
        ("best", "ok"),
        ("precision", "ok"),
        ("time_limit", "interrupted"),
        ("interrupted", "interrupted"),
    ],
)
def test_a_provisional_record_counts_only_if_all_that_was_asked_for_is_known(
    stopped_by: StopReason, status: str
) -> None:
    made = make_record(2)
    assert made.window is not None
    window = made.window.model_copy(update={"stopped_by": stopped_by})
    found = endings.provisional(made.model_copy(update={"window": window, "status": "failed"}))
    assert found.status == status
    assert found.throughput == made.throughput
    assert (found.cause is None) == (status == "ok")
    if found.cause is not None:
        assert found.cause.kind == "lost"


def test_a_provisional_record_without_a_mean_is_not_ok() -> None:
    found = endings.provisional(make_record(2, status="failed"))
    assert (found.status, found.throughput) == ("interrupted", None)
