"""Time limits: refused where a record proves them too short, and what they end is recorded."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import median

from dpeval.record import io
from tests.multiprocess.conftest import CALIBRATED, Finished

Train = Callable[..., Finished]
SLOW = (*CALIBRATED, "hardware.oversubscribe=true", "batch=32")


def test_a_time_limit_is_refused_only_where_an_earlier_record_proves_it_too_short(
    train: Train, tmp_path: Path
) -> None:
    slow = (*SLOW, "model.args.forward_s=1.2")
    first = train(*slow).record
    assert first.status == "ok"
    # Whatever else this machine did meanwhile: a disturbed record would prove nothing.
    assert first.conditions is not None
    quiet = {"bad": [], "foreign_share": {"0": 0.0}}
    seen = first.conditions.model_copy(update=quiet)
    (path,) = tmp_path.glob("outputs/**/metrics.json")
    io.write(first.model_copy(update={"conditions": seen}), path)

    refused = train(*slow, "measure.time_limit_s=1")
    assert refused.status == 2
    assert "measure.time_limit_s=1 is too short" in refused.err
    assert len(refused.err.strip().splitlines()) == 1
    assert refused.records == [io.read(path)]

    done = train("-m", *slow, "measure.time_limit_s=1,20")
    assert done.status == 0, done.err
    by_status = {run.status: run for run in done.records if run.run_id != first.run_id}
    assert set(by_status) == {"skipped", "ok"}
    assert by_status["skipped"].cause is not None
    assert by_status["skipped"].cause.kind == "time_limit"


def test_a_run_that_its_time_limit_ends_before_a_mean_is_recorded_with_the_time_it_needs(
    train: Train,
) -> None:
    done = train(*SLOW, "model.args.forward_s=1.5", "measure.time_limit_s=1")
    assert done.status == 1
    run = done.record
    assert run.status == "failed"
    assert run.throughput is None
    assert run.cause is not None
    assert run.cause.kind == "time_limit"
    steps = run.ranks[0].step_s
    assert steps, "what was measured is kept"
    counted = f"measure.time_limit_s=1 ended the run after {len(steps)} step"
    assert run.cause.message.startswith(counted)
    needed_s = math.ceil(8 * median(steps))  # 8 steps of quick
    assert f"use measure.time_limit_s={needed_s} or more" in run.cause.message
    assert run.cause.message in done.out
