"""The GPU campaign, rehearsed on the CPU: every stage runs to its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import checks
from benchmarks.gpu.campaign import STAGES

ROOT = Path(__file__).resolve().parents[2]
NEEDS_A_GPU = {"profiler", "costs", "fit", "energy"}
"""Stages that say only why they measure nothing on a CPU."""


@pytest.mark.timeout(900)
def test_every_stage_of_the_campaign_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu.campaign", str(tmp_path), "--rehearse"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    made = checks.read(tmp_path / "checks.jsonl")
    assert [check for check in made if check.passed is False] == [], done.stdout + done.stderr
    assert done.returncode == 0
    measured = {check.stage for check in made if check.measured is not None}
    assert measured == set(STAGES) - NEEDS_A_GPU
    assert {check.stage for check in made} == set(STAGES)
    assert all(check.note for check in made if check.measured is None)
    assert "not measured" in (tmp_path / "summary.md").read_text()
    assert (tmp_path / "checks.png").stat().st_size > 10_000
