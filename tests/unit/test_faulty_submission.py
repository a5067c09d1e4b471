"""A model that cannot be trained does not keep the other runs of a sweep from a scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from dpeval import record
from dpeval.config import LauncherOptions, SiteConfig
from dpeval.launchers.in_job.run_job import SubmittedRuns
from dpeval.launchers.preflight import Preflight
from dpeval.launchers.schedulers.slurm import Slurm
from dpeval.launchers.tracking import manifest as manifests
from tests.unit.test_config import Captured, train_in

SENT: list[SubmittedRuns] = []
HERE = __name__
SWEEP = (
    "-m",
    "hydra/launcher=scheduler",
    f"hydra.launcher.scheduler={HERE}.Noted",
    "hydra.launcher.wait=false",
    "hydra.launcher.prepare=none",
    "dataset.image_px=32",
)


class Noted(Slurm):
    """SLURM, but jobs are noted instead of submitted."""

    def executor(
        self, folder: Path, parameters: dict[str, Any], site: SiteConfig, options: LauncherOptions
    ) -> Any:
        return self

    def submit_array(self, calls: Sequence[SubmittedRuns]) -> list[SimpleNamespace]:
        SENT.extend(calls)
        return [SimpleNamespace(job_id=str(number)) for number in range(len(calls))]

    def longest_min(self, site: SiteConfig, options: LauncherOptions) -> int | None:
        return None

    def most_in_array(self) -> int | None:
        return None


def sound(num_classes: int, **_: object) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


def broken(**_: object) -> nn.Module:
    raise RuntimeError("the weights are elsewhere")


@pytest.fixture(autouse=True)
def nothing_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    SENT.clear()
    # The process that forecasts takes seconds to start.
    monkeypatch.setattr(Preflight, "forecast", lambda *_: None)


def test_a_run_whose_model_fails_is_recorded_and_the_others_are_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    models = f"model._target_={HERE}.broken,{HERE}.sound"
    status, printed = train_in(tmp_path, [*SWEEP, models], monkeypatch, capsys)
    assert status == 1, printed
    assert "1 of 2 runs not submitted" in printed
    assert "Traceback" not in printed
    [path] = tmp_path.rglob(record.FILE_NAME)
    failed = record.read(path)
    assert failed.cause is not None
    assert (failed.status, failed.cause.exception) == ("failed", "ModelError")
    assert "the weights are elsewhere" in failed.cause.message
    [call] = SENT
    assert str(path.parent) not in call.folders
    [listed] = tmp_path.rglob(manifests.FILE_NAME)
    manifest = manifests.read(listed.parent)
    assert [run.job_id for run in manifest.runs] == [None, "0"]
    assert not manifest.is_unsure, "the scheduler has accepted all that it was given"


def test_a_sweep_whose_models_all_fail_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    words = [*SWEEP, f"model._target_={HERE}.broken", "batch=8,16"]
    status, printed = train_in(tmp_path, words, monkeypatch, capsys)
    assert (status, len(printed.splitlines())) == (2, 1), printed
    assert "the weights are elsewhere" in printed
    assert not SENT


def test_a_dry_run_says_which_runs_would_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    models = f"model._target_={HERE}.broken,{HERE}.sound"
    words = ["-m", "dataset.image_px=32", models, "hydra.launcher.dry_run=true"]
    status, printed = train_in(tmp_path, words, monkeypatch, capsys)
    assert status == 0
    assert "broken: fails, " in printed
    assert "2 runs here" in printed
