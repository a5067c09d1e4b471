"""Sweeps through launchers that are not dpeval's."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import psutil

from dpeval.record.schema import Record
from tests.multiprocess.conftest import CALIBRATED, Finished, descendants

SHORT = (*CALIBRATED, "measure.time_limit_s=3", "measure.conditions=false")
LOCAL = ("-m", "hydra/launcher=submitit_local")


def span_s(record: Record) -> tuple[float, float]:
    """When a run began and ended, in seconds since the epoch."""
    begun_s = datetime.fromisoformat(record.started_at).timestamp()
    return begun_s, begun_s + record.wall_s


def test_submitit_local_measures_one_run_at_a_time_and_prints_them(
    train: Callable[..., Finished],
) -> None:
    done = train(*LOCAL, *SHORT, "batch=4,8")
    assert done.status == 0, done.out + done.err
    assert [record.config["batch"] for record in done.records] == [4, 8]
    (_, first_ended_s), (second_begun_s, _) = sorted(map(span_s, done.records))
    assert first_ended_s <= second_begun_s
    assert done.out.index("batch 4") < done.out.index("batch 8") < done.out.index("records: ")


def test_a_failed_run_of_submitit_local_is_recorded_and_decides_the_exit_status(
    train: Callable[..., Finished],
) -> None:
    done = train(*LOCAL, *SHORT, "batch=4,8", "+model.args.faults.fail_at_step=2")
    assert (done.status, [record.status for record in done.records]) == (1, ["failed"] * 2)
    assert "both runs failed" in done.err
    assert "Traceback" not in done.err


def jobs_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The jobs of submitit that run below `process`, without what they started themselves."""
    found: list[psutil.Process] = []
    for child in descendants(process.pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            is_job = "submitit.core._submit" in child.cmdline()
            if is_job and child.ppid() not in [job.pid for job in found]:
                found.append(child)
    return found


def test_a_killed_job_of_submitit_local_has_a_record_and_the_other_runs_are_analysed(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start(*LOCAL, *SHORT, "batch=4,8", "analyze=true")
    deadline_s = time.monotonic() + 120
    while len(jobs := jobs_of(process)) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    jobs[0].kill()
    out, err = process.communicate(timeout=300)
    done = Finished(process.returncode, out, err, tmp_path)
    assert (done.status, "Traceback" in err) == (1, False), out + err
    assert "1 of 2 runs failed" in err
    assert sorted(record.status for record in done.records) == ["failed", "ok"]
    [failed] = [record for record in done.records if record.status == "failed"]
    assert failed.cause is not None
    assert failed.cause.kind == "exit"
    assert list(done.folder.glob("outputs/*/*/analysis/report.html"))


def test_a_fault_of_one_dataset_fails_its_runs_alone(
    train: Callable[..., Finished], tmp_path: Path
) -> None:
    options = (*SHORT, "dataset=calibrated,image_folder", "dataset.num_classes=10")
    done = train("-m", *options, f"dataset.root={tmp_path / 'gone'}", "batch=4")
    assert done.status == 1, done.out + done.err
    assert "Traceback" not in done.err
    assert [record.status for record in done.records] == ["ok", "failed"]
    cause = done.records[1].cause
    assert cause is not None
    assert (cause.kind, cause.exception) == ("setup", None)
    assert "does not exist; give the folder with train/<class>" in cause.message


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
