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


@given(kinds=st.lists(st.sampled_from([1, 3]), min_size=1, max_size=12), seed=st.integers(0, 2**31))
def test_every_pair_of_rounds_is_balanced(kinds: list[int], seed: int) -> None:
    """Each kind has one turn a round, and in a pair of rounds the same mean position."""
    orders = rounds.orders(kinds, seed)
    turns = sum(kinds)
    for first, second in itertools.islice(zip(orders, orders, strict=False), 5):
        assert sorted(first) == list(range(turns))
        positions = [first.index(turn) + second.index(turn) for turn in range(turns)]
        assert positions == [turns - 1] * turns


@given(kinds=st.lists(st.integers(1, 3), min_size=1, max_size=12), seed=st.integers(0, 2**31))
def test_the_kinds_of_turns_of_one_run_lie_side_by_side(kinds: list[int], seed: int) -> None:
    owners = [run for run, size in enumerate(kinds) for _ in range(size)]
    for order in itertools.islice(rounds.orders(kinds, seed), 6):
        visits = [run for run, _ in itertools.groupby(order, key=lambda turn: owners[turn])]
        assert sorted(visits) == list(range(len(kinds)))


def test_orders_differ_from_pair_to_pair() -> None:
    orders = itertools.islice(rounds.orders([1] * 6, 0), 0, 20, 2)
    assert len({tuple(order) for order in orders}) > 5
    of_one = itertools.islice(rounds.orders([3], 0), 0, 40, 2)
    assert len({tuple(order) for order in of_one}) == 6


@pytest.mark.parametrize(
    ("step_s", "steps"),
    [(None, 1), (3.0, 1), (0.3, 1), (0.2, 1), (0.1, 3), (0.05, 5), (0.001, 250)],
)
def test_a_turn_takes_about_a_quarter_of_a_second(step_s: float | None, steps: int) -> None:
    assert rounds.turn_steps(step_s) == steps


@st.composite
def sweeps(draw: st.DrawFn) -> tuple[list[int | None], list[int | None]]:
    """What each run needs, and the run that it is compared with."""
    needs = draw(st.lists(st.one_of(st.none(), st.integers(1, 100)), max_size=10))
    are_bases = draw(st.lists(st.booleans(), min_size=len(needs), max_size=len(needs)))
    others = [run for run, is_base in enumerate(are_bases) if is_base]
    chosen = st.sampled_from(others) if others else st.none()
    return needs, [None if is_base else draw(chosen) for is_base in are_bases]


@given(sweep=sweeps(), free=st.integers(1, 250))
def test_waves_fit_and_only_bases_stay(
    sweep: tuple[list[int | None], list[int | None]], free: int
) -> None:
    needs, bases = sweep
    waves = rounds.waves_that_fit(needs, free, bases)
    assert set(itertools.chain(*waves)) == set(range(len(needs)))
    for wave in waves:
        assert wave == sorted(wave)
        taken = [need for need in (needs[run] for run in wave) if need is not None]
        # A run that is forecast not to fit, or has no forecast, is alone.
        assert len(wave) == 1 or (len(taken) == len(wave) and sum(taken) <= free)
    for run, need in enumerate(needs):
        there = [number for number, wave in enumerate(waves) if run in wave]
        assert there == list(range(there[0], there[-1] + 1)), "a run left and came back"
        assert len(there) == 1 or run in bases
        base = bases[run]
        if base is not None and (need is None or needs[base] is None):
            assert len(waves[there[0]]) == 1


def test_a_base_stays_for_all_that_are_compared_with_it() -> None:
    """Three curves of two runs each do not fit at once; no run loses its base."""
    bases = [None, 0, 0, None, 3]
    waves = rounds.waves_that_fit([10, 40, 40, 20, 50], 70, bases)
    assert waves == [[0, 1, 3], [0, 2, 3], [3, 4]]
    assert rounds.waves_that_fit([10, 40, 40, 20, 50], 160, bases) == [[0, 1, 2, 3, 4]]
    assert rounds.waves_that_fit([60, 40, 5], 70, [None, 0, 0]) == [[0, 2], [1]]


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
