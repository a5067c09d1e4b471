"""However a run ends: its ranks end, its record gives the cause, the sweep continues."""

from __future__ import annotations

import io
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from dpeval.commands.hydra_app import compose
from dpeval.commands.sweep_status import statuses_of
from dpeval.launchers.in_job import execution
from dpeval.launchers.tracking.job_spec import JobSpec
from dpeval.record.io import FILE_NAME, read
from dpeval.record.schema import Record
from dpeval.run.console import PlainReporter
from dpeval.run.recording import record_builder
from dpeval.run.session import Session
from tests.multiprocess.conftest import (
    ANNOUNCING,
    CALIBRATED,
    Finished,
    descendants,
    ranks_of,
    wait_for_none,
)

Start = Callable[..., subprocess.Popen[str]]
Train = Callable[..., Finished]
FOUR = (*CALIBRATED, "num_devices=4", "hardware.oversubscribe=true")
ENDLESS = (
    *ANNOUNCING, "num_devices=4", "hardware.oversubscribe=true",
    "measure.rel_precision=4e-5", "measure.time_limit_s=250", "measure.max_steps=90000",
)  # fmt: skip


def ended(process: subprocess.Popen[str], folder: Path) -> Finished:
    out, err = process.communicate(timeout=300)
    return Finished(process.returncode, out, err, folder)


def test_a_rank_that_raises_is_named_and_the_sweep_continues(train: Train) -> None:
    done = train(
        "-m", *FOUR, "repeat=1", "batch=8,16",
        "model.args.faults={fail_at_step: 7, straggler_rank: 2}",
    )  # fmt: skip
    assert done.status == 1
    assert [run.status for run in done.records] == ["failed", "failed"]
    cause = done.records[0].cause
    assert cause is not None
    assert (cause.kind, cause.rank, cause.exception) == ("exception", 2, "RuntimeError")
    assert "RuntimeError: injected failure in step 7" in cause.message
    assert done.out.count("injected failure in step 7") == 2, "once for each run"
    assert done.err.count("injected failure in step 7") == 1
    assert "Traceback" in cause.log
    assert "Traceback" not in done.err
    assert "both runs failed" in done.err


NAMED = {
    "0: out_of_memory after 1, 1: abort": ("oom", 0),
    "0: abort after 0.3, 1: out_of_memory": ("oom", 1),
    "0: error after 1, 1: abort, 2: leave": ("exception", 0),
    "0: error, 1: out_of_memory after 0.3": ("oom", 1),
    "1: abort": ("signal", 1),
    "1: leave": ("exit", 1),
}
"""How ranks end, and the cause and the rank that the record must name."""


def test_the_cause_is_named_and_not_what_it_caused_in_other_ranks(train: Train) -> None:
    every = ",".join(f"{{ends: {{{ends}}}}}" for ends in NAMED)
    done = train(
        "-m", *CALIBRATED, "num_devices=3", "hardware.oversubscribe=true",
        "model._target_=tests.multiprocess.ending.build", f"model.args={every}",
    )  # fmt: skip
    assert len(done.records) == len(NAMED), done.err
    for run, (ends, (kind, rank)) in zip(done.records, NAMED.items(), strict=True):
        assert run.cause is not None, ends
        assert (run.cause.kind, run.cause.rank) == (kind, rank), (ends, run.cause)
        assert run.status == ("oom" if kind == "oom" else "failed"), ends


def test_a_rank_that_is_killed_ends_the_run(start: Start, tmp_path: Path) -> None:
    process = start(*ENDLESS)
    ranks = ranks_of(process, tmp_path, 4)
    ranks[1].kill()
    done = ended(process, tmp_path)
    assert done.status == 1
    cause = done.record.cause
    assert cause is not None
    # Not "hang", which is found only after seconds of silence.
    assert (cause.kind, cause.signal) == ("signal", "SIGKILL")
    assert cause.rank is not None
    assert done.record.ranks[0].step_s, "what was measured until then is kept"
    wait_for_none(ranks)


def test_a_suspended_rank_is_found_hung(start: Start, tmp_path: Path) -> None:
    process = start(*ENDLESS)
    ranks = ranks_of(process, tmp_path, 4)
    ranks[2].suspend()
    done = ended(process, tmp_path)
    assert done.record.status == "failed"
    cause = done.record.cause
    assert cause is not None
    assert cause.kind == "hang"
    assert cause.rank is not None, "the stopped rank is named"
    wait_for_none(ranks)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_was_measured(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    process = start("-m", *ENDLESS, "batch=8,16", "sweep.order=sequential")
    ranks = ranks_of(process, tmp_path, 4)
    process.send_signal(number)
    done = ended(process, tmp_path)
    assert done.status == 130
    (run,) = done.records  # the second was not started
    assert run.status == "interrupted"
    assert run.cause is not None
    assert run.cause.signal == number.name
    assert run.window is not None
    assert run.window.stopped_by == "interrupted"
    assert run.throughput is not None
    assert run.throughput.low < run.throughput.img_per_s < run.throughput.high
    assert "Traceback" not in done.err
    wait_for_none(ranks)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_for_the_whole_group_reaches_the_parent_alone(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    """As a terminal sends one on Ctrl-C or when the connection drops."""
    process = start(*ENDLESS)
    ranks = ranks_of(process, tmp_path, 4)
    os.killpg(process.pid, number)
    done = ended(process, tmp_path)
    assert done.status == 130
    assert done.record.status == "interrupted"
    assert done.record.throughput is not None
    wait_for_none(ranks)


def test_no_orphan_when_the_parent_is_killed(start: Start, tmp_path: Path) -> None:
    process = start(*ENDLESS)
    ranks_of(process, tmp_path, 4)
    below = descendants(process.pid)
    process.kill()
    process.wait()
    wait_for_none(below)
    assert list(tmp_path.glob("outputs/**/*.tmp")) == []
    assert list(tmp_path.glob("outputs/**/metrics.json")) == []
    (manifest,) = tmp_path.glob("outputs/**/sweep.json")
    (status,) = statuses_of(manifest.parent)
    assert status.standing == "lost"
    assert status.run.job_id is not None
    assert status.run.job_id.startswith(f"{process.pid}@")


def test_finished_ranks_leave_no_process(train: Train) -> None:
    done = train(*FOUR)
    assert done.status == 0
    pids = [rank.pid for rank in done.record.ranks]
    assert len(set(pids)) == 4
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.fixture
def session() -> Session:
    return Session(PlainReporter(Console(file=io.StringIO())))


def stop_before_the_record(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    """Send a signal to this process when the last step is done and nothing is recorded yet."""
    finish = record_builder.finish

    def finish_late(*arguments: Any) -> Record:
        signal.raise_signal(number)
        return finish(*arguments)

    monkeypatch.setattr(record_builder, "finish", finish_late)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt; a shell starts what runs in the background without that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_last_step_keeps_all_that_was_measured(
    session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    stop_before_the_record(monkeypatch, number)
    run = session.execute(session.job(compose([*CALIBRATED]), tmp_path, []))
    assert run == read(tmp_path / FILE_NAME)
    assert run.status == "interrupted"
    assert run.cause is not None
    assert (run.cause.kind, run.cause.signal) == ("interrupt", number.name)
    assert run.throughput is not None
    assert run.window is not None
    assert run.window.stopped_by != "interrupted"


@pytest.mark.usefixtures("interruptible")
def test_a_signal_after_a_failure_ends_the_sweep_and_not_the_record(
    session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stop_before_the_record(monkeypatch, signal.SIGINT)
    job = session.job(compose([*CALIBRATED, "model.args.faults.fail_at_step=3"]), tmp_path, [])
    with pytest.raises(KeyboardInterrupt):
        session.execute(job)
    cause = read(tmp_path / FILE_NAME).cause
    assert cause is not None
    assert cause.kind == "exception"


def test_a_job_that_is_stopped_after_a_failure_keeps_the_failures_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stop_before_the_record(monkeypatch, signal.SIGINT)
    config = compose([*CALIBRATED, "model.args.faults.fail_at_step=3"])
    made = execution.execute(config, tmp_path, JobSpec.of("slurm", config, (), requeue=0))
    assert made == read(tmp_path / FILE_NAME)
    assert made.cause is not None
    assert made.cause.kind == "exception"
