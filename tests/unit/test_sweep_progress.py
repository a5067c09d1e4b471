"""How long the rest of a sweep takes at most."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from dpeval.commands.hydra_app import compose
from dpeval.commands.main import raise_for_status
from dpeval.errors import RunFailed, RunInterrupted
from dpeval.instruments.step_buffer import Stage
from dpeval.record.measurement import Interval
from dpeval.record.plan import Plan
from dpeval.record.schema import Cause
from dpeval.run.console import LiveReporter, PlainReporter
from dpeval.run.job import Job, Snapshot
from dpeval.run.sweep_progress import TimeLeft, duration
from tests.records import make_record

LIMIT_S, SHARE = 100.0, 0.5


def job(number: int, skip: str | None = None) -> Job:
    config = compose(
        ["model=calibrated", f"batch={number}", f"measure.time_limit_s={LIMIT_S}",
         f"measure.ablation_share={SHARE}"]
    )  # fmt: skip
    plan = Plan(world_size=1, global_batch_size=number, backend="gloo", ranks=[], skip=skip)
    return Job(config, plan, Path(str(number)), (f"batch={number}",))


def at(stage: Stage, elapsed_s: float) -> Snapshot:
    return Snapshot(stage, 10, elapsed_s, 5.0, 0.1)


def test_a_run_that_leaves_the_rounds_is_told_once_and_at_once() -> None:
    written = io.StringIO()
    reporter = PlainReporter(Console(file=written, width=200))
    jobs = [job(1), job(2)]
    reporter.sweep_started(jobs, Path("sweep"))
    for one in jobs:
        reporter.run_started(one)
    for reason in (None, "best", "best"):
        left = at(Stage.FINISHED if reason else Stage.MEASURING, 9.0)
        reporter.progress(jobs[0], replace(left, stopped_by=reason))
    lines = [line for line in written.getvalue().splitlines() if "10 steps" in line]
    assert len(lines) == 1
    assert "batch 1: settled, 10 steps" in lines[0]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(45.4, "45 s"), (119, "119 s"), (240, "4 min"), (3569, "59 min"), (3590, "1 h 00 min"),
     (3900, "1 h 05 min")],
)  # fmt: skip
def test_a_time_is_told_as_people_say_it(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_what_is_left_is_the_limits_less_what_was_taken() -> None:
    jobs = [job(1), job(2), job(3, "three GPUs were asked for")]
    left = TimeLeft(jobs)
    assert left.words() == "0 of 3 runs done, at most 5 min of measuring left"
    left.ended(jobs[2])
    left.progress(jobs[0], at(Stage.MEASURING, 60.0))
    left.progress(jobs[1], at(Stage.WARM_UP, 50.0))
    assert left.words() == "1 of 3 runs done, at most 3 min of measuring left"
    left.progress(jobs[0], at(Stage.ABLATION, 60.0))
    left.ended(jobs[1])
    assert left.words() == "2 of 3 runs done, at most 50 s of measuring left"
    assert not left.is_over
    left.ended(jobs[0])
    assert left.is_over


def test_plain_lines_tell_it_as_long_as_runs_are_left() -> None:
    jobs, said = [job(1), job(2)], io.StringIO()
    reporter = PlainReporter(Console(file=said, width=200))
    reporter.sweep_started(jobs, Path())
    for one in jobs:
        reporter.run_started(one)
        reporter.run_ended(one, make_record(1))
    assert said.getvalue().count("sweep: 1 of 2 runs done, at most 2 min of measuring left") == 1
    assert said.getvalue().count("sweep:") == 1


def test_a_failed_run_tells_its_cause_once_and_where_the_traceback_is() -> None:
    said = io.StringIO()
    reporter = PlainReporter(Console(file=said, width=200))
    cause = Cause(kind="exception", message="ValueError: no such class", log="Traceback (most")
    failed = make_record(1, status="failed", cause=cause)
    reporter.run_started(job(1))
    reporter.run_ended(job(1), failed)
    reporter.one(failed, Path("outputs"))
    assert said.getvalue().count(cause.message) == 1
    assert "record, with the traceback: outputs/metrics.json" in said.getvalue()


def test_the_last_line_names_few_causes_and_none_that_a_table_names() -> None:
    failed = [
        make_record(1, status="failed", cause=Cause(kind="exception", message=message))
        for message in ("one", "two", "three", "four", "two")
    ]
    with pytest.raises(RunFailed, match=r"^5 of 6 runs failed: four; one; three; 1 more cause$"):
        raise_for_status([*failed, make_record(1)])
    with pytest.raises(RunFailed, match=r"^all 5 runs failed; the table above says why$"):
        raise_for_status(failed, are_told=True)
    with pytest.raises(RunFailed, match=r"^the run failed: one$"):
        raise_for_status(failed[:1])


def test_a_run_whose_final_record_could_not_be_written_was_not_interrupted() -> None:
    left = make_record(1, status="interrupted", cause=Cause(kind="lost", message="no record"))
    with pytest.raises(RunFailed):
        raise_for_status([left])
    stopped = make_record(1, status="interrupted", cause=Cause(kind="interrupt", message="TERM"))
    with pytest.raises(RunInterrupted):
        raise_for_status([left, stopped])


def test_the_live_line_of_the_sweep_stays_below_those_of_its_runs() -> None:
    jobs, said = [job(1), job(2)], io.StringIO()
    reporter = LiveReporter(Console(file=said, width=160, force_terminal=True))
    reporter.sweep_started(jobs, Path())
    with reporter:
        for one in jobs:
            reporter.run_started(one)
            assert reporter._bar.tasks[-1].description == "sweep"
        reporter.run_ended(jobs[0], make_record(1))
        last = reporter._bar.tasks[-1]
        assert (last.completed, last.total) == (1, 2)
        assert "at most 2 min" in last.fields["words"]


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_a_live_line_always_names_its_run(columns: int) -> None:
    jobs, said = [job(1), job(2)], io.StringIO()
    reporter = LiveReporter(Console(file=said, width=columns, force_terminal=True))
    reporter.sweep_started(jobs, Path())
    reporter.run_started(jobs[0])
    speedup = Interval(mean=0.79, low=0.58, high=1.07, effective_samples=9)
    reporter._shown_s[jobs[0].folder] = -1e9  # long ago
    reporter.progress(jobs[0], Snapshot(Stage.MEASURING, 163, 9.0, 260.0, 0.06, speedup=speedup))
    with reporter._bar.console.capture() as shown:
        reporter._bar.console.print(reporter._bar.get_renderable())
    line = shown.get().splitlines()[0]
    assert "calibrated on 1 core, batch 1" in line
    assert "260.0 img/s" in line
    assert ("(244.9 to 276.1)" in line) == (columns >= 120)
    assert "speedup 0.79" in line or columns == 80
