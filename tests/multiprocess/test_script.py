"""``task=script``: a script of the user as one run of a sweep, measured by its meter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from dpeval import record
from dpeval.analysis.frame import runs_frame
from dpeval.record.schema import Record
from dpeval.run.rank_supervisor import LONGEST_LOG_BYTES
from tests.multiprocess.conftest import ROOT, Finished, lives

SCRIPTS = Path(__file__).with_name("scripts")
SCRIPT = ("task=script", "measure=quick", "hardware.oversubscribe=true")
CASES = [(1, 1), (1, 4), (2, 1), (2, 4)]
"""World size and batches per step."""


def run(folder: Path, *overrides: str) -> Finished:
    """``dpeval.train`` to its end, in `folder`."""
    done = subprocess.run(
        [sys.executable, "-m", "dpeval.train", *overrides],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, capture_output=True,
        timeout=540, check=False,
    )  # fmt: skip
    return Finished(done.returncode, done.stdout, done.stderr, folder)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A classifier over 1 and 2 ranks, with and without gradient accumulation, in turns."""
    folder = tmp_path_factory.mktemp("sweep")
    args = ["--batch-size", "{per_device_batch_size}", "--marks", str(folder)]
    lists = [json.dumps([*args, "--accumulate", str(count)]) for count in (1, 4)]
    return run(
        folder, "-m", *SCRIPT, f"task.script={SCRIPTS / 'classifier.py'}", "num_devices=1,2",
        f"task.args={','.join(lists)}", "batch=16", "measure.time_limit_s=4",
        "sweep.order=interleaved",
    )  # fmt: skip


@pytest.fixture(scope="module")
def records(sweep: Finished) -> Mapping[tuple[int, int], Record]:
    """The records by world size and batches per step."""
    assert sweep.status == 0, sweep.err
    return {
        (int(made.config["num_devices"]), int(made.config["task"]["args"][-1])): made
        for made in sweep.records
    }


def marks(sweep: Finished, case: tuple[int, int], rank: int = 0) -> dict[str, Any]:
    ranks, accumulate = case
    found: dict[str, Any] = json.loads(
        (sweep.folder / f"{accumulate}-{ranks}-{rank}.json").read_text()
    )
    return found


def test_every_run_is_measured_with_the_unit_of_its_samples(
    records: Mapping[tuple[int, int], Record],
) -> None:
    assert sorted(records) == CASES
    for (_, accumulate), made in records.items():
        assert made.status == "ok"
        assert made.unit == "crops"
        assert made.samples_per_step == 16 * accumulate
        assert made.throughput is not None
        assert made.window is not None
        assert made.throughput.img_per_s == pytest.approx(16 * accumulate / made.window.step_s.mean)


def test_what_a_script_cannot_tell_is_not_measured(
    records: Mapping[tuple[int, int], Record],
) -> None:
    for made in records.values():
        assert made.loss is None
        assert made.ablation is None
        assert made.memory.forecast is None
        assert made.dataset is None
        assert {line.partition(":")[0] for line in made.missing} == {"ablation", "loss"}
        assert "precision" not in made.config


def test_runs_take_turns(records: Mapping[tuple[int, int], Record]) -> None:
    sittings = [made.sitting for made in records.values()]
    assert len({one.id for one in sittings if one is not None}) == 1
    for one, made in zip(sittings, records.values(), strict=True):
        assert one is not None
        assert len(one.rounds) == len(made.ranks[0].step_s)


@pytest.mark.parametrize("case", CASES)
def test_phases_are_those_timed_by_hand(
    case: tuple[int, int], sweep: Finished, records: Mapping[tuple[int, int], Record]
) -> None:
    made = records[case]
    rows = marks(sweep, case)["rows"]
    phases, begin_s = made.ranks[0].phase_s, made.ranks[0].begin_s
    # The record leaves out steps at the start of a turn: a row's first batch follows its begin.
    by_hand = [rows[at] for at in np.searchsorted([row["at"] for row in rows], begin_s)]
    assert len({row["at"] for row in by_hand}) == len(begin_s) <= len(rows)
    # Both time the same steps, so what disturbs the machine disturbs both alike.
    for name, parts in {
        "h2d": ["h2d"],
        "forward": ["forward"],
        "optimizer": ["optimizer"],
        "backward": ["backward", "comm_exposed", "grad_copy"],
    }.items():
        ours = np.sum([phases[part] for part in parts], axis=0)
        theirs = np.array([row[name] for row in by_hand])
        apart = abs(float(np.median(ours - theirs)))
        assert apart <= 0.03 * float(np.median(theirs)) + 2e-4, name


def test_phases_add_up_to_the_step(records: Mapping[tuple[int, int], Record]) -> None:
    for made in records.values():
        for rank in made.ranks:
            total = np.sum(list(rank.phase_s.values()), axis=0)
            np.testing.assert_allclose(total, rank.step_s, rtol=1e-6, atol=1e-8)


def test_every_all_reduce_is_timed_once_a_step(
    records: Mapping[tuple[int, int], Record],
) -> None:
    for made in records.values():
        assert made.window is not None
        for rank in made.ranks:
            assert rank.buckets
            assert {len(bucket.allreduce_s) for bucket in rank.buckets} == {made.window.steps}
            assert min(rank.comm_s) > 0


def test_a_script_finds_the_environment_of_torchrun(
    sweep: Finished, records: Mapping[tuple[int, int], Record]
) -> None:
    env = marks(sweep, (2, 1), rank=1)["env"]
    expected = {
        "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    assert {name: env[name] for name in expected} == expected


def test_what_it_prints_is_in_a_file_of_each_rank(sweep: Finished) -> None:
    logs = sorted(sweep.folder.glob("outputs/*/*/*/rank-*.log"))
    assert len(logs) == sum(ranks for ranks, _ in CASES)
    assert all("epoch 0: loss" in log.read_text() for log in logs)
    assert "epoch 0" not in sweep.out


def test_the_analysis_draws_and_reports_it(
    sweep: Finished, records: Mapping[tuple[int, int], Record]
) -> None:
    assert "crops/s" in sweep.out
    assert "img/s" not in sweep.out
    assert list(sweep.folder.glob("outputs/*/*/analysis/report.html"))
    assert list(sweep.folder.glob("outputs/*/*/analysis/speedup.png"))
    loaded = runs_frame.load([sweep.folder / "outputs"])
    assert loaded.problems == []
    assert set(loaded.runs["unit"]) == {"crops"}


FAULTS = {
    "never": ("failed", "script", "faulty ended without a step that the meter saw"),
    "exit": ("failed", "script", "faulty exited with status 3"),
    "two meters": ("failed", "exception", "a script has one dpeval.Meter"),
    "nested": ("failed", "exception", "meter.steps was called within a loop over meter.steps"),
    "raises": ("failed", "exception", "ValueError: no such class: 11"),
    "uneven": ("failed", "script", "the ranks disagree: the loop of rank 0 ended after 30 steps"),
    "short": ("failed", "script", "faulty ended its loop after 3 steps, too few for a mean"),
    "asks": ("failed", "exception", "EOFError: EOF when reading a line"),
    "prints": ("ok", None, ""),
    "early": ("ok", None, ""),
    "helper": ("ok", None, ""),
    "goes on": ("ok", None, "faulty ran on for 1 s after the measurement and was stopped"),
    "ignores the end": ("ok", None, "faulty ran on for 1 s after the measurement and was stopped"),
    "fails late": ("ok", None, "faulty failed on rank 0 after the measurement (exit status 1)"),
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One sweep with every fault."""
    args = ",".join(json.dumps([fault]) for fault in FAULTS)
    return run(
        tmp_path_factory.mktemp("faulty"), "-m", *SCRIPT,
        f"task.script={SCRIPTS / 'faulty.py'}", f"task.args={args}", "num_devices=2",
        "task.exit_timeout_s=1", "measure.time_limit_s=2", "analyze=false",
        # A calm machine must not end the loop of 30 steps before its ranks can disagree.
        "measure.rel_precision=1e-6",
    )  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_clear_line_and_a_record(faulty: Finished, fault: str) -> None:
    status, kind, text = FAULTS[fault]
    assert faulty.status == 1, faulty.err
    assert "Traceback" not in faulty.err
    made = {one.config["task"]["args"][0]: one for one in faulty.records}[fault]
    said = [warning.text for warning in made.warnings if warning.code == "script"]
    if made.cause is not None:
        said.append(made.cause.message)
    assert (made.status, made.cause.kind if made.cause else None) == (status, kind), said
    assert any(line.startswith(text) for line in said) or not text, said
    assert all("\n" not in line for line in said)


def test_what_a_script_prints_is_limited(faulty: Finished) -> None:
    logs = list(faulty.folder.glob("outputs/*/*/*/rank-*.log"))
    assert len(logs) == 2 * len(FAULTS)
    cut = [log for log in logs if "dpeval cut the beginning" in log.read_text()]
    assert len(cut) == 2
    assert all(log.stat().st_size <= LONGEST_LOG_BYTES for log in logs)


def test_what_a_script_has_started_ends_with_it(faulty: Finished) -> None:
    helpers = [int(path.read_text()) for path in faulty.folder.glob("helper-*")]
    assert len(helpers) == 2
    left = [psutil.Process(pid) for pid in helpers if psutil.pid_exists(pid)]
    assert not [process for process in left if lives(process)]


def test_a_loop_that_ends_early_is_measured_as_far_as_it_goes(faulty: Finished) -> None:
    made = {one.config["task"]["args"][0]: one for one in faulty.records}["early"]
    assert made.window is not None
    assert made.window.stopped_by in ("ended", "precision")
    assert len(made.ranks[0].step_s) <= 40


def test_ranks_without_a_ddp_have_no_communication_time(faulty: Finished) -> None:
    made = {one.config["task"]["args"][0]: one for one in faulty.records}["early"]
    assert "comm_exposed" not in made.ranks[0].phase_s
    assert made.balance is None
    assert [line for line in made.missing if line.startswith("exposed communication")]


def test_a_script_that_hangs_before_its_first_step_is_ended_with_its_children(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    # As a module, which is found like those of python -m.
    process = start(
        *SCRIPT, "task.module=tests.multiprocess.scripts.faulty", "task.args=[hangs]",
        "num_devices=2", "hardware.startup_timeout_s=6",
    )  # fmt: skip
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "no step for" in err
    assert "meter.steps" in err
    (log,) = tmp_path.glob("outputs/*/*/rank-0.log")
    assert log.stat().st_size == 0


def test_a_missing_script_is_told_before_anything_starts(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "task=script", "task.script=tran.py", "num_devices=1,2")
    assert done.status == 2
    assert "task.script=tran.py: no such file" in done.err
    assert not done.records


def test_a_script_under_plain_torchrun_is_recorded_by_rank_0(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
            "--master-port=0", "--standalone", str(SCRIPTS / "classifier.py"), "--batch-size=16",
        ],
        cwd=tmp_path, text=True, capture_output=True, timeout=300, check=False,
        env={
            **os.environ, "PYTHONPATH": str(ROOT), "DPEVAL_RECORD": str(tmp_path / "kept"),
            "DPEVAL_MEASURE": "rel_precision=0.5 time_limit_s=3 min_steps=6",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("kept/*/metrics.json")
    made = record.read(path)
    assert (made.status, made.unit, made.samples_per_step) == ("ok", "crops", 32)
    assert [rank.rank for rank in made.ranks] == [0, 1]
    assert len({len(rank.step_s) for rank in made.ranks}) == 1
    assert {rank.pid for rank in made.ranks} != {0}
    assert made.config["task"]["args"] == ["--batch-size=16"]
    loaded = runs_frame.load([tmp_path / "kept"])
    assert loaded.problems == []
