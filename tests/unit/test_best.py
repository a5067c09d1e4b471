"""Which configurations could be the best, and that "not different" is not "equal"."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dpeval.analysis.advice.settling import settling
from dpeval.analysis.scaling.best_configuration import ENERGY, THROUGHPUT, choose
from dpeval.record.schema import Record
from dpeval.stats.best import Differences, compared_with_best, dunnett
from tests.records import findings, make_record, perfect, verdict_of
from tests.unit.test_paired import sat_together


@pytest.mark.parametrize(
    ("count", "freedom", "quantile"),
    # Hochberg & Tamhane 1987, Multiple Comparison Procedures, tables 2 and 4.
    [(2, math.inf, 1.92), (5, math.inf, 2.23), (9, math.inf, 2.42), (3, 10, 2.34), (4, 20, 2.30)],
)
def test_dunnetts_quantiles_are_those_of_the_tables(
    count: int, freedom: float, quantile: float
) -> None:
    assert dunnett(count, 0.5, freedom) == pytest.approx(quantile, abs=0.006)


def test_a_single_comparison_is_students() -> None:
    assert dunnett(1, 0.5, 4) == pytest.approx(stats.t.ppf(0.95, 4))


@pytest.mark.parametrize("freedom", [4, math.inf])
@pytest.mark.parametrize("truth", [(0.0, 0.0, 0.0), (0.0, -0.02, -0.1), (0.0, -0.3, -0.3)])
def test_the_best_is_excluded_and_bounds_are_broken_in_one_case_of_twenty_at_most(
    truth: tuple[float, ...], freedom: float
) -> None:
    generator, draws, errors = np.random.default_rng(1), 1000, np.array([0.02, 0.02, 0.04])
    true = np.array([one - max(np.delete(truth, i)) for i, one in enumerate(truth)])
    wrong = 0
    for _ in range(draws):
        values = truth + errors * generator.standard_normal(3)
        scale = 1.0 if math.isinf(freedom) else math.sqrt(generator.chisquare(freedom) / freedom)
        found = compared_with_best(Differences.of_independent(values, errors * scale, freedom))
        # The interval of the best ends at its lead or where the data say that it leads.
        is_above = (found.high < true) & (true <= 0)
        wrong += bool((found.low > np.minimum(true, 0)).any() or is_above.any())
    # Of 1,000 draws of a 5 % event, 68 or more happen in 0.8 %.
    assert wrong < 68


def test_unknown_errors_exclude_nothing() -> None:
    errors = np.array([0.1, math.nan, 0.1])
    given = Differences.of_independent(np.array([1.0, 0.0, -9.0]), errors, math.inf)
    found = compared_with_best(given)
    assert found.could_be_best == [True, True, False]
    assert found.low[0] == -math.inf


def first_sentences(runs: list[Record]) -> list[str]:
    return verdict_of(findings(runs))


def test_a_wide_interval_is_not_equality() -> None:
    # 26.6 against 45.1 img/s, each known to a factor of two: neither is "as good".
    runs = [
        make_record(n, 48, 48 / rate, noise=0.35, steps=6, seed=n)
        for n, rate in ((2, 26.6), (4, 45.1))
    ]
    (best,) = [one for one in findings(runs).choices if one.objective is THROUGHPUT]
    (other,) = best.others
    assert other.could_be_best
    assert other.behind > 0.4
    first, second, *_ = first_sentences(runs)
    assert "no configuration of densenet121 can be told from the best" in first
    assert "as well" not in first + second


def swept(times: dict[int, float], batch: int = 48, repeat: int = 3) -> list[Record]:
    """Repetitions 0.5 % apart."""
    return [
        perfect(
            n, batch, time * (1 + 0.005 * (repetition - 1)), repetition=repetition, wall_s=40.0,
            command=f"python -m dpeval.train model=densenet121 num_devices={n} batch={batch} "
            f"repeat={repeat} measure=quick repetition={repetition}",
        )
        for n, time in times.items()
        for repetition in range(repeat)
    ]  # fmt: skip


def test_a_clear_best_is_named_first_and_nothing_is_undecided() -> None:
    runs = swept({1: 1.0, 2: 0.6, 4: 0.4})
    (best,) = [one for one in findings(runs).choices if one.objective is THROUGHPUT]
    assert best.ties == []
    assert best.best is not None
    assert best.best.behind == 0
    said = first_sentences(runs)
    assert "is fastest on 4 CPU devices at batch 48" in said[0]
    assert not any("tell them apart" in line for line in said)


def test_the_undecided_are_named_with_the_command_that_would_settle_it() -> None:
    first, second, third, *_ = first_sentences(swept({1: 1.0, 2: 0.402, 4: 0.4}))
    assert "2 of 3 configurations" in first
    assert "The best estimate is that of 4 CPU devices at batch 48" in second
    assert third.endswith(
        "python -m dpeval.train -m model=densenet121 measure=quick sweep.order=interleaved "
        "measure.until=best num_devices=2,4 batch=48 "
        f"repeat={third.rpartition('=')[2]}"
    )
    repeats = int(third.rpartition("=")[2])
    assert 2 <= repeats <= 20
    assert f"{repeats} more runs of each (about {repeats * 80 / 60:.0f} min)" in third


def test_runs_that_were_too_short_are_to_be_longer_and_not_more() -> None:
    runs = [
        run.model_copy(
            update={
                "command": f"{swept({n: 1.0})[0].command} measure.time_limit_s=6",
                "wall_s": 10.0,
            }
        )
        for n, step_s in ((1, 0.5), (2, 0.4))
        for run in [make_record(n, 48, step_s, noise=0.2, steps=10, seed=n)]
    ]
    third = first_sentences(runs)[2]
    assert "measure 2 runs of each with measure=standard (about " in third
    assert (
        "model=densenet121 sweep.order=interleaved measure=standard measure.until=best "
        "num_devices=1,2 batch=48"
    ) in third


def test_what_takes_too_many_runs_has_no_command() -> None:
    """Two are 1 % apart where runs differ by 15 %."""
    lines = first_sentences(
        [
            run.model_copy(update={"wall_s": 20.0})
            for shift in (-0.15, 0.0, 0.15)
            for run in swept({1: 0.404 * (1 + shift), 2: 0.4 * (1 - shift)}, repeat=1)
        ]
    )
    (words,) = [line for line in lines if "too noisy" in line]
    assert "more runs of each (about " in words
    assert "sweep.order=interleaved" in words
    assert "dpeval.train" not in words


def test_what_would_take_too_long_to_tell_apart_is_said() -> None:
    lines = first_sentences([perfect(n, 48, time) for n, time in ((1, 0.401), (2, 0.4))])
    assert "no configuration of densenet121 can be told from the best" in lines[0]
    assert lines[2].startswith(
        "To tell whether they differ by 1 %, measure 49 more runs of each (about 2 min)"
    )


def test_the_spread_between_runs_is_said_once() -> None:
    for runs, words in (
        (swept({1: 1.0, 2: 0.6}), "measured on the repetitions (4 degrees of freedom)"),
        (swept({1: 1.0, 2: 0.6}, repeat=1), "assume a spread between runs of 2 %"),
    ):
        lines = first_sentences(runs)
        assert sum("spread between runs" in line for line in lines) == 1
        assert words in lines[-1]


def test_energies_are_compared_with_the_best_too() -> None:
    runs = [
        run.model_copy(update={"energy_j_per_img": joules * (1 + 0.01 * (run.repetition - 1))})
        for run in swept({1: 1.0, 2: 0.6, 4: 0.4})
        for joules in [{1: 2.0, 2: 2.005, 4: 2.5}[run.config["num_devices"]]]
    ]
    chosen = choose(findings(runs).points, ENERGY)[0]
    assert chosen.best is not None
    assert chosen.best.num_devices == 1
    assert chosen.best.low < 2.0 < chosen.best.high
    assert [one.num_devices for one in chosen.ties] == [2]
    assert 0 < chosen.ties[0].behind < 0.04


@pytest.mark.parametrize(
    ("common", "own", "ties"),
    # What the whole machine draws cancels within a round; what one run draws does not.
    [(0.3, 0.002, []), (0.0, 0.3, [1])],
)
def test_energies_of_runs_that_took_turns_are_compared_by_their_rounds(
    common: float, own: float, ties: list[int]
) -> None:
    generator, runs = np.random.default_rng(3), []
    of_machine = np.exp(common * generator.standard_normal(40))
    for run in sat_together({1: 1.0, 2: 0.6}):
        assert run.sitting is not None
        mean_j = {1: 60.0, 2: 58.5}[run.config["num_devices"]]
        joules = mean_j * of_machine * np.exp(own * generator.standard_normal(40))
        taken = run.sitting.model_copy(
            update={"energy_j_by_round": dict(enumerate(joules.tolist()))}
        )
        per_img = float(joules.mean()) / run.config["batch"]
        runs.append(run.model_copy(update={"sitting": taken, "energy_j_per_img": per_img}))
    chosen = choose(findings(runs).points, ENERGY)[0]
    assert chosen.best is not None
    able = {one.num_devices for one in chosen.able}
    assert able == {2, *ties}


def test_runs_that_took_turns_are_compared_by_their_rounds() -> None:
    # Each run alone is known to 20 % at best, the ratios to 1 %.
    runs = sat_together({1: 1.0, 2: 0.55, 4: 0.5})
    together, apart = (
        next(
            one for one in findings(found).choices
            if one.objective is THROUGHPUT and one.batch is None
        )
        for found in (runs, [run.model_copy(update={"sitting": None}) for run in runs])
    )  # fmt: skip
    assert together.best is not None
    assert (together.best.num_devices, together.ties) == (4, [])
    assert len(apart.ties) >= 1


def test_what_took_turns_and_is_undecided_needs_fewer_runs_than_what_did_not() -> None:
    turns = sat_together({1: 1.0, 2: 0.5005, 4: 0.5}, own=0.03)
    apart = [run.model_copy(update={"sitting": None}) for run in turns]
    wanted = []
    for runs in (turns, apart):
        found = findings(runs)
        (chosen,) = choose(found.points, THROUGHPUT)
        assert {2, 4} <= {one.num_devices for one in chosen.able}
        proposed = settling(found.loaded.runs, found.points, chosen)
        assert proposed is not None
        wanted.append(proposed.seconds)
    assert wanted[0] < wanted[1] / 3


def test_what_is_known_to_be_equal_needs_no_further_run() -> None:
    found = findings(sat_together({1: 1.0, 2: 0.5005, 4: 0.5}))
    (chosen,) = choose(found.points, THROUGHPUT)
    assert chosen.are_equal
    assert settling(found.loaded.runs, found.points, chosen) is None
    said = verdict_of(found)
    assert any("within 1 % of the best (95 % confidence)" in line for line in said)
    assert not any("tell" in line and "measure" in line for line in said)
