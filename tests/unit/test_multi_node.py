"""How the nodes of one run notify each other of a failure."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dpeval.run import multi_node
from dpeval.run.job import Node
from dpeval.run.multi_node import FailureNotice
from dpeval.run.outcome import PEER


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
