"""A run's status from its record or its job, records of runs without one, and resuming."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from dpeval import record
from dpeval.config import (
    Config,
    DatasetConfig,
    ModelConfig,
    SiteConfig,
    SweepConfig,
    identity,
    nodes_asked,
    to_plain,
)
from dpeval.errors import ConfigError, LaunchError
from dpeval.launchers.in_job.run_job import rebuild
from dpeval.launchers.schedulers.base import Ending, JobState
from dpeval.launchers.schedulers.slurm import Slurm
from dpeval.launchers.tracking import manifest as manifests
from dpeval.launchers.tracking import resume
from dpeval.launchers.tracking.job_spec import SPEC_NAME, JobSpec
from dpeval.launchers.tracking.manifest import Manifest, ManifestRun, mark_of
from dpeval.launchers.tracking.resume import skip_reasons
from dpeval.launchers.tracking.run_status import (
    Progress,
    RunStatus,
    counts,
    run_statuses,
    write_progress,
)
from dpeval.launchers.tracking.wait import cancel, settle
from dpeval.run.recording import endings
from tests.records import make_record

CONFIG = Config(
    model=ModelConfig(name="calibrated"), dataset=DatasetConfig(name="d", _target_="t"), batch=16
)


class Answers(Slurm):
    """SLURM with predefined states."""

    def __init__(self, **states: JobState) -> None:
        self.states = {key.removeprefix("job"): state for key, state in states.items()}
        self.cancelled: list[str] = []

    def query(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        return {job_id: self.states[job_id] for job_id in job_ids if job_id in self.states}

    def cancel(self, job_ids: Sequence[str]) -> None:
        self.cancelled += job_ids


def sent(tmp_path: Path, count: int = 1) -> Manifest:
    """A sweep of `count` runs whose job ids are their numbers."""
    runs = []
    for number in range(count):
        folder = tmp_path / str(number)
        folder.mkdir()
        spec = JobSpec(
            launcher="slurm",
            config=to_plain(CONFIG),
            overrides=["batch=16"],
            identity=identity(CONFIG),
            requeue=0,
        )
        (folder / SPEC_NAME).write_text(spec.model_dump_json())
        runs.append(
            ManifestRun(
                number=number,
                folder=str(number),
                identity=identity(CONFIG),
                label=f"run {number}",
                overrides=["batch=16"],
                job_id=str(number),
            )
        )
    (tmp_path / "logs").mkdir()
    return Manifest(
        launcher="slurm",
        token="abc",
        study="s",
        created_at="now",
        submitit_folder=str(tmp_path / "logs"),
        runs=runs,
    )


def only(manifest: Manifest, tmp_path: Path, state: JobState | None) -> RunStatus:
    [status] = run_statuses(manifest, tmp_path, Answers(**({"job0": state} if state else {})))
    return status


@pytest.mark.parametrize(
    ("ending", "standing", "kind"),
    [
        ("cancelled", "interrupted", "cancelled"),
        ("preempted", "interrupted", "preempted"),
        ("timeout", "failed", "time_limit"),
        ("node_fail", "failed", "node_fail"),
        ("oom_kill", "oom", "oom_kill"),
        ("failed", "failed", "exit"),
        ("completed", "lost", "lost"),
    ],
)
def test_a_job_that_ended_without_a_record_has_a_cause(
    tmp_path: Path, ending: Ending, standing: str, kind: str
) -> None:
    manifest = sent(tmp_path)
    (tmp_path / "logs" / "0_0_log.err").write_text("x" * 5000 + "\nthe last line\n")
    found = only(manifest, tmp_path, JobState(state="ended", ending=ending, reason="why"))
    assert (found.standing, found.kind) == (standing, kind)
    assert found.log.endswith("the last line")
    assert "why" in found.text
    settle(found, tmp_path, "slurm")
    written = record.read(tmp_path / "0" / "metrics.json")
    assert written.cause is not None
    assert (written.identity, written.cause.kind) == (identity(CONFIG), kind)
    assert "environment" in written.missing


@pytest.mark.parametrize(
    "line", ["[Errno 28] No space left on device", "[Errno 122] Disk quota exceeded"]
)
def test_a_full_disk_is_recognised_in_the_log(tmp_path: Path, line: str) -> None:
    manifest = sent(tmp_path)
    (tmp_path / "logs" / "0_0_log.err").write_text(f"OSError: {line}")
    found = only(manifest, tmp_path, JobState(state="ended", ending="failed"))
    assert (found.standing, found.kind) == ("failed", "disk_full")


def test_running_shows_host_stage_steps_and_speed(tmp_path: Path) -> None:
    manifest = sent(tmp_path)
    running = JobState(state="running", nodes="node7")
    assert only(manifest, tmp_path, running).text == "on node7: starting"
    now = Progress(host="h", stage="measuring", steps=12, img_per_s=34.5, at_s=2e9)
    write_progress(now, tmp_path / "0")
    found = only(manifest, tmp_path, running)
    assert (found.text, found.img_per_s) == ("on h: measuring, 12 steps", 34.5)


def test_an_unknown_job_without_a_record_is_lost(tmp_path: Path) -> None:
    assert only(sent(tmp_path), tmp_path, None).standing == "lost"


def test_a_requeued_run_is_queued(tmp_path: Path) -> None:
    manifest = sent(tmp_path)
    stopped = only(manifest, tmp_path, JobState(state="ended", ending="cancelled"))
    settle(stopped, tmp_path, "slurm")
    queued = only(manifest, tmp_path, JobState(state="queued", reason="BeginTime"))
    expected = ("queued", "BeginTime (requeued after an interruption)")
    assert (queued.standing, queued.text) == expected


def test_settling_never_replaces_a_record(tmp_path: Path) -> None:
    manifest = sent(tmp_path)
    ended = only(manifest, tmp_path, JobState(state="ended", ending="failed"))
    (tmp_path / "0" / "metrics.json").write_text("the real one")
    settle(ended, tmp_path, "slurm")
    assert (tmp_path / "0" / "metrics.json").read_text() == "the real one"
    assert not list((tmp_path / "0").glob(".metrics*"))


def test_cancel_ends_only_queued_and_running_jobs(tmp_path: Path) -> None:
    manifest = sent(tmp_path, 3)
    asked = Answers(
        job0=JobState(state="running"),
        job1=JobState(state="queued"),
        job2=JobState(state="ended", ending="completed"),
    )
    assert cancel(manifest, tmp_path, asked).words() == "2 jobs cancelled: 0 1"
    assert asked.cancelled == ["0", "1"]


def test_counts_list_ok_running_and_queued_first(tmp_path: Path) -> None:
    manifest = sent(tmp_path, 3)
    asked = Answers(job0=JobState(state="running"), job1=JobState(state="queued"))
    assert counts(run_statuses(manifest, tmp_path, asked)) == "1 running, 1 queued, 1 lost"


def test_a_manifest_round_trips_and_its_absence_is_an_error(tmp_path: Path) -> None:
    manifest = sent(tmp_path, 2)
    manifests.write(manifest, tmp_path)
    assert manifests.read(tmp_path) == manifest
    with pytest.raises(LaunchError, match="not the folder of a sweep"):
        manifests.read(tmp_path / "0")
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(LaunchError, match="not the manifest"):
        manifests.read(tmp_path)


def test_a_configuration_round_trips_through_json() -> None:
    assert rebuild(json.loads(json.dumps(to_plain(CONFIG)))) == CONFIG


def test_resume_leaves_out_finished_runs(tmp_path: Path) -> None:
    folder = tmp_path / "study" / "old" / "0"
    folder.mkdir(parents=True)
    path = folder / "metrics.json"
    asked = [identity(CONFIG), "other"]
    path.write_text(json.dumps({"status": "failed", "identity": identity(CONFIG)}))
    study, own = tmp_path / "study", tmp_path / "study" / "new"
    assert skip_reasons(asked, SweepConfig(skip_done=True), study, own) == {}
    path.write_text(json.dumps({"status": "ok", "identity": identity(CONFIG)}))
    assert skip_reasons(asked, SweepConfig(), study, own) == {}
    found = skip_reasons(asked, SweepConfig(skip_done=True), study, own)
    assert found == {identity(CONFIG): f"done in {folder}"}
    assert skip_reasons(asked, SweepConfig(resume=str(tmp_path / "study/old")), study, own) == found
    with pytest.raises(ConfigError, match=r"sweep\.resume"):
        skip_reasons(asked, SweepConfig(resume=str(tmp_path / "nowhere")), study, own)


def test_a_run_on_another_kind_of_node_is_not_done(tmp_path: Path) -> None:
    folder = tmp_path / "old" / "0"
    folder.mkdir(parents=True)
    site = {"name": "jean_zay", "gpu_constraint": "v100-32g", "account": "x"}
    content = {"status": "ok", "identity": "id", "config": {"site": site}, "scheduler": {}}
    (folder / "metrics.json").write_text(json.dumps(content))
    v100 = mark_of("id", nodes_asked({**site, "account": "y", "scratch": None}))
    a100 = mark_of("id", nodes_asked({**site, "gpu_constraint": "a100"}))
    found = skip_reasons(
        [v100, a100, "id"], SweepConfig(resume=str(tmp_path)), tmp_path, tmp_path / "new"
    )
    assert set(found) == {v100}
    assert nodes_asked({"name": "generic", "exclusive": False}) == ""


def test_what_the_launcher_asks_of_a_node_decides_what_is_done(tmp_path: Path) -> None:
    site = dataclasses.asdict(SiteConfig())
    asked = [
        nodes_asked(site, {"gres": "gpu:a100:1"}),
        nodes_asked(site, {"gres": "gpu:v100:1"}),
        nodes_asked(site, {"gpus_per_node": 4}),
        nodes_asked(site, {"additional_parameters": {"gpus-per-node": "a100:1"}}),
        nodes_asked(site, {"additional_parameters": {"p": "gpu_model = 'A100'"}}),
        nodes_asked({**site, "options": {"nodelist": "node7"}}),
        nodes_asked(site, {"timeout_min": 5, "additional_parameters": {"comment": "x"}}),
    ]
    assert len(set(asked)) == len(asked)
    assert asked[-1] == "", "neither changes which nodes will do"
    folder = tmp_path / "old" / "0"
    folder.mkdir(parents=True)
    content = {"status": "ok", "identity": "id", "config": {"site": site}}
    content |= {"scheduler": {"nodes_asked": asked[0]}}
    (folder / "metrics.json").write_text(json.dumps(content))
    marks = [mark_of("id", one) for one in asked]
    found = skip_reasons(marks, SweepConfig(resume=str(tmp_path)), tmp_path, tmp_path / "new")
    assert set(found) == {marks[0]}


def in_one_job(tmp_path: Path, count: int) -> Manifest:
    """A sweep whose runs share job 0."""
    manifest = sent(tmp_path, count)
    runs = [run.model_copy(update={"job_id": "0"}) for run in manifest.runs]
    return manifest.model_copy(update={"runs": runs})


def published(folder: Path, stage: str, at_s: float = 2e9) -> None:
    write_progress(Progress(host="h", stage=stage, steps=9, img_per_s=5.0, at_s=at_s), folder)


def test_each_run_of_a_shared_job_has_a_status_of_its_own(tmp_path: Path) -> None:
    manifest = in_one_job(tmp_path, 4)
    asked = Answers(job0=JobState(state="running", nodes="node7"))
    published(tmp_path / "1", "measuring")
    published(tmp_path / "2", "finished", at_s=1.0)
    failed = RunStatus(run=manifest.runs[3], standing="oom", kind="memory", text="too large")
    settle(failed, tmp_path, "slurm")
    found = run_statuses(manifest, tmp_path, asked)
    assert [one.standing for one in found] == ["running", "running", "running", "oom"]
    assert found[0].text == "on node7: starting, or waiting for its first turn"
    assert found[1].text == "on h: measuring, 9 steps"
    assert found[2].text == "on h: measured, waiting for the others of its job, 9 steps"
    queued = run_statuses(manifest, tmp_path, Answers(job0=JobState(state="queued")))
    assert [one.standing for one in queued] == ["queued"] * 3 + ["oom"]


@pytest.mark.parametrize(
    ("ending", "begun", "not_begun"),
    [
        ("timeout", ("failed", "time_limit"), ("interrupted", "time_limit")),
        ("node_fail", ("failed", "node_fail"), ("interrupted", "node_fail")),
        # Which run took the memory is not known.
        ("oom_kill", ("failed", "oom_kill"), ("interrupted", "oom_kill")),
        ("failed", ("failed", "exit"), ("failed", "exit")),
        ("cancelled", ("interrupted", "cancelled"), ("interrupted", "cancelled")),
    ],
)
def test_a_shared_job_that_is_killed_ends_only_the_runs_that_had_begun(
    tmp_path: Path, ending: Ending, begun: tuple[str, str], not_begun: tuple[str, str]
) -> None:
    manifest = in_one_job(tmp_path, 2)
    published(tmp_path / "0", "measuring")
    asked = Answers(job0=JobState(state="ended", ending=ending, reason="why"))
    found = run_statuses(manifest, tmp_path, asked)
    assert [(one.standing, one.kind) for one in found] == [begun, not_begun]
    for status in found:
        settle(status, tmp_path, "slurm")
    written = [record.read(tmp_path / str(at) / "metrics.json") for at in (0, 1)]
    assert [one.status for one in written] == [begun[0], not_begun[0]]


@pytest.mark.parametrize(
    ("ending", "kind"), [("timeout", "time_limit"), ("node_fail", "node_fail")]
)
def test_what_a_killed_job_had_measured_is_shown_with_the_cause(
    tmp_path: Path, ending: Ending, kind: str
) -> None:
    manifest = in_one_job(tmp_path, 2)
    published(tmp_path / "0", "measuring")
    so_far = make_record(2, status="failed", throughput=make_record(2).throughput)
    record.write(endings.provisional(so_far), tmp_path / "0" / "metrics.json")
    asked = Answers(job0=JobState(state="running", nodes="node7"))
    running = run_statuses(manifest, tmp_path, asked)[0]
    assert (running.standing, running.img_per_s) == ("running", 5.0), "what it published"
    (tmp_path / "0" / "progress.json").unlink()
    running = run_statuses(manifest, tmp_path, asked)[0]
    assert so_far.throughput is not None
    assert (running.standing, running.img_per_s) == ("running", so_far.throughput.img_per_s)
    published(tmp_path / "0", "measuring")
    asked = Answers(job0=JobState(state="ended", ending=ending, reason="why"))
    found = run_statuses(manifest, tmp_path, asked)[0]
    assert (found.standing, found.kind) == ("failed", kind)
    assert found.img_per_s == so_far.throughput.img_per_s
    settle(found, tmp_path, "slurm")
    assert record.read(tmp_path / "0" / "metrics.json").throughput == so_far.throughput
    gone = run_statuses(manifest, tmp_path, Answers())[0]
    assert (gone.standing, gone.kind) == ("interrupted", "lost")


def test_cancelling_a_shared_job_cancels_it_once(tmp_path: Path) -> None:
    manifest = in_one_job(tmp_path, 3)
    asked = Answers(job0=JobState(state="running"))
    assert cancel(manifest, tmp_path, asked).words() == "1 job with 3 runs cancelled: 0"
    assert asked.cancelled == ["0"]


def test_what_has_ended_in_a_running_job_is_not_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "study" / "old"
    old.mkdir(parents=True)
    manifests.write(in_one_job(old, 1), old)
    asked = Answers(job0=JobState(state="running"))
    monkeypatch.setattr(resume, "tracker", lambda _: asked)
    mark, own = identity(CONFIG), tmp_path / "study" / "new"
    wanted = SweepConfig(skip_done=True)
    found = skip_reasons([mark], wanted, tmp_path / "study", own)
    assert found == {mark: f"job 0 of {old} is running"}
    path = old / "0" / "metrics.json"
    path.write_text(json.dumps({"status": "failed", "identity": mark}))
    assert skip_reasons([mark], wanted, tmp_path / "study", own) == {}
    path.write_text(json.dumps({"status": "interrupted", "identity": mark}))
    assert skip_reasons([mark], wanted, tmp_path / "study", own) == found
