"""Sweeps through launchers that are not dpeval's."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

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
