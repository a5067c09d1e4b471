"""Ratios from rounds: what both runs of a round suffer cancels."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scoring import autoregressive
from dpeval.analysis.scaling.best_configuration import THROUGHPUT
from dpeval.config import MeasureConfig
from dpeval.record.schema import Record, Sitting
from dpeval.stats import paired, steady_state
from dpeval.stats.best import compared_with_best
from dpeval.stats.throughput import throughput
from dpeval.util.arrays import Floats
from tests.records import findings, make_record, verdict_of


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    first=st.integers(0, 20),
)
def test_a_round_counts_if_all_its_steps_are_steady(sizes: list[int], first: int) -> None:
    rounds = [number for number, size in enumerate(sizes) for _ in range(size)]
    step_s = [float(index + 1) for index in range(len(rounds))]
    found = paired.by_round(step_s, rounds, first)
    begins = np.cumsum([0, *sizes[:-1]])
    expected = {
        number: float(np.mean(step_s[begin : begin + size]))
        for number, (begin, size) in enumerate(zip(begins, sizes, strict=True))
        if begin >= first
    }
    assert found == pytest.approx(expected)


def test_steps_granted_but_not_finished_do_not_count() -> None:
    assert paired.by_round([1.0, 3.0], [0, 0, 1, 1], 0) == {0: 2.0}


def test_what_slows_both_alike_cancels() -> None:
    generator = np.random.default_rng(0)
    machine = np.exp(np.cumsum(generator.normal(0, 0.05, 60)))
    over = dict(enumerate(3.0 * machine))
    under = dict(enumerate(2.0 * machine))
    found = paired.ratio(over, under)
    assert found is not None
    assert found.mean == pytest.approx(1.5)
    assert found.high - found.low < 1e-9


def test_only_rounds_of_both_are_compared() -> None:
    """The second run left while the machine was slow; its ratio must not profit from that."""
    over = {number: 2.0 if number < 10 else 1.0 for number in range(20)}
    under = dict.fromkeys(range(10), 1.0)
    found = paired.ratio(over, under)
    assert found is not None
    assert found.mean == pytest.approx(2.0)


def test_too_few_common_rounds_give_no_ratio() -> None:
    common = dict.fromkeys(range(paired.MIN_ROUNDS - 1), 1.0)
    assert paired.ratio(common, common | {90: 1.0}) is None


@pytest.mark.parametrize("memory", [0.0, 0.5])
def test_intervals_of_ratios_cover_the_truth(memory: float) -> None:
    """A common disturbance of 20 % with a long memory, 3 % of each run's own."""
    generator = np.random.default_rng(7)
    draws, rounds, hits, widths = 200, 30, 0, []
    for _ in range(draws):
        common = np.exp(0.2 * autoregressive(0.9, generator, 1, rounds)[0])
        over = 2.0 * common * (1 + 0.03 * autoregressive(memory, generator, 1, rounds)[0])
        under = 1.0 * common * (1 + 0.03 * autoregressive(memory, generator, 1, rounds)[0])
        found = paired.ratio(dict(enumerate(over)), dict(enumerate(under)))
        assert found is not None
        hits += found.low <= 2.0 <= found.high
        widths.append(found.rel_half_width)
    assert hits / draws >= 0.92
    assert np.median(widths) < 0.06, "far less than the common disturbance"


def sat_together(
    step_s: dict[int, float],
    *,
    batch: int = 32,
    repetitions: int = 1,
    wander: float = 0.2,
    own: float = 0.01,
    seed: int = 0,
    own_seed: int = 0,
) -> list[Record]:
    """Runs on several device counts in one sitting a repetition, on a machine that wanders.

    Each strays by `own` besides. Those with the same `seed` sat in the same, whatever their batch
    and `own_seed`.
    """
    generator, strays = np.random.default_rng(seed), np.random.default_rng([seed, own_seed])
    found = []
    for repetition in range(repetitions):
        machine = np.exp(wander * autoregressive(0.9, generator, 1, 40)[0])
        base: Record | None = None
        for devices, mean_s in sorted(step_s.items()):
            strayed = 1 + own * strays.standard_normal(40)
            run = record_of(
                mean_s * machine * strayed, num_devices=devices, batch=batch, repetition=repetition
            )
            turns = Sitting(
                id=f"sitting-{seed}-{repetition}", rounds=list(range(40)), runs=len(step_s)
            )
            run = run.model_copy(update={"sitting": turns})
            base = base or run
            found.append(run if run is base else paired.compared(run, base))
    return found


def record_of(step_s: Floats, **fields: Any) -> Record:
    """A record with the given steps on every rank."""
    made = make_record(step_s=float(step_s.mean()), steps=len(step_s) - 3, **fields)
    series = [float(value) for value in step_s]
    window = steady_state.window([np.asarray(step_s)] * len(made.ranks), "ratios", MeasureConfig())
    main = np.asarray(step_s)[window.first :]
    images = made.plan.global_batch_size if made.plan is not None else 0
    return made.model_copy(
        update={
            "ranks": [rank.model_copy(update={"step_s": series}) for rank in made.ranks],
            "window": window,
            "throughput": throughput(images, [main] * len(made.ranks), window.step_s),
        }
    )


def test_the_speedup_of_runs_that_took_turns_is_that_of_their_rounds() -> None:
    """The truth is 1.6; each run alone is known to ± 20 % at best."""
    found = findings(sat_together({1: 1.0, 2: 1 / 1.6})).points
    one, two = (found[found["num_devices"] == count].iloc[0] for count in (1, 2))
    assert two["is_paired"]
    assert not one["is_paired"]
    assert two["speedup"] == pytest.approx(1.6, rel=0.02)
    assert two["speedup_low"] < 1.6 < two["speedup_high"]
    assert two["speedup_high"] / two["speedup_low"] < 1.05
    assert two["efficiency"] == pytest.approx(0.8, rel=0.02)


def test_repeated_sittings_are_averaged() -> None:
    found = findings(sat_together({1: 1.0, 2: 0.5}, repetitions=5)).points
    two = found[found["num_devices"] == 2].iloc[0]
    assert two["is_paired"]
    assert two["speedup"] == pytest.approx(2.0, rel=0.01)
    assert two["speedup_low"] < 2.0 < two["speedup_high"]


def test_runs_of_different_sittings_are_not_paired() -> None:
    """Four and eight devices took turns, and the baseline is a run that sat elsewhere."""
    apart = [*sat_together({1: 1.0})[:1], *sat_together({4: 0.4, 8: 0.3}, seed=1)]
    found = findings(apart).points
    assert not found["is_paired"].any()


def of_two_batches(rates: dict[tuple[int, int], float]) -> list[Record]:
    """One sitting of runs by devices and batch, with their throughputs."""
    return [
        run
        for batch in sorted({batch for _, batch in rates})
        for run in sat_together(
            {n: batch / rate for (n, of), rate in rates.items() if of == batch},
            batch=batch,
            own_seed=batch,
        )
    ]


def test_batches_of_one_sitting_are_compared_by_their_rounds() -> None:
    """Each run alone is known to 20 % at best, and the fastest leads by 4 %."""
    rates = {(1, 16): 20.0, (2, 16): 32.0, (1, 32): 21.0, (2, 32): 33.3}
    together = of_two_batches(rates)
    apart = [run.model_copy(update={"sitting": None}) for run in together]
    known, unknown = (findings(runs) for runs in (together, apart))
    (best,), (guess,) = (
        [one for one in found.choices if one.objective is THROUGHPUT and one.batch is None]
        for found in (known, unknown)
    )
    assert best.is_paired
    assert best.best is not None
    assert (best.best.num_devices, best.best.batch, best.ties) == (2, 32, [])
    assert [(one.num_devices, one.batch) for one in best.others] == [(2, 16), (1, 32), (1, 16)]
    assert best.others[0].behind < 0.1
    assert not guess.is_paired
    assert len(guess.ties) > 0
    said = verdict_of(known)
    assert "is fastest on 2 CPU devices at batch 32" in said[0]
    assert not any("that did not take turns" in line for line in said)
    assert not any("assume a spread" in line for line in said)


def test_what_did_not_take_turns_with_the_rest_is_compared_as_independent_and_this_is_said() -> (
    None
):
    runs = [*sat_together({1: 1.0, 2: 0.5}), *sat_together({4: 0.3}, seed=1)]
    found = findings(runs)
    assert found.points.set_index("num_devices")["is_paired"].to_dict() == {
        1: False, 2: True, 4: False
    }  # fmt: skip
    assert not found.choices[0].is_paired
    assert any("of runs that did not take turns assume" in line for line in verdict_of(found))


def test_the_report_says_that_one_sitting_does_not_show_how_processes_differ() -> None:
    single, repeated = (
        " ".join(verdict_of(findings(sat_together({1: 1.0, 2: 0.5}, repetitions=n))))
        for n in (1, 5)
    )
    assert "come from their rounds" in single
    assert "repeat=5 shows what differs between processes" in single
    assert "come from their rounds" in repeated
    assert "shows what differs between processes" not in repeated


@pytest.mark.parametrize("took_turns", [False, True])
def test_what_no_run_could_settle_is_not_proposed(took_turns: bool) -> None:
    """Four steps of a quarter of an hour that vary by a factor of two leave everything open."""
    runs = [make_record(n, step_s=900.0, steps=4, noise=0.5, seed=n) for n in (1, 2)]
    runs = [run.model_copy(update={"wall_s": 6300.0}) for run in runs]
    if took_turns:
        turns = Sitting(id="one", rounds=list(range(7)), runs=2)
        runs = [run.model_copy(update={"sitting": turns}) for run in runs]
    said = " ".join(verdict_of(findings(runs)))
    assert "Stop what else runs" in said
    assert ("sweep.order=interleaved" in said) is not took_turns


def test_few_rounds_give_the_interval_of_students_t() -> None:
    over, under = {0: 2.0, 1: 2.2, 5: 9.0}, {0: 1.0, 1: 1.0, 3: 4.0}
    found = paired.of_few(over, under)
    assert found is not None
    assert found.mean == pytest.approx(2.1)
    assert np.log(found.high / found.mean) == pytest.approx(12.706 * np.log(1.1) / 2, rel=1e-3)
    assert paired.of_few({0: 1.0}, {0: 1.0}) is None


def turns(*rates: float, rounds: int = 30, own: float = 0.03, seed: int = 11) -> list[paired.Turns]:
    """Runs of some img/s whose batches differ, under a common disturbance of 20 %."""
    generator = np.random.default_rng(seed)
    common = np.exp(0.2 * autoregressive(0.9, generator, 1, rounds)[0])
    return [
        paired.Turns("one", batch, dict(enumerate(times)), "time_limit")
        for batch, rate in enumerate(rates, 16)
        for times in [batch / rate * common * np.exp(own * generator.standard_normal(rounds))]
    ]


def test_the_fastest_is_known_where_the_machine_wanders_by_more_than_runs_differ() -> None:
    found = paired.differences(turns(100, 107, 90))
    assert found is not None
    standing = compared_with_best(found)
    assert standing.could_be_best == [False, True, False]
    assert standing.low[1] == 0


def test_equals_could_both_be_the_best() -> None:
    found = paired.differences(turns(100, 100.2, 80))
    assert found is not None
    assert compared_with_best(found).could_be_best == [True, True, False]
    assert paired.differences(turns(100, 107, rounds=paired.MIN_ROUNDS - 1)) is None


def test_runs_that_still_race_are_compared_as_the_analysis_compares_them() -> None:
    racing = [replace(one, stopped_by="best") for one in turns(100, 107, 90)]
    found = paired.differences(racing)
    assert found is not None
    for i, j in itertools.permutations(range(3), 2):
        one = paired.contrast([racing[i]], [racing[j]])
        assert one is not None
        assert one.value == pytest.approx(found.value[i, j])
        assert one.error == pytest.approx(found.error[i, j])


def test_the_true_best_is_seldom_excluded() -> None:
    lost = 0
    for seed in range(100):
        found = paired.differences(turns(101, 100, 100, 100, rounds=25, seed=seed))
        assert found is not None
        lost += not compared_with_best(found).could_be_best[0]
    assert lost <= 10
