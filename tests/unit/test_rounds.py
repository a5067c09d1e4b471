"""The order of turns, their length, and who sits together."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpeval.commands import hydra_app
from dpeval.config import Config
from dpeval.sitting import rounds
from dpeval.sitting.sweep import bases


@given(runs=st.integers(1, 12), seed=st.integers(0, 2**31))
def test_every_pair_of_rounds_is_balanced(runs: int, seed: int) -> None:
    """Each run has one turn a round, and in a pair of rounds the same mean position."""
    orders = rounds.orders(runs, seed)
    for first, second in itertools.islice(zip(orders, orders, strict=False), 5):
        assert sorted(first) == list(range(runs))
        positions = [first.index(run) + second.index(run) for run in range(runs)]
        assert positions == [runs - 1] * runs


def test_orders_differ_from_pair_to_pair() -> None:
    orders = itertools.islice(rounds.orders(6, 0), 0, 20, 2)
    assert len({tuple(order) for order in orders}) > 5


@pytest.mark.parametrize(
    ("step_s", "steps"),
    [(None, 1), (3.0, 1), (0.3, 1), (0.2, 1), (0.1, 3), (0.05, 5), (0.001, 250)],
)
def test_a_turn_takes_about_a_quarter_of_a_second(step_s: float | None, steps: int) -> None:
    assert rounds.turn_steps(step_s) == steps


@given(
    needs=st.lists(st.one_of(st.none(), st.integers(1, 100)), max_size=12),
    free=st.integers(1, 200),
)
def test_groups_hold_every_run_once_and_fit(needs: list[int | None], free: int) -> None:
    groups = rounds.groups_that_fit(needs, free)
    assert sorted(itertools.chain(*groups)) == list(range(len(needs)))
    for group in groups:
        assert group == sorted(group)
        taken = [need for need in (needs[run] for run in group) if need is not None]
        # A run that is forecast not to fit, or has no forecast, is alone.
        assert len(group) == 1 or (len(taken) == len(group) and sum(taken) <= free)


def composed(*overrides: str) -> Config:
    return hydra_app.compose(["model=calibrated", "dataset=calibrated", *overrides])


def test_a_speedup_is_against_the_fewest_devices_of_the_same_task() -> None:
    configs = [
        composed(f"num_devices={devices}", f"batch={batch}")
        for batch in (16, 32)
        for devices in (4, 2, 3)
    ]
    assert bases(configs) == [1, None, 1, 4, None, 4]


def test_a_serial_run_is_the_base_of_every_strategy() -> None:
    configs = [
        composed("num_devices=1"),
        composed("num_devices=2"),
        composed("num_devices=2", "strategy.bucket_cap_mb=1"),
        composed("num_devices=1", "strategy=none"),
        composed("num_devices=2", "precision=bf16"),
    ]
    assert bases(configs) == [3, 3, 3, None, None]
