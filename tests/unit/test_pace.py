"""How long a step takes at least, and which time limits leave no room for a mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dpeval import record
from dpeval.config import Config, DatasetConfig, MeasureConfig, ModelConfig
from dpeval.planning import step_time_bound
from dpeval.planning.fake_step import flops_per_image
from dpeval.planning.memory_budget import NoForecast
from dpeval.planning.predictor import Foresight
from dpeval.planning.rank_plan import make_plan
from dpeval.planning.step_time_bound import Past
from dpeval.stats import steady_state
from dpeval.system.topology import detect

QUICK = MeasureConfig(min_warmup_steps=2, min_steps=6, time_limit_s=20)
SMALL = ModelConfig(
    name="resnet18",
    _target_="dpeval.components.torchvision_classifier",
    args={"name": "resnet18", "num_classes": 10},
)
GOLDEN = Path(__file__).parent / "golden"


@given(step_s=st.floats(0.01, 1e3), limit_s=st.floats(1, 1e3), warmup=st.integers(1, 20))
def test_a_time_is_refused_exactly_where_it_ends_before_there_is_a_window(
    step_s: float, limit_s: float, warmup: int
) -> None:
    config = MeasureConfig(min_warmup_steps=warmup, min_steps=6, time_limit_s=limit_s)
    refused = step_time_bound.too_short(config, [step_time_bound.known(step_s)])
    finished = 1
    while finished * step_s < limit_s and finished < steady_state.steps_for_a_mean(config):
        finished += 1
    assert (refused is not None) == (finished < steady_state.steps_for_a_mean(config))


def test_the_line_says_what_was_asked_what_is_the_case_and_what_to_give() -> None:
    line = step_time_bound.too_short(
        dataclasses.replace(QUICK, time_limit_s=1), [step_time_bound.counted(4e11, 32, 1e11)]
    )
    assert line == (
        "measure.time_limit_s=1 leaves no time for a mean, which takes 4 steps, here of 2 s at "
        "least (32 images per device are 400 GFLOP a step, and a device here does not reach "
        "200 GFLOP/s); give measure.time_limit_s=32 or more"
    )


def test_earlier_runs_bound_a_step_by_their_work_on_as_many_images_or_fewer() -> None:
    past = [Past(1, 16, 0.5), Past(2, 32, 1.0), Past(2, 64, 2.0), Past(8, 32, 4.0)]
    found = step_time_bound.remembered(2, 48, past)
    assert found is not None
    assert (found.step_s, found.sure_s) == (1.0, 0.5)
    assert step_time_bound.remembered(2, 8, past) is None
    assert step_time_bound.remembered(1, 48, past) == step_time_bound.remembered(1, 16, past)


def test_only_undisturbed_runs_that_measured_teach_a_pace() -> None:
    runs = [record.read(path) for path in sorted(GOLDEN.glob("*/metrics.json"))]
    for run in runs:
        disturbed = run.conditions is not None and bool(run.conditions.bad)
        assert (step_time_bound.past_of(run) is not None) == (run.status == "ok" and not disturbed)
    (first, *_) = [run for run in runs if step_time_bound.past_of(run) is not None]
    assert first.conditions is not None
    bad = first.conditions.model_copy(update={"bad": ["cores 0,1 lost 40 % of their time"]})
    assert step_time_bound.past_of(first.model_copy(update={"conditions": bad})) is None


def test_operations_are_those_that_the_literature_counts() -> None:
    config = Config(model=SMALL, dataset=DatasetConfig(name="noise", _target_="", image_px=224))

    def build() -> nn.Module:
        from dpeval.components import models

        return models.build(SMALL)

    found = flops_per_image(config, 2, build)
    # He et al. 2015, table 1: 1.8e9 products forward; backward twice that, but for the images.
    assert found == pytest.approx(3 * 2 * 1.81e9, rel=0.05)
    assert flops_per_image(config, 4, build) == pytest.approx(found)


def test_a_model_that_looks_at_values_has_no_count() -> None:
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(10))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if images.sum() > 0:
                return images.flatten(1)[:, :1] * self.weight
            return images.flatten(1)[:, :10]

    with pytest.raises(NoForecast, match="its speed is not forecast"):
        flops_per_image(Config(model=SMALL), 2, Looking)


def test_taking_a_cores_speed_leaves_the_process_its_threads() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert 1e8 < step_time_bound.core_flops_per_s("fp32") < 1e13
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)


def test_a_run_is_judged_by_its_model_its_operations_and_its_past(tmp_path: Path) -> None:
    machine = detect()
    foresight = Foresight(machine)
    heavy = Config(
        model=SMALL,
        dataset=DatasetConfig(name="noise", _target_="", image_px=224),
        measure=dataclasses.replace(QUICK, time_limit_s=1),
        batch=65_536,
    )
    line = foresight.too_short(heavy, make_plan(heavy, machine), tmp_path)
    assert line is not None
    assert "65536 images per device" in line
    light = dataclasses.replace(heavy, batch=1)
    assert foresight.too_short(light, make_plan(light, machine), tmp_path) is None
    slow = dataclasses.replace(
        light,
        model=ModelConfig("calibrated", "dpeval.components.calibrated_model", {"forward_s": 0.5}),
    )
    line = foresight.too_short(slow, make_plan(slow, machine), tmp_path)
    assert line is not None
    assert "as the model says" in line


def test_a_sweep_is_planned_from_one_look_at_its_folder_and_forecast_from_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Path] = []

    def below(folder: Path) -> Iterator[Path]:
        looks.append(folder)
        return iter(())

    monkeypatch.setattr("dpeval.planning.predictor.below", below)
    machine = detect()
    foresight = Foresight(machine)
    config = Config(
        model=SMALL, dataset=DatasetConfig(name="noise", _target_="", image_px=32), measure=QUICK
    )
    plan = make_plan(config, machine)
    for _ in range(3):
        foresight.too_short(config, plan, tmp_path)
    assert looks == [tmp_path]
    foresight.forecast(config, 2, folder=tmp_path)
    foresight.decide(config, plan, tmp_path)
    assert looks == [tmp_path] * 3
