"""Jobs that a scheduler has and a manifest does not list are found, and none is sent twice."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from submitit.core.utils import DelayedSubmission

from dpeval import record
from dpeval.config import SweepConfig
from dpeval.errors import LaunchError
from dpeval.launchers.in_job import start_job
from dpeval.launchers.in_job.run_job import PreparationJob, SubmittedRuns
from dpeval.launchers.schedulers import slurm as slurm_module
from dpeval.launchers.schedulers.base import JobState
from dpeval.launchers.schedulers.oar import scheduler as oar_module
from dpeval.launchers.schedulers.oar.scheduler import Oar
from dpeval.launchers.schedulers.slurm import Slurm
from dpeval.launchers.submission.submit import _close_to_others, _make_private
from dpeval.launchers.tracking import job_spec, resume
from dpeval.launchers.tracking import manifest as manifests
from dpeval.launchers.tracking.job_spec import JobSpec
from dpeval.launchers.tracking.local_process import this_process
from dpeval.launchers.tracking.manifest import Manifest, ManifestRun, Process
from dpeval.launchers.tracking.reconcile import end_strays, reconciled
from dpeval.launchers.tracking.resume import skip_reasons
from dpeval.launchers.tracking.run_status import run_statuses
from dpeval.launchers.tracking.wait import cancel
from tests.unit.test_run_status import CONFIG


class Accepted(Slurm):
    """SLURM in whose queue these jobs are."""

    def __init__(self, *job_ids: str) -> None:
        self.job_ids, self.cancelled, self.asked = list(job_ids), list[str](), 0

    def find(self, folder: Path) -> list[str]:
        self.asked += 1
        return self.job_ids

    def query(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        return {one: JobState(state="queued") for one in job_ids if one in self.job_ids}

    def cancel(self, job_ids: Sequence[str]) -> None:
        self.cancelled += job_ids


def killed() -> Process:
    """A process that has ended."""
    own = this_process()
    with subprocess.Popen(["true"]) as child:
        pass
    return own.model_copy(update={"pid": child.pid})


def interrupted(sweep: Path, submitter: Process | None = None, count: int = 3) -> Manifest:
    """A sweep whose submitting process was killed before it had written an id down."""
    runs = []
    for number in range(count):
        spec = JobSpec.of("slurm", CONFIG, ("batch=16",), requeue=0)
        job_spec.write(spec.model_copy(update={"identity": f"mark{number}"}), sweep / str(number))
        runs.append(
            ManifestRun(
                number=number,
                folder=str(number),
                identity=f"mark{number}",
                label=f"run {number}",
                overrides=[],
            )
        )
    made = Manifest(
        launcher="slurm",
        token="abc",
        study="s",
        created_at="now",
        submitit_folder=str(sweep / ".submitit"),
        submitter=submitter or killed(),
        is_unsure=True,
        runs=runs,
    )
    (sweep / ".submitit").mkdir(mode=0o700)
    manifests.write(made, sweep)
    return made


def pickled(sweep: Path, job_id: str, call: Any) -> None:
    DelayedSubmission(call).dump(sweep / ".submitit" / f"{job_id}_submitted.pkl")


def test_accepted_jobs_are_matched_with_the_runs_of_their_pickles(tmp_path: Path) -> None:
    manifest = interrupted(tmp_path)
    pickled(tmp_path, "7_0", SubmittedRuns((str(tmp_path / "1"),)))
    pickled(tmp_path, "8", SubmittedRuns((str(tmp_path / "2"),)))
    pickled(tmp_path, "6", PreparationJob(()))
    found = reconciled(manifest, tmp_path, Accepted("6", "7_0", "8", "9"))
    assert [run.job_id for run in found.manifest.runs] == [None, "7_0", "8"]
    assert found.manifest.prepare_job_id == "6"
    assert found.strays == ["9"], "it has no pickle, so it can measure nothing"
    assert "9" in found.words(tmp_path)
    assert manifests.read(tmp_path) == found.manifest


def test_cancel_ends_the_jobs_that_the_manifest_did_not_list(tmp_path: Path) -> None:
    manifest = interrupted(tmp_path)
    pickled(tmp_path, "7_0", SubmittedRuns((str(tmp_path / "1"),)))
    asked = Accepted("7_0", "9")
    assert cancel(manifest, tmp_path, asked).job_ids == ["7_0", "9"]
    assert asked.cancelled == ["7_0", "9"]


def test_resume_sends_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = tmp_path / "study" / "old"
    interrupted(sweep)
    pickled(sweep, "7", SubmittedRuns((str(sweep / "1"),)))
    monkeypatch.setattr(resume, "tracker", lambda _: Accepted("7"))
    own, wanted = tmp_path / "study" / "new", ["mark0", "mark1", "mark2"]
    found = skip_reasons(wanted, SweepConfig(resume=str(sweep)), tmp_path / "study", own)
    assert found == {"mark1": f"job 7 of {sweep} is queued"}

    still = tmp_path / "study" / "other"
    interrupted(still, this_process())
    found = skip_reasons(wanted, SweepConfig(resume=str(still)), tmp_path / "study", own)
    assert set(found) == set(wanted), "a living process is submitting them"


def test_resume_ends_the_jobs_that_measure_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tmp_path / "study" / "old"
    interrupted(sweep)
    pickled(sweep, "7", SubmittedRuns((str(sweep / "1"),)))
    has = Accepted("7", "8")  # sbatch was killed before submitit could name the pickle of job 8
    monkeypatch.setattr(resume, "tracker", lambda _: has)
    asked = (["mark0", "mark1"], SweepConfig(resume=str(sweep)), tmp_path, tmp_path / "new")
    found = skip_reasons(*asked, is_dry=True)
    assert (set(found), has.cancelled) == ({"mark1"}, [])
    assert (skip_reasons(*asked), has.cancelled) == (found, ["8"])


def test_a_run_that_is_being_submitted_is_queued(tmp_path: Path) -> None:
    manifest = interrupted(tmp_path, this_process())
    asked = Accepted("9")
    assert reconciled(manifest, tmp_path, asked).strays == [], "its id may be written any moment"
    assert {one.standing for one in run_statuses(manifest, tmp_path, asked)} == {"queued"}
    gone = manifest.model_copy(update={"submitter": killed()})
    assert {one.standing for one in run_statuses(gone, tmp_path, asked)} == {"not submitted"}


def test_a_submitter_on_another_machine_counts_until_its_manifest_is_old(tmp_path: Path) -> None:
    elsewhere = this_process().model_copy(update={"host": "login2"})
    manifest = interrupted(tmp_path, elsewhere)
    assert reconciled(manifest, tmp_path, Accepted("9")).strays == []
    os.utime(tmp_path / manifests.FILE_NAME, (1.0, 1.0))
    assert reconciled(manifest, tmp_path, Accepted("9")).strays == ["9"]


def test_the_scheduler_is_not_asked_where_all_is_known(tmp_path: Path) -> None:
    asked = Accepted("9")
    sure = interrupted(tmp_path).model_copy(update={"submitter": None, "is_unsure": False})
    assert reconciled(sure, tmp_path, asked).strays == []
    assert asked.asked == 0


def test_pickles_that_others_could_have_written_are_not_loaded(tmp_path: Path) -> None:
    manifest = interrupted(tmp_path)
    pickled(tmp_path, "7", SubmittedRuns((str(tmp_path / "1"),)))
    (tmp_path / ".submitit" / "7_submitted.pkl").chmod(0o666)
    (tmp_path / ".submitit" / "8_submitted.pkl").write_bytes(b"no pickle")
    assert reconciled(manifest, tmp_path, Accepted("7", "8")).strays == ["7", "8"]


def test_what_a_scheduler_accepts_without_an_answer_is_cancelled(tmp_path: Path) -> None:
    asked = Accepted("7_0", "7_1", "8")
    words = end_strays(asked, tmp_path, {"8"})
    assert asked.cancelled == ["7_0", "7_1"]
    assert words.endswith("cancelled: 7_0 7_1")


def test_jobs_are_known_by_where_their_scripts_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "it's a sweep" / ".submitit"
    listed = f"4_0|{folder}/.submission_file_1.sh\n5|{folder}2/.submission_file_1.sh\n6|(null)\n"
    monkeypatch.setattr(slurm_module, "run_command", lambda _: listed)
    assert Slurm().find(folder) == ["4_0"]
    command = f"/bin/bash {shlex.quote(f'{folder}/s.sh')}".replace("\\", "\\\\").replace('"', '\\"')
    jobs = f'{{"4": {{"command": "{command}"}}, "5": {{"command": "sleep it\'s"}}, "6": {{}}}}'
    monkeypatch.setattr(oar_module, "run_command", lambda _: jobs)
    assert Oar().find(folder) == ["4"]


def test_folders_of_pickles_belong_to_their_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    _make_private(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    if os.geteuid() == 0:
        os.chown(folder, 12345, -1)
        with pytest.raises(LaunchError, match=r"others can write to .*b, from which jobs load"):
            _make_private(folder)


@pytest.mark.parametrize("now", ["batch=17", None, "{"])
def test_a_job_runs_only_what_was_submitted(
    tmp_path: Path, now: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(tmp_path, count=1)
    folder, path = tmp_path / "0", tmp_path / "0" / job_spec.SPEC_NAME
    call = SubmittedRuns((str(folder),), (path.read_text().rstrip(),))
    if now is None:
        path.unlink()
    else:
        path.write_text(path.read_text().replace("batch=16", now) if "=" in now else now)
    with pytest.raises(SystemExit):
        call()
    made = record.read(folder / record.FILE_NAME)
    assert made.cause is not None
    assert (made.status, made.cause.kind, made.overrides) == ("failed", "setup", ["batch=16"])
    assert "job.json is not what was submitted" in made.cause.message
    assert "Traceback" not in capsys.readouterr().err


def test_a_job_loads_nothing_that_others_can_have_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A member of the group may have moved the sweep and put another in its place."""
    folder = tmp_path / ".submitit"
    folder.mkdir()
    folder.chmod(0o770)
    monkeypatch.setattr("sys.argv", ["start_job", str(folder)])
    assert start_job.main() == 2
    assert "others can write" in capsys.readouterr().err


def test_only_its_owner_can_put_files_in_a_submitted_sweep(tmp_path: Path) -> None:
    tmp_path.chmod(0o2775)
    _close_to_others(tmp_path)
    assert tmp_path.stat().st_mode & 0o7777 == 0o2755, "the group may read its records"
