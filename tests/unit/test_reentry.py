"""What the first steps of a turn cost more, and which are left out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpeval.stats import reentry


def turns(
    count: int, length: int, costs: list[float], noise: float
) -> tuple[list[float], list[int]]:
    """Steps of 1 s in `count` turns, the first of each longer by `costs`, and their rounds."""
    generator = np.random.default_rng(3)
    steps = 1 + noise * generator.standard_normal((count, length))
    steps[:, : len(costs)] += costs
    return steps.ravel().tolist(), np.repeat(np.arange(count), length).tolist()


@pytest.mark.parametrize("costs", [[], [0.2], [0.3, 0.1]])
def test_as_many_steps_are_left_out_as_cost_more(costs: list[float]) -> None:
    step_s, rounds = turns(20, 6, costs, 0.01)
    found = reentry.reentry(step_s, rounds, 0)
    assert found.steps == len(costs)
    assert found.cost_half is not None
    assert abs(np.log1p(found.cost) - np.log1p(sum(costs[:1]))) < 0.05


def test_noise_alone_rarely_leaves_a_step_out() -> None:
    generator = np.random.default_rng(0)
    rounds = np.repeat(np.arange(12), 3).tolist()
    series = np.exp(0.1 * generator.standard_normal((400, 36)))
    assert np.mean([reentry.reentry(one, rounds, 0).steps > 0 for one in series]) < 0.02


def test_a_cost_below_what_matters_is_kept() -> None:
    step_s, rounds = turns(50, 4, [0.003], 0.0001)
    assert reentry.reentry(step_s, rounds, 0).steps == 0


def test_single_steps_and_few_turns_tell_nothing() -> None:
    assert reentry.reentry([2.0, 1.0, 1.0] * 10, list(range(30)), 0).cost_half is None
    step_s, rounds = turns(reentry.MIN_TURNS - 1, 4, [0.5], 0.001)
    assert reentry.reentry(step_s, rounds, 0).steps == 0
    assert reentry.reentry([], [], 0).steps == 0


@given(lengths=st.lists(st.integers(1, 5), max_size=20), steps=st.integers(0, 3))
def test_the_steps_behind_them_are_kept_and_the_very_first(lengths: list[int], steps: int) -> None:
    rounds = [number for number, length in enumerate(lengths) for _ in range(length)]
    kept = reentry.kept(rounds, steps).tolist()
    expected = [place >= steps for length in lengths for place in range(length)]
    if expected:
        expected[0] = True
    assert kept == expected
