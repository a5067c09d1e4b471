"""Sweeps through launchers that are not dpeval's, and a scheduler from outside the package."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from dpeval.record.schema import Record
from tests.multiprocess.conftest import CALIBRATED, Finished

SHORT = (*CALIBRATED, "measure.time_limit_s=3", "measure.conditions=false")
LOCAL = ("-m", "hydra/launcher=submitit_local")


def span_s(record: Record) -> tuple[float, float]:
    """When a run began and ended, in seconds since the epoch."""
    begun_s = datetime.fromisoformat(record.started_at).timestamp()
    return begun_s, begun_s + record.wall_s


def test_submitit_local_measures_one_run_at_a_time_and_prints_them(
    train: Callable[..., Finished],
) -> None:
    done = train(*LOCAL, *SHORT, "batch=4,8", "analyze=true")
    assert done.status == 0, done.out + done.err
    assert [record.config["batch"] for record in done.records] == [4, 8]
    (_, first_ended_s), (second_begun_s, _) = sorted(map(span_s, done.records))
    assert first_ended_s <= second_begun_s
    assert done.out.index("batch 4") < done.out.index("batch 8") < done.out.index("records: ")
    assert list(done.folder.glob("outputs/*/*/analysis/report.html"))


def test_a_failed_run_of_submitit_local_is_recorded_and_decides_the_exit_status(
    train: Callable[..., Finished],
) -> None:
    done = train(*LOCAL, *SHORT, "batch=4,8", "+model.args.faults.fail_at_step=2")
    assert (done.status, [record.status for record in done.records]) == (1, ["failed"] * 2)
    assert "both runs failed" in done.err
    assert "Traceback" not in done.err


def test_what_only_dpevals_launchers_support_is_refused_before_anything_starts(
    train: Callable[..., Finished],
) -> None:
    done = train(*LOCAL, *SHORT, "batch=4,8", "repeat=2")
    assert (done.status, done.records) == (2, [])
    assert done.err.startswith("dpeval: ")
    assert "repeat=2" in done.err
    wrong = train(*LOCAL, *SHORT, "batch=4,0")
    assert (wrong.status, wrong.records) == (2, [])
    assert "batch=0" in wrong.err


SCHEDULER = '''
"""A scheduler outside the package: local processes, started by submitit's own executor."""

import psutil
import submitit

from dpeval.launchers.schedulers.base import JobState, Scheduler
from dpeval.record.schema import Scheduler as JobRecord
from dpeval.run.job import Node


class Processes(Scheduler):
    name = "processes"

    def parameters(self, resources, site, options, job_name):
        return {"timeout_min": resources.time_min}

    def preview(self, group, folder, options):
        return f"{len(group.members)} processes"

    def executor(self, folder, parameters, site, options):
        executor = submitit.LocalExecutor(folder)
        executor.update_parameters(**parameters)
        return executor

    def after(self, parameters, job_id):
        return parameters

    def query(self, job_ids):
        return {
            job_id: JobState(state="running")
            if psutil.pid_exists(int(job_id))
            else JobState(state="ended", ending="completed")
            for job_id in job_ids
        }

    def cancel(self, job_ids):
        for job_id in job_ids:
            psutil.Process(int(job_id)).terminate()

    def describe_job(self, environment):
        return JobRecord(kind=self.name, job_id=environment["SUBMITIT_LOCAL_JOB_ID"])

    def node_in_job(self, environment, count, folder):
        return Node(0, count, folder, "only")

    def other_jobs(self, job, environment):
        return {}

    def requeue(self, environment):
        return 1
'''


def test_a_scheduler_outside_the_package_is_one_module_and_one_yaml_file(
    train: Callable[..., Finished], tmp_path: Path
) -> None:
    (tmp_path / "my_scheduler.py").write_text(SCHEDULER)
    group = tmp_path / "conf" / "hydra" / "launcher"
    group.mkdir(parents=True)
    (group / "processes.yaml").write_text(
        "defaults: [scheduler]\nscheduler: my_scheduler.Processes\npoll_s: 0.5\n"
    )
    sweep = ("-m", "hydra/launcher=processes", *SHORT, "batch=4")
    shown = train(*sweep, "hydra.launcher.dry_run=true")
    assert (shown.status, shown.records) == (0, []), shown.err
    assert "1 processes" in shown.out
    done = train(*sweep)
    assert done.status == 0, done.out + done.err
    assert done.record.scheduler is not None
    assert done.record.scheduler.kind == "processes"
    [manifest] = done.folder.glob("outputs/*/*/sweep.json")
    assert json.loads(manifest.read_text())["launcher"] == "my_scheduler.Processes"
    wrong = train("-m", "hydra/launcher=processes", "hydra.launcher.scheduler=pathlib.Path", *SHORT)
    assert wrong.status == 2
    assert wrong.err.startswith("dpeval: ")
