"""The GPU campaign, rehearsed on the CPU: every stage runs to its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import checks
from benchmarks.gpu.campaign import STAGES
from benchmarks.gpu.checks import Check

ROOT = Path(__file__).resolve().parents[2]
NEEDS_A_GPU = {"profiler", "costs", "fit", "energy"}
"""Stages that say only why they measure nothing on a CPU."""


def rehearsed(folder: Path, *arguments: str) -> list[Check]:
    """The checks of a rehearsal in `folder`, all of which were right."""
    command = [sys.executable, "-m", "benchmarks.gpu.campaign", str(folder), "--rehearse"]
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    made = checks.read(folder / "checks.jsonl")
    assert [check for check in made if check.passed is False] == [], done.stdout + done.stderr
    assert done.returncode == 0
    return made


# One test for each stage, so that two workers share them.
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_runs(tmp_path: Path, stage: str) -> None:
    made = rehearsed(tmp_path, "--stage", stage)
    assert {check.stage for check in made} == {stage}
    measured = [check for check in made if check.measured is not None]
    assert bool(measured) == (stage not in NEEDS_A_GPU)
    assert all(check.note for check in made if check.measured is None)


def test_a_campaign_ends_in_a_table_and_a_picture(tmp_path: Path) -> None:
    made = rehearsed(tmp_path, "--stages", "clock", "energy")
    assert {check.stage for check in made} == {"clock", "energy"}
    assert "not measured" in (tmp_path / "summary.md").read_text()
    assert (tmp_path / "checks.png").stat().st_size > 10_000
