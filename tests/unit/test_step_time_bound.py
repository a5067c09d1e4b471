"""Which time limits an earlier record proves too short, and which records prove nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpeval.config import Config, DatasetConfig, MeasureConfig, ModelConfig, to_plain
from dpeval.planning import step_time_bound
from dpeval.planning.predictor import Predictor
from dpeval.planning.rank_plan import make_plan
from dpeval.planning.step_time_bound import MARGIN, Setting, Timing, timing_of
from dpeval.record import io
from dpeval.record.codes import CauseCode, Status
from dpeval.record.schema import Cause, Record
from dpeval.system.environment import environment
from dpeval.system.topology import detect

QUICK = MeasureConfig(min_warmup_steps=2, min_steps=6, time_limit_s=20)
SMALL = ModelConfig(
    name="resnet18",
    _target_="dpeval.components.torchvision_classifier",
    args={"name": "resnet18", "num_classes": 10},
)
GOLDEN = Path(__file__).parent / "golden"


def _clean() -> Record:
    """A run that ended by itself on a machine that was watched and undisturbed."""
    runs = (io.read(path) for path in sorted(GOLDEN.glob("*/metrics.json")))
    return next(run for run in runs if timing_of(run) is not None)


CLEAN = _clean()
assert CLEAN.plan is not None
assert CLEAN.conditions is not None
SETTING = Setting.of(CLEAN.config, CLEAN.environment, CLEAN.plan)


@given(step_s=st.floats(0.01, 1e3), limit_s=st.floats(1, 1e3), warmup=st.integers(1, 20))
def test_a_limit_is_refused_exactly_where_it_ends_a_run_of_twice_the_speed_before_a_mean(
    step_s: float, limit_s: float, warmup: int
) -> None:
    config = MeasureConfig(min_warmup_steps=warmup, min_steps=6, time_limit_s=limit_s)
    refused = step_time_bound.too_short(config, SETTING, [Timing(SETTING, step_s)])
    finished = 1
    while (finished - 1) * step_s / MARGIN < limit_s and finished < config.steps_for_a_mean:
        finished += 1
    assert (refused is not None) == (finished < config.steps_for_a_mean)


def test_the_refusal_says_what_was_asked_what_is_the_case_and_what_to_give() -> None:
    config = MeasureConfig(min_warmup_steps=2, min_steps=6, time_limit_s=1)
    assert step_time_bound.too_short(
        config, SETTING, [Timing(SETTING, 3.0), Timing(SETTING, 2.0)]
    ) == (
        "measure.time_limit_s=1 is too short: 4 steps are needed, and no step of an earlier run "
        "with these settings took less than 2 s; use measure.time_limit_s=16 or more"
    )


def test_a_run_of_which_no_record_tells_is_never_refused() -> None:
    config = MeasureConfig(time_limit_s=1)
    assert step_time_bound.too_short(config, SETTING, []) is None
    assert step_time_bound.too_short(config, SETTING, [None]) is None


def _other_config(**changes: Any) -> Callable[[Record], Record]:
    return lambda run: run.model_copy(update={"config": run.config | changes})


def _other_environment(**changes: Any) -> Callable[[Record], Record]:
    return lambda run: run.model_copy(
        update={"environment": run.environment.model_copy(update=changes)}
    )


def _other_rank(**changes: Any) -> Callable[[Record], Record]:
    def changed(run: Record) -> Record:
        assert run.plan is not None
        first, *others = run.plan.ranks
        ranks = [first.model_copy(update=changes), *others]
        return run.model_copy(update={"plan": run.plan.model_copy(update={"ranks": ranks})})

    return changed


@pytest.mark.parametrize(
    "changed",
    [
        _other_config(precision="bf16"),
        _other_config(model=CLEAN.config["model"] | {"args": {"num_classes": 11}}),
        _other_config(dataset=CLEAN.config["dataset"] | {"image_px": 32}),
        _other_config(dataset=CLEAN.config["dataset"] | {"delay_s": 9.0}),
        _other_environment(host="elsewhere"),
        _other_environment(cpu_features=["avx2"]),
        _other_environment(variables={"ONEDNN_MAX_CPU_ISA": "AVX2"}),
        _other_environment(versions={"torch": "0"}),
        _other_rank(batch=1),
        _other_rank(threads=7),
        _other_rank(cpus=[5]),
    ],
    ids=["precision", "model", "image size", "delay", "host", "instructions", "variables",
         "versions", "batch", "threads", "cpus"],
)  # fmt: skip
def test_a_record_made_in_another_setting_proves_nothing(
    changed: Callable[[Record], Record],
) -> None:
    config = MeasureConfig(time_limit_s=1)
    slow = CLEAN.model_copy(
        update={
            "ranks": [
                rank.model_copy(update={"step_s": [100.0] * len(rank.step_s)})
                for rank in CLEAN.ranks
            ]
        }
    )
    assert step_time_bound.too_short(config, SETTING, [timing_of(slow)]) is not None
    assert timing_of(changed(slow)) is not None
    assert step_time_bound.too_short(config, SETTING, [timing_of(changed(slow))]) is None


def test_how_long_and_where_to_a_run_was_measured_does_not_change_its_steps() -> None:
    changes = {
        "measure": {},
        "study": "another",
        "repetition": 3,
        "analyze": True,
        "run_spread": 0.03,
        "site": {},
    }
    other = timing_of(_other_config(**changes)(CLEAN))
    assert other is not None
    assert other.setting == SETTING


def test_the_fastest_step_counts_and_the_first_does_not() -> None:
    steps = [[0.1, 2.0, 5.0], [0.2, 4.0, 3.0]]
    ranks = [CLEAN.ranks[0].model_copy(update={"step_s": series}) for series in steps]
    timing = timing_of(CLEAN.model_copy(update={"ranks": ranks}))
    assert timing is not None
    assert timing.shortest_step_s == 4.0
    alone = [rank.model_copy(update={"step_s": rank.step_s[:1]}) for rank in ranks]
    assert timing_of(CLEAN.model_copy(update={"ranks": alone})) is None


def test_only_undisturbed_runs_that_ended_by_themselves_or_at_their_limit_count() -> None:
    def with_conditions(**changes: Any) -> Record:
        assert CLEAN.conditions is not None
        return CLEAN.model_copy(update={"conditions": CLEAN.conditions.model_copy(update=changes)})

    def ended(status: Status, kind: CauseCode) -> Record:
        return CLEAN.model_copy(update={"status": status, "cause": Cause(kind=kind, message="")})

    assert timing_of(with_conditions(bad=["cores 0,1 lost 40 % of their time"])) is None
    assert timing_of(with_conditions(foreign_share={})) is None
    assert timing_of(CLEAN.model_copy(update={"conditions": None})) is None
    assert timing_of(ended("failed", "exception")) is None
    assert timing_of(ended("interrupted", "interrupt")) is None
    assert timing_of(ended("failed", "time_limit")) == timing_of(CLEAN)
    assert CLEAN.plan is not None
    divided = CLEAN.plan.model_copy(update={"micro_batches": 2})
    assert timing_of(CLEAN.model_copy(update={"plan": divided})) is None


def test_a_records_own_configuration_and_plan_are_recognised_in_its_folder(tmp_path: Path) -> None:
    machine = detect()
    here = environment(machine)
    config = Config(
        model=SMALL,
        dataset=DatasetConfig(name="noise", _target_="", image_px=224),
        measure=MeasureConfig(time_limit_s=1),
        batch=65_536,
    )
    plan = make_plan(config, machine)
    assert Predictor(machine).too_short(config, plan, here, tmp_path) is None
    long = [rank.model_copy(update={"step_s": [60.0] * 4}) for rank in CLEAN.ranks[:1]]
    made = CLEAN.model_copy(
        update={"config": to_plain(config), "plan": plan, "environment": here, "ranks": long}
    )
    io.write(made, tmp_path / "earlier" / io.FILE_NAME)
    line = Predictor(machine).too_short(config, plan, here, tmp_path)
    assert line is not None
    assert "no step of an earlier run with these settings took less than 60 s" in line
