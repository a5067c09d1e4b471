"""Runs that take turns: one at a time, each with its own record, whatever becomes of the others."""

from __future__ import annotations

import itertools
import signal
import subprocess
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from dpeval.record.schema import Record
from dpeval.stats import paired
from tests.multiprocess.conftest import (
    ANNOUNCING,
    CALIBRATED,
    Finished,
    ranks_of,
    wait_for_none,
)

Start = Callable[..., subprocess.Popen[str]]
Train = Callable[..., Finished]
TURNS = (*CALIBRATED, "sweep.order=interleaved", "hardware.oversubscribe=true")
ENDLESS = (
    *TURNS, *ANNOUNCING, "num_devices=1,2", "measure.rel_precision=4e-5",
    "measure.time_limit_s=250", "measure.max_steps=90000",
)  # fmt: skip


def by_ranks(done: Finished) -> dict[int, Record]:
    assert all(run.plan is not None for run in done.records), done.err
    return {run.plan.world_size: run for run in done.records if run.plan is not None}


def test_one_run_steps_at_a_time_and_each_has_one_turn_a_round(train: Train) -> None:
    done = train("-m", *TURNS, "num_devices=1,2,3", "batch=24,48", "measure.ablation=true")
    assert done.status == 0, done.err
    runs = done.records
    assert [run.status for run in runs] == ["ok"] * 6
    sittings = [run.sitting for run in runs if run.sitting is not None]
    assert len(sittings) == 6
    assert {one.runs for one in sittings} == {6}
    assert len({one.id for one in sittings}) == 1

    spans: list[tuple[float, float, int, int]] = []
    for number, run in enumerate(runs):
        assert run.sitting is not None
        assert len(run.sitting.rounds) == len(run.ranks[0].step_s)
        for rank in run.ranks:
            for begin_s, step_s, turn in zip(
                rank.begin_s, rank.step_s, run.sitting.rounds, strict=True
            ):
                spans.append((begin_s, begin_s + step_s, number, turn))
    spans.sort()
    for before, after in itertools.pairwise(spans):
        if before[2] != after[2]:
            assert before[1] <= after[0], "two runs stepped at once"
    turns = [(number, turn) for _, _, number, turn in spans]
    changes = [here for here, _ in itertools.groupby(turns)]
    assert len(changes) == len(set(changes)), "a run had two turns in one round"
    # They set up one after another, and the time of each is its own.
    begun = sorted(
        ((datetime.fromisoformat(run.started_at), run) for run in runs), key=lambda pair: pair[0]
    )
    taken_s = [run.setup.total_s for _, run in begun if run.setup is not None]
    lasted_s = (begun[-1][0] - begun[0][0]).total_seconds()
    assert sum(taken_s[:-1]) < lasted_s + 0.3 * len(taken_s)
    # What only several ranks can show is measured as in any other run.
    assert {run.plan.world_size for run in runs if run.plan and run.ablation} == {2, 3}


def test_repetitions_are_sittings_of_their_own(train: Train) -> None:
    done = train("-m", *TURNS, "num_devices=1,2", "repeat=2")
    assert done.status == 0, done.err
    groups: dict[int, set[str]] = {}
    for run in done.records:
        assert run.sitting is not None
        groups.setdefault(run.repetition, set()).add(run.sitting.id)
    assert [len(ids) for ids in groups.values()] == [1, 1]
    assert len(set.union(*groups.values())) == 2
    pids = [rank.pid for run in done.records for rank in run.ranks]
    assert len(set(pids)) == len(pids)


def test_a_base_stays_while_the_others_follow_each_other(train: Train) -> None:
    """Memory holds four ranks of the six, so two and three ranks are never alive together."""
    done = train("-m", *TURNS, "num_devices=1,2,3", "batch=24", "hardware.memory_gib=2")
    assert done.status == 0, done.err
    runs = by_ranks(done)
    taken = {ranks: run.sitting for ranks, run in runs.items() if run.sitting is not None}
    assert taken.keys() == {1, 2, 3}
    assert len({one.id for one in taken.values()}) == 1
    in_common = {ranks: set(one.rounds) & set(taken[1].rounds) for ranks, one in taken.items()}
    assert in_common[2] < in_common[1]
    assert in_common[3] < in_common[1]
    assert not in_common[2] & in_common[3]
    assert taken[3].base_devices == 1


@pytest.mark.timing
@pytest.mark.flaky(reruns=2, reruns_delay=5)
def test_a_speed_that_wanders_cancels_in_the_ratio(train: Train) -> None:
    """Every time swings by 40 % within 12 s; two ranks take half the time of one."""
    done = train(
        "-m", *TURNS, "model._target_=tests.multiprocess.wandering.build",
        "model.args={step_s: 0.4}", "num_devices=1,2", "measure.rel_precision=0.02",
        "measure.time_limit_s=40",
    )  # fmt: skip
    assert done.status == 0, done.err
    runs = by_ranks(done)
    found = paired.ratio(paired.rounds_of(runs[1]), paired.rounds_of(runs[2]))
    assert found is not None
    assert found.mean == pytest.approx(2.0, rel=0.03)
    assert found.rel_half_width < 0.06


def test_a_run_that_dies_leaves_the_rounds_and_the_others_go_on(train: Train) -> None:
    done = train(
        "-m", *TURNS, "num_devices=1,2,3",
        "model._target_=tests.multiprocess.ending.build", "model.args={ends: {2: abort}}",
    )  # fmt: skip
    assert done.status == 1
    runs = by_ranks(done)
    assert {ranks: run.status for ranks, run in runs.items()} == {1: "ok", 2: "ok", 3: "failed"}
    cause = runs[3].cause
    assert cause is not None
    assert (cause.kind, cause.rank) == ("signal", 2)
    assert "Traceback" not in done.err


def test_a_run_that_hangs_is_found_on_its_turn(start: Start, tmp_path: Path) -> None:
    process = start("-m", *ENDLESS)
    ranks = ranks_of(process, tmp_path, 3)
    ranks[0].suspend()
    wait_for_none(ranks[:1], timeout_s=120)  # found hung, and ended
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    done = Finished(process.returncode, out, err, tmp_path)
    causes = {run.cause.kind for run in done.records if run.cause is not None}
    assert causes == {"hang", "interrupt"}, err
    wait_for_none(ranks)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_every_run_has_measured(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    process = start("-m", *ENDLESS)
    ranks = ranks_of(process, tmp_path, 3)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    done = Finished(process.returncode, out, err, tmp_path)
    assert done.status == 130
    assert "Traceback" not in err
    assert [run.status for run in done.records] == ["interrupted"] * 2
    for run in done.records:
        assert run.cause is not None
        assert run.cause.signal == number.name
        assert run.throughput is not None
        assert run.window is not None
        assert run.window.stopped_by == "interrupted"
    wait_for_none(ranks)


def test_a_killed_parent_leaves_records_and_no_waiting_rank(start: Start, tmp_path: Path) -> None:
    process = start("-m", *ENDLESS)
    ranks = ranks_of(process, tmp_path, 3)
    process.kill()
    process.wait()
    wait_for_none(ranks)
    found = Finished(process.returncode, "", "", tmp_path).records
    assert [run.status for run in found] == ["interrupted"] * 2
    for run in found:
        assert run.cause is not None
        assert run.cause.kind == "lost"
        assert run.sitting is not None
        assert len(run.sitting.rounds) == len(run.ranks[0].step_s) > 0
