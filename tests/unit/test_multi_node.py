"""How the nodes of one run notify each other of a failure."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from dpeval.instruments.step_buffer import StepBuffer
from dpeval.record.plan import Plan, RankPlan
from dpeval.run import multi_node
from dpeval.run.job import Node
from dpeval.run.multi_node import FailureNotice
from dpeval.run.recording.outcome import PEER, Failure, Outcome


def test_a_failure_is_heard_by_the_others_and_not_by_a_later_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multi_node, "CHECK_EVERY_S", 0.0)
    first, second = (FailureNotice(Node(index, 2, tmp_path, "7-0")) for index in range(2))
    assert first.failure_elsewhere() is None
    second.post()
    failure_elsewhere = first.failure_elsewhere()
    assert failure_elsewhere is not None
    assert (failure_elsewhere.kind, failure_elsewhere.message) == (PEER, "node 1 of the run failed")
    assert second.failure_elsewhere() is None
    assert FailureNotice(Node(0, 2, tmp_path, "7-1")).failure_elsewhere() is None


def test_the_shared_folder_is_looked_at_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    first, second = (FailureNotice(Node(index, 2, tmp_path, "7-0")) for index in range(2))
    second.post()
    now_s += 0.9
    assert first.failure_elsewhere() is None
    now_s += 0.2
    assert first.failure_elsewhere() is not None


def test_the_cause_on_one_node_wins_over_its_echo_on_another(tmp_path: Path) -> None:
    """NCCL's watchdog aborts the ranks of the first node when one of the second has ended."""
    ranks = [
        RankPlan(rank=rank, node=rank, local_rank=0, device="cpu", cpus=[], threads=1,
                 per_device_batch_size=1, weight=0.5)
        for rank in range(2)
    ]  # fmt: skip
    plan = Plan(world_size=2, global_batch_size=2, micro_batches=1, backend="gloo", ranks=ranks)
    first, second = (Node(index, 2, tmp_path, "7-0") for index in range(2))
    buffer = StepBuffer(multiprocessing.get_context("spawn"), 2, 4)
    out_of_memory = Failure("oom", 1, "CUDA out of memory", exception="OutOfMemoryError")
    aborted = Failure("signal", 0, "rank 0 was killed by SIGABRT", signal="SIGABRT")
    multi_node.write_part(second, plan, buffer, Outcome(failure=out_of_memory), {1: 12})
    outcome = Outcome(failure=aborted)
    multi_node.collect_parts(first, plan, buffer, outcome, {0: 11}, timeout_s=5.0)
    assert outcome.failure == out_of_memory
