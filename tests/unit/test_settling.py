"""When runs that take turns need no further turn."""

from __future__ import annotations

import multiprocessing
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from benchmarks.scoring import autoregressive
from dpeval.commands import hydra_app
from dpeval.config import Config
from dpeval.instruments.step_buffer import COLUMNS, Stage, StepBuffer
from dpeval.run.execute import LiveRun
from dpeval.sitting import settling
from dpeval.sitting.seat import MIN_ABLATED, Seat
from dpeval.util.arrays import Floats

QUICK = ("model=calibrated", "dataset=calibrated", "measure=quick", "measure.min_steps=6")


def seat(config: Config, step_s: Floats) -> Seat:
    """A run that has taken a step of each of these lengths, one a round."""
    step_buffer = StepBuffer(multiprocessing.get_context("spawn"), 1, len(step_s))
    step_buffer.rows(0)[:, COLUMNS.index("step")] = step_s
    step_buffer.beat(0, Stage.MEASURING, len(step_s))
    plan = SimpleNamespace(global_batch_size=config.batch, world_size=config.num_devices, ranks=[])
    run = SimpleNamespace(
        job=SimpleNamespace(config=config, plan=plan),
        step_buffer=step_buffer,
        ranks=SimpleNamespace(is_running=True),
    )
    made = Seat(cast(LiveRun, run), rounds=list(range(len(step_s))))
    made.elapsed_s = float(step_s.sum())
    return made


def seats(
    *steps_s: float,
    until: str = "best",
    rounds: int = 40,
    batches: tuple[int, ...] = (),
    max_steps: int = 1000,
) -> list[Seat]:
    """Runs on 1, 2 … devices with these mean steps, on a machine whose speed wanders by 20 %."""
    generator = np.random.default_rng(2)
    common = np.exp(0.2 * autoregressive(0.9, generator, 1, rounds)[0])
    made = []
    for number, mean_s in enumerate(steps_s):
        batch = batches[number] if batches else 32
        config = hydra_app.compose(
            [
                *QUICK,
                f"measure.until={until}",
                f"measure.max_steps={max_steps}",
                f"num_devices={number + 1}",
                f"batch={batch}",
            ]
        )
        own = np.exp(0.02 * generator.standard_normal(rounds))
        made.append(seat(config, 0.01 * mean_s * common * own))
    return made


def race(runs: list[Seat]) -> list[str | None]:
    """Why each ends after two more pairs of rounds in a row."""
    settling.judge_races(runs)
    assert [run.reason for run in runs] == [None] * len(runs), "one look is not enough"
    settling.judge_races(runs)
    return [run.reason for run in runs]


def test_what_cannot_be_the_best_leaves_and_rivals_go_on() -> None:
    """Two are 6 % apart with a precision of 5 %, from too few rounds to tell them apart."""
    runs = seats(1.0, 0.50, 0.515, rounds=10)
    assert race(runs)[0] == "best"
    assert all(run.reason in (None, "best") for run in runs)


def test_the_best_is_settled_once_no_other_could_be_it() -> None:
    runs = seats(1.0, 0.8, 0.5)
    assert race(runs) == ["best"] * 3


def test_equals_within_the_precision_asked_for_are_settled() -> None:
    assert race(seats(0.5, 0.5)) == ["best", "best"]


def test_batches_compete_by_their_images_per_second() -> None:
    """The second takes longer for a step, and is the faster of the two."""
    runs = seats(1.0, 1.6, 1.3, batches=(32, 64, 32), rounds=12)
    assert race(runs) == ["best"] * 3


def test_of_few_steps_nothing_is_settled() -> None:
    runs = seats(1.0, 0.5, rounds=5)
    settling.judge_races(runs)
    settling.judge_races(runs)
    assert [run.reason for run in runs] == [None, None]


def test_a_run_without_rivals_ends_when_its_mean_is_known() -> None:
    (run,) = seats(1.0, rounds=60)
    settling.judge(run, [run])
    assert run.reason in ("precision", None)
    run.elapsed_s = run.measure.time_limit_s
    settling.judge(run, [run])
    assert run.reason in ("precision", "time_limit")


@pytest.mark.parametrize("until", ["ratios", "best"])
def test_a_run_that_ablates_goes_on_until_it_has_its_blocks(until: str) -> None:
    runs = seats(1.0, 0.5, until=until)
    runs[1].base, runs[1].can_ablate = runs[0], True
    for _ in range(2):
        settling.judge(runs[1], runs)
        settling.judge_races(runs)
    assert runs[1].reason is None
    runs[1].ablated = MIN_ABLATED
    for _ in range(2):
        settling.judge(runs[1], runs)
        settling.judge_races(runs)
    assert runs[1].reason == until


def test_a_base_stays_until_all_that_are_compared_with_it_have_left() -> None:
    runs = seats(1.0, 0.5, until="ratios")
    runs[1].base = runs[0]
    settling.judge(runs[0], runs)
    assert runs[0].reason is None
    for _ in range(2):
        settling.judge(runs[1], runs)
    assert runs[1].reason == "ratios"
    assert runs[1].speedup is not None
    assert runs[1].speedup.mean == pytest.approx(2.0, rel=0.03)
    settling.judge(runs[0], runs)
    assert runs[0].reason == "ratios"


@pytest.mark.parametrize("until", ["means", "ratios", "best"])
@pytest.mark.parametrize("limit", ["steps", "time"])
def test_a_wave_has_its_share_of_the_limits(until: str, limit: str) -> None:
    """A base that stays for a second wave ends the first at half of its steps, or at its time."""
    max_steps = 80 if limit == "steps" else 1000
    runs = seats(1.0, 0.99, until=until, rounds=40, max_steps=max_steps)
    base, other = runs
    other.base, base.waves = base, 2
    if limit == "time":
        base.elapsed_s = base.measure.time_limit_s
    assert base.is_at_limit
    settling.judge(base, runs)
    assert base.reason is not None
    base.stay()
    assert not base.is_at_limit
    assert base.turn_steps() > 0
    settling.judge(base, runs)
    assert base.reason in (None, "precision")
