"""The manifest of a local sweep, and the status of its runs after its process has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dpeval import record
from dpeval.commands.sweep_status import statuses_of
from dpeval.config import SweepConfig, identity, to_plain
from dpeval.errors import LaunchError
from dpeval.launchers.tracking import manifest as manifests
from dpeval.launchers.tracking.local_process import LocalProcess, LocalSweep, this_process
from dpeval.launchers.tracking.manifest import Process
from dpeval.launchers.tracking.resume import skip_reasons
from dpeval.record.schema import Cause, blank
from tests.unit.test_run_status import CONFIG


@pytest.fixture
def sweep(tmp_path: Path) -> LocalSweep:
    """Three runs: the first has started, the third is left out."""
    folders = [tmp_path / str(number) for number in range(3)]
    made = LocalSweep(
        dict.fromkeys(folders, CONFIG),
        dict.fromkeys(folders, ("batch=16",)),
        tmp_path,
        {folder: f"run {folder.name}" for folder in folders},
        {folders[2]: "done"},
    )
    made.start(folders[:1])
    return made


def end_process(tmp_path: Path) -> Process:
    """Let the sweep's manifest name a process that has been killed."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started_s = psutil.Process(child.pid).create_time()
    child.kill()
    child.wait()
    assert child.stdin is not None
    child.stdin.close()
    process = Process(host=this_process().host, pid=child.pid, started_s=started_s)
    manifest = manifests.read(tmp_path)
    runs = [run.model_copy(update={"job_id": process.job_id}) for run in manifest.runs]
    manifests.write(manifest.model_copy(update={"process": process, "runs": runs}), tmp_path)
    return process


@pytest.mark.usefixtures("sweep")
def test_while_its_process_lives_a_sweep_is_running(tmp_path: Path) -> None:
    standings = [status.standing for status in statuses_of(tmp_path)]
    assert standings == ["running", "queued", "left out"]
    assert not list(tmp_path.rglob(record.FILE_NAME))


@pytest.mark.usefixtures("sweep")
def test_a_run_whose_process_was_killed_is_lost_and_leaves_a_record(tmp_path: Path) -> None:
    end_process(tmp_path)
    standings = [status.standing for status in statuses_of(tmp_path)]
    assert standings == ["lost", "not submitted", "left out"]
    (path,) = tmp_path.rglob(record.FILE_NAME)
    found = record.read(path)
    assert path.parent.name == "0"
    assert found.cause is not None
    assert (found.status, found.cause.kind, found.scheduler) == ("failed", "lost", None)
    # Nothing of it is done or running: a resumed sweep measures it.
    sweep = SweepConfig(resume=str(tmp_path))
    assert skip_reasons([identity(CONFIG)], sweep, tmp_path, tmp_path / "other") == {}


def test_a_run_that_a_stop_came_before_is_not_lost(sweep: LocalSweep, tmp_path: Path) -> None:
    sweep.not_started([tmp_path / "0"])
    end_process(tmp_path)
    standings = [status.standing for status in statuses_of(tmp_path)]
    assert standings == ["not submitted", "not submitted", "left out"]


@pytest.mark.usefixtures("sweep")
def test_a_record_that_was_written_in_time_is_kept(tmp_path: Path) -> None:
    cause = Cause(kind="exception", message="an error of its own")
    made = blank(to_plain(CONFIG), identity(CONFIG), [], "failed", cause)
    record.write(made, tmp_path / "0" / record.FILE_NAME)
    end_process(tmp_path)
    assert [status.kind for status in statuses_of(tmp_path)] == ["exception", "", ""]


@pytest.mark.usefixtures("sweep")
def test_a_run_that_another_local_sweep_measures_now_is_not_started_again(tmp_path: Path) -> None:
    reasons = skip_reasons(
        [identity(CONFIG)], SweepConfig(resume=str(tmp_path)), tmp_path, tmp_path / "other"
    )
    assert f"job {os.getpid()}@" in reasons[identity(CONFIG)]


def test_a_later_process_of_the_same_number_is_another() -> None:
    own = this_process()
    assert LocalProcess(own).query(["x"])["x"].state == "running"
    earlier = own.model_copy(update={"started_s": own.started_s - 60})
    assert LocalProcess(earlier).query(["x"])["x"].state == "ended"
    LocalProcess(earlier).cancel(["x"])  # or this test would end here


def test_a_sweep_is_cancelled_where_it_runs_alone() -> None:
    elsewhere = this_process().model_copy(update={"host": "elsewhere"})
    with pytest.raises(LaunchError, match="runs on elsewhere"):
        LocalProcess(elsewhere).cancel(["x"])
    assert LocalProcess(elsewhere).query(["x"])["x"].nodes == "elsewhere"
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    started_s = psutil.Process(child.pid).create_time()
    LocalProcess(
        this_process().model_copy(update={"pid": child.pid, "started_s": started_s})
    ).cancel(["x"])
    assert child.wait() == -signal.SIGTERM
