"""How the nodes of one run tell each other of a failure."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dpeval.run import multi_node
from dpeval.run.job import Node
from dpeval.run.multi_node import Alarm
from dpeval.run.outcome import PEER


def test_a_failure_is_heard_by_the_others_and_not_by_a_later_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multi_node, "LOOK_EVERY_S", 0.0)
    first, second = (Alarm(Node(index, 2, tmp_path, "7-0")) for index in range(2))
    assert first.heard() is None
    second.raise_()
    heard = first.heard()
    assert heard is not None
    assert (heard.kind, heard.message) == (PEER, "node 1 of the run failed")
    assert second.heard() is None
    assert Alarm(Node(0, 2, tmp_path, "7-1")).heard() is None


def test_the_shared_folder_is_looked_at_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    first, second = (Alarm(Node(index, 2, tmp_path, "7-0")) for index in range(2))
    second.raise_()
    now_s += 0.9
    assert first.heard() is None
    now_s += 0.2
    assert first.heard() is not None
