"""Where data lies, which Python runs, and how a container is started at a site."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from dpeval.config import Config, ContainerConfig, SiteConfig, scratch_folder
from dpeval.errors import ConfigError, LaunchError
from dpeval.launchers.in_job.data_folder import data_at
from dpeval.launchers.schedulers.container import check_on_oar, python_words, srun_words
from dpeval.launchers.submission.interpreter import check_interpreter


def test_the_users_folder_for_data_takes_precedence_over_the_site() -> None:
    site = SiteConfig(scratch="$SCRATCH/a/${USER}")
    assert scratch_folder(site, {"SCRATCH": "/s", "USER": "u"}) == "/s/a/u"
    assert scratch_folder(site, {"DPEVAL_DATA": "/mine"}) is None
    assert scratch_folder(SiteConfig(), {}) is None
    with pytest.raises(ConfigError, match=r"\$SCRATCH is not set on this machine"):
        scratch_folder(site, {"USER": "u"})


def test_who_submits_and_its_jobs_keep_data_in_one_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DPEVAL_DATA", raising=False)
    monkeypatch.setenv("SCRATCH", "/s")
    config = Config(site=SiteConfig(scratch="$SCRATCH/dpeval"))
    with data_at(config, is_needed=True):
        assert os.environ["DPEVAL_DATA"] == "/s/dpeval"
    assert "DPEVAL_DATA" not in os.environ
    monkeypatch.delenv("SCRATCH")
    with data_at(config):  # set in the job alone, perhaps
        assert "DPEVAL_DATA" not in os.environ
    with pytest.raises(ConfigError), data_at(config, is_needed=True):
        pass


def test_apptainer_starts_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPEVAL_DATA", "/data")
    box = ContainerConfig(image="/images/torch.sif", binds=["/a:/b"], arguments=["--cleanenv"])
    assert python_words(box, Path("/sweep/.submitit")) == [
        "apptainer", "exec", "--nv", "--bind", "/sweep", "--bind", str(tmp_path), "--bind", "/data",
        "--bind", "/a:/b", "--cleanenv", "/images/torch.sif", "python3",
    ]  # fmt: skip
    assert srun_words(box, Path("/sweep/.submitit")) == []
    assert python_words(ContainerConfig(), Path("/f")) == [sys.executable]
    rocm = ContainerConfig(image="x.sif", arguments=["--rocm"])
    assert "--nv" not in python_words(rocm, Path("/f"))


def test_pyxis_starts_the_container_with_srun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DPEVAL_DATA", raising=False)
    box = ContainerConfig(image="nvcr.io#nvidia/pytorch:25.01-py3", launcher="pyxis", binds=["/a"])
    assert python_words(box, Path("/sweep/.submitit")) == ["python3"]
    assert srun_words(box, Path("/sweep/.submitit")) == [
        "--container-image=nvcr.io#nvidia/pytorch:25.01-py3",
        f"--container-mounts=/sweep:/sweep,{tmp_path}:{tmp_path},/a:/a",
        f"--container-workdir={tmp_path}",
    ]
    with pytest.raises(ConfigError, match="is a plugin of SLURM"):
        check_on_oar(box, 1)


def test_the_interpreter_is_checked_after_the_sites_setup(tmp_path: Path) -> None:
    said: list[str] = []
    assert check_interpreter(SiteConfig(), ["export A=1"], said.append) == sys.executable
    assert said == []
    check_interpreter(SiteConfig(), ["echo no such module >&2; exit 3"], said.append)
    assert said == [
        f"warning: {sys.executable} does not start after site.setup on this machine: no such module"
    ]
    gone = SiteConfig(container=ContainerConfig(image=str(tmp_path / "x.sif")))
    with pytest.raises(LaunchError, match=r"image=.*x\.sif does not exist here"):
        check_interpreter(gone, [], said.append)
