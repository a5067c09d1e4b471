"""Efficiency factors of runs whose truth is known, and how well they are said to be known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.factor_coverage import Case, coverage_of_windows
from benchmarks.noise import MODELLED
from dpeval.analysis.report import verdict
from dpeval.analysis.scaling.efficiency import ORDER, Factor, Waterfall
from dpeval.record.phases import PHASES
from dpeval.record.schema import Ablation, PhaseStats, Record
from tests.records import ablation, findings, make_record, perfect, verdict_of


def busy(run: Record, waits_s: list[list[float]], computes_s: list[list[float]]) -> Record:
    """`run`, whose ranks wait for data and compute so long in turn, and else wait for others."""
    assert run.window is not None
    first = run.window.first
    ranks = []
    for rank, data, compute in zip(run.ranks, waits_s, computes_s, strict=True):
        step = np.array(rank.step_s)
        phases = {name: np.zeros(len(step)) for name in PHASES}
        phases["data"], phases["forward"] = (np.resize(one, len(step)) for one in (data, compute))
        phases["comm_exposed"] = step - phases["data"] - phases["forward"]
        stats = {name: stated(one[first:]) for name, one in (phases | {"step": step}).items()}
        series = {name: one.tolist() for name, one in phases.items()}
        ranks.append(rank.model_copy(update={"phase_s": series, "stats": stats}))
    return run.model_copy(update={"ranks": ranks})


def stated(series: np.ndarray[tuple[int], np.dtype[np.float64]]) -> PhaseStats:
    mean = float(series.mean())
    return PhaseStats(median_s=mean, mean_s=mean, p05_s=mean, p95_s=mean)


def with_waits(made: Ablation, waits_s: list[float], compute_s: float = 0.7) -> Ablation:
    """`made`, whose blocks record waits for data, and the computing of usual steps."""
    blocks = []
    for block in made.blocks:
        waits = [[waits_s[rank]] * len(step) for rank, step in enumerate(block.step_s)]
        computes = [
            [compute_s if block.kind == "normal" else one - waits_s[rank] for one in step]
            for rank, step in enumerate(block.step_s)
        ]
        blocks.append(block.model_copy(update={"data_s": waits, "compute_s": computes}))
    return made.model_copy(update={"blocks": blocks})


def the_factors(*runs: Record) -> dict[str, Factor]:
    (waterfall,) = findings(runs).waterfalls
    product = math.prod(factor.value for factor in waterfall.factors)
    assert product == pytest.approx(waterfall.efficiency)
    return {factor.name: factor for factor in waterfall.factors}


def values(*runs: Record) -> dict[str, float]:
    return {name: factor.value for name, factor in the_factors(*runs).items()}


def test_ranks_that_wait_for_each_other_lose_nothing_by_their_marks() -> None:
    """Each step ends later on one rank than on the other, in turn; both take 1 s in the mean."""
    swaying = [[1.1, 0.9, 1.1, 0.9], [0.9, 1.1, 0.9, 1.1]]
    made = ablation(1.0, [0.8, 0.8], 0.8)
    blocks = [
        block.model_copy(update={"step_s": swaying}) if block.kind == "normal" else block
        for block in made.blocks
    ]
    windows = with_waits(made.model_copy(update={"blocks": blocks}), [0.01, 0.01])
    found = values(perfect(1, 32, 1.6), perfect(2, 32, 1.0, ablation=windows))
    assert found["remainder"] == pytest.approx(1.0)


ALL_ONE = dict.fromkeys(ORDER, 1.0)
WINDOWS = ablation(1.0, [0.7, 1.0], 0.7)
"""Rank 1 of 2 waits 0.3 s of a step of 1 s for data, and both compute 0.7 s."""


def waiting(**changes: Ablation) -> list[Record]:
    one = busy(perfect(1, 32, 1.4), [[0.0]], [[1.4]])
    return [one, busy(perfect(2, 32, 1.0, **changes), [[0.0], [0.3]], [[0.7], [0.7]])]


@pytest.mark.parametrize("windows", [WINDOWS, with_waits(WINDOWS, [0.0, 0.3])])
def test_a_rank_that_waits_for_data_is_counted_once(windows: Ablation) -> None:
    assert values(*waiting(ablation=windows)) == pytest.approx(ALL_ONE | {"input": 0.7})


def test_without_windows_a_wait_for_data_is_neither_communication_nor_imbalance() -> None:
    one, many = waiting()
    balanced = many.balance
    assert balanced is not None
    many = many.model_copy(update={"balance": balanced.model_copy(update={"value": 1.0})})
    found = values(one, many)
    assert found.pop("input") == pytest.approx(0.7)
    assert list(found.values()) == pytest.approx([1.0] * 3)


def test_ranks_that_wait_in_turn_delay_every_step() -> None:
    one = busy(perfect(1, 32, 1.4), [[0.0]], [[1.4]])
    in_turn = [[0.3, 0.0], [0.0, 0.3]]
    many = busy(perfect(2, 32, 1.0), in_turn, [[0.7], [0.7]])
    assert values(one, many)["input"] == pytest.approx(0.7)


def test_waits_that_the_windows_did_not_have_are_no_gain() -> None:
    """A loader that fills its queue between blocks: the windows are shorter than the main one."""
    windows = with_waits(ablation(0.7, [0.7, 0.7], 0.7), [0.0, 0.0])
    assert values(*waiting(ablation=windows)) == pytest.approx(ALL_ONE | {"input": 0.7})


def test_a_rank_that_is_slow_now_and_then_is_load_balance_in_windows_too() -> None:
    made = ablation(1.4, [1.0, 1.4], 1.0)
    uneven = [
        block.model_copy(update={"step_s": [[1.0] * 5, [3.0, 1.0, 1.0, 1.0, 1.0]]})
        if block.kind == "no_sync"
        else block
        for block in made.blocks
    ]
    many = perfect(2, 32, 1.4, ablation=made.model_copy(update={"blocks": uneven}))
    found = values(perfect(1, 32, 2.0), many)
    assert found == pytest.approx(ALL_ONE | {"load balance": 1 / 1.4})


@pytest.mark.parametrize("rounds", [2, 4, 6])
def test_a_drift_over_the_blocks_is_no_factor(rounds: int) -> None:
    windows = ablation(0.5, [0.5, 0.5], 0.5, rounds=rounds, drift=0.02)
    found = the_factors(perfect(1), perfect(2, 32, 0.5, ablation=windows))
    for name in ("contention", "load balance", "gradient synchronisation", "remainder"):
        assert found[name].value == pytest.approx(1.0)
        assert found[name].high < 1.01, "a drift is no noise either"


def test_equal_batches_are_not_called_smaller() -> None:
    windows = ablation(1.0, [1.0, 1.0], 1.0)
    runs = [
        perfect(1, 32, 0.8, scaling="weak"),
        perfect(2, 32, 1.0, scaling="weak", ablation=windows),
    ]
    found = the_factors(*runs)["granularity"]
    assert found.value == pytest.approx(0.8)
    assert found.meaning.startswith("drift between the one-device run")
    assert "also includes what changed between" in found.note
    assert "drift between the one-device run" in " ".join(verdict_of(findings(runs)))
    strong = the_factors(perfect(1), perfect(2, 32, 0.5, ablation=ablation(0.5, [0.5] * 2, 0.5)))
    assert "computes less efficiently" in strong["granularity"].meaning


def lost(*factors: Factor) -> Waterfall:
    return Waterfall({}, math.prod(factor.value for factor in factors), list(factors))


def test_a_largest_loss_is_named_only_where_it_can_be_told_apart() -> None:
    clear = Factor(("input",), 0.8, 0.02, meaning="waits")
    near = Factor(("load balance",), 0.83, 0.05)
    far = Factor(("remainder",), 0.98, 0.05)
    assert lost(clear, far).largest_losses == [clear]
    assert lost(far, near, clear).largest_losses == [clear, near]
    said = verdict.loss(lost(far, near, clear))
    assert said.startswith("The largest loss is one of input and load balance:")
    said = verdict.loss(lost(far, clear))
    assert said.startswith("The largest loss is input (× 0.80 ± 0.02), because of waits")
    assert "remainder 0.98 ± 0.05" in said
    wide = Factor(("contention",), 0.9, 0.3)
    assert verdict.loss(lost(wide, far)).startswith("No factor of this efficiency can be told from")
    unknown = Factor(("contention",), 0.7, math.nan, meaning="competition")
    assert verdict.loss(lost(unknown, clear)).startswith("The lowest factor is contention")
    assert lost(unknown, clear).largest_losses == [unknown, clear]


def test_repetitions_are_what_a_factor_is_known_from() -> None:
    """Windows that agree within a run do not hide that runs differ."""
    ratios = [0.80, 0.90, 1.00, 0.86]
    many = [
        perfect(2, 32, 0.5, repetition=run, ablation=ablation(0.5, [0.5 * ratio] * 2, 0.4))
        for run, ratio in enumerate(ratios)
    ]
    found = the_factors(*(make_record(1, repetition=run, seed=run) for run in range(4)), *many)
    factor = found["gradient synchronisation"]
    half = 3.182 * float(np.log(ratios).std(ddof=1)) / 2
    assert factor.half == pytest.approx(half, rel=1e-3)


@pytest.mark.parametrize(
    "case", [Case(), Case(noise=MODELLED["AR(1), r = 0.6"], drift=0.02), Case(rounds=2)]
)
def test_intervals_from_rounds_cover_the_truth(case: Case) -> None:
    """benchmarks/coverage.py prints how often, of more draws and of whole analyses."""
    for name, found in coverage_of_windows(case, 100).items():
        assert found.covered >= 0.88, name
