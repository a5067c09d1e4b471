"""Folders of sweeps and runs: claimed once, and never written over what they hold."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from dpeval.errors import ConfigError, MachineError
from dpeval.launchers.base import SweepJob
from dpeval.launchers.folders import check_jobs, claim_run, claim_sweep
from tests.unit.test_run_status import CONFIG

Claim = Callable[[DictConfig], int | None]
STAMPED = "outputs/x/${now:%Y}"


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    OmegaConf.register_new_resolver("now", lambda _: "2026", replace=True)


def composed(folder: str) -> DictConfig:
    hydra = {"run": {"dir": folder}, "sweep": {"dir": folder}, "overrides": {"hydra": []}}
    return OmegaConf.create({"hydra": hydra})


def test_two_sweeps_of_one_second_have_a_folder_each() -> None:
    first, second = composed(STAMPED), composed(STAMPED)
    claim_sweep(first)
    claim_sweep(second)
    folders = [Path(str(one.hydra.sweep.dir)) for one in (first, second)]
    assert [folder.name for folder in folders] == ["2026", "2026-2"]
    assert all(folder.is_dir() and folder.is_absolute() for folder in folders)
    # Jobs are composed from the overrides: the second sweep's must get its folder, too.
    assert first.hydra.overrides.hydra == []
    assert second.hydra.overrides.hydra == [f"hydra.sweep.dir='{folders[1]}'"]


def test_a_run_that_is_listed_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch=4 .*2.*repeat=2"):
        check_jobs([job(4, "x/0"), job(8, "x/1"), job(4, "x/2")])


@pytest.mark.parametrize("name", ["metrics.json", "sweep.json"])
@pytest.mark.parametrize("claim", [claim_run, claim_sweep])
def test_a_named_folder_that_holds_a_record_or_a_sweep_is_refused(claim: Claim, name: str) -> None:
    Path("mine").mkdir()
    Path("mine", name).write_text("{}")
    with pytest.raises(ConfigError, match=r"dir=mine "):
        claim(composed("mine"))
    assert Path("mine", name).read_text() == "{}"


def test_a_named_folder_is_one_runs_at_a_time() -> None:
    held = claim_run(composed("mine"))
    assert held is not None
    with pytest.raises(ConfigError, match=r"hydra\.run\.dir=mine"):
        claim_run(composed("mine"))
    os.close(held)
    again = claim_run(composed("mine"))
    assert again is not None
    os.close(again)
    assert list(Path("mine").iterdir()) == []


@pytest.mark.parametrize(("taken", "words"), [("outputs", "Not a directory"), ("m", "File exists")])
def test_a_folder_that_cannot_be_made_is_one_line(taken: str, words: str) -> None:
    Path(taken).write_text("a file")
    with pytest.raises(MachineError, match=rf"{words}.*hydra\.run\.dir="):
        claim_run(composed(STAMPED if taken == "outputs" else "m"))


def test_a_name_that_no_file_system_takes_is_refused() -> None:
    with pytest.raises(ConfigError, match="300 bytes"):
        claim_sweep(composed("x" * 300))
    with pytest.raises(ConfigError, match=r"hydra\.sweep\.subdir.* 256 bytes"):
        check_jobs([job(0, "é" * 128)])


def job(number: int, folder: str) -> SweepJob:
    return SweepJob(number, (f"batch={number}",), composed("x"), CONFIG, Path(folder).absolute())


def test_two_runs_of_a_sweep_never_share_a_folder() -> None:
    check_jobs([job(4, "x/4"), job(8, "x/8")])
    with pytest.raises(ConfigError, match=r"x/n1\b.*batch=4 .*batch=8\b"):
        check_jobs([job(4, "x/n1"), job(8, "x/n1")])


@pytest.mark.parametrize("name", ["metrics.json", "job.json"])
def test_a_run_is_not_put_where_another_is_or_is_to_be(name: str) -> None:
    Path("x/4").mkdir(parents=True)
    Path("x/4", name).write_text("{}")
    with pytest.raises(ConfigError, match="x/4 "):
        check_jobs([job(4, "x/4")])
