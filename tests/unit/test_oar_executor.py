"""What the executor for OAR hands to oarsub."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dpeval.launchers.schedulers.oar.executor import OarExecutor
from dpeval.launchers.schedulers.oar.submission import oarsub_command

OARSUB = """#!/bin/bash
echo "$*" >>"$(dirname "$0")/calls"
first=$(($(wc -l <"$(dirname "$0")/calls") * 10))
count=$(echo "$*" | sed -n 's/.*--array \\([0-9]*\\).*/\\1/p')
for ((at = 0; at < ${count:-1}; at++)); do echo "OAR_JOB_ID=$((first + at))"; done
"""


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Submits jobs through a stand-in for oarsub; returns the arguments of each call."""
    (tmp_path / "oarsub").write_text(OARSUB)
    (tmp_path / "oarsub").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def submit(count: int, at_once: int, **additional: Any) -> list[str]:
        executor = OarExecutor(tmp_path / "jobs")
        executor.python, executor.max_concurrent = ("python",), at_once
        executor.update_parameters(n="name", additional_parameters=additional)
        assert len(executor.submit_array([print] * count)) == count
        return (tmp_path / "calls").read_text().splitlines()

    return submit


def dependencies(call: str) -> Sequence[str]:
    words = call.split()
    return [words[at + 1] for at, word in enumerate(words) if word == "-a"]


def test_jobs_that_wait_for_one_job_are_no_array(sent: Callable[..., list[str]]) -> None:
    """OAR forgets the dependency of an array on a single job."""
    calls = sent(3, 64, a="7")
    assert [dependencies(call) for call in calls] == [["7"]] * 3
    assert not any("--array" in call for call in calls)


def test_each_wave_is_an_array_that_waits_for_the_wave_before(
    sent: Callable[..., list[str]],
) -> None:
    calls = sent(5, 2)
    assert ["--array 2" in call for call in calls] == [True, True, False]
    assert [dependencies(call) for call in calls] == [[], ["10", "11"], ["20", "21"]]


def test_an_array_of_no_dependency_is_one_call(sent: Callable[..., list[str]]) -> None:
    assert len(sent(4, 64)) == 1
    parameters = {"n": "n", "additional_parameters": {"a": ["1", "2"]}}
    assert oarsub_command(parameters, Path("/s"), 2).count("-a") == 2
