"""Trainings whose times are known by construction, measured by the whole instrument."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest

from dpeval.analysis.frame import runs_frame
from dpeval.analysis.scaling.findings import find
from dpeval.record.schema import Record, Warning
from dpeval.worker.ablation_schedule import KINDS, order
from tests.multiprocess.conftest import Finished

Train = Callable[..., Finished]
# Somebody else on the machine can spoil one attempt; the instrument is wrong if it stays wrong.
pytestmark = [pytest.mark.timing, pytest.mark.flaky(reruns=2, reruns_delay=5)]

FORWARD_S, BACKWARD_S, DATA_S, OPTIMIZER_S = 0.12, 0.18, 0.06, 0.06
STEP_S = FORWARD_S + BACKWARD_S + DATA_S + OPTIMIZER_S
CALIBRATED = (
    "model=calibrated", "dataset=calibrated", "measure=quick", "analyze=false",
    "hardware.oversubscribe=true", "batch=32",
)  # fmt: skip
FAST = (
    *CALIBRATED, "model.args.forward_s=0.02", "model.args.backward_s=0.03", "num_devices=4",
    "measure.min_steps=60", "measure.rel_precision=0.5", "measure.max_steps=120",
)  # fmt: skip


def known(slower: float) -> tuple[str, ...]:
    """A training whose every phase takes a set time, `slower` times the nominal one."""
    return (
        *CALIBRATED,
        f"dataset.delay_s={DATA_S * slower}",
        f"model.args.forward_s={FORWARD_S * slower}",
        f"model.args.backward_s={BACKWARD_S * slower}",
        "model.args.gradient_mib=0",
        "optimizer.name=dpeval.components.TimedSGD",
        f"+optimizer.args.step_s={OPTIMIZER_S * slower}",
    )


def measured(run: Record, phase: str) -> float:
    return float(np.mean([rank.stats[phase].median_s for rank in run.ranks]))


@pytest.mark.parametrize(("ranks", "slower"), [(1, 1), (2, 1), (4, 1), (8, 4), (16, 6)])
def test_throughput_and_phases_are_the_truth(train: Train, ranks: int, slower: int) -> None:
    """More ranks than cores need longer steps: what each of them computes between its sleeps (a
    millisecond or two) adds up on the cores that they share, and so do the hops of an all-reduce
    (17 ms of 16 ranks on 2 cores with next to nothing to send, 37 ms with 50 KiB)."""
    done = train(*known(slower), f"num_devices={ranks}")
    assert done.status == 0, done.err
    run = done.record
    assert run.throughput is not None
    assert run.throughput.img_per_s == pytest.approx(32 / (STEP_S * slower), rel=0.02)
    for phase, truth_s in {
        "forward": FORWARD_S,
        "backward": BACKWARD_S,
        "data": DATA_S,
        "optimizer": OPTIMIZER_S,
    }.items():
        assert measured(run, phase) == pytest.approx(truth_s * slower, rel=0.03, abs=3e-4), phase


FAULTS = {
    "straggler": "straggler_rank: 2, straggler_factor: 1.4",
    "jitter": "jitter: 0.25",
    "cold_start": "cold_steps: 8, cold_factor: 3.0",
    "drift": "drift_per_step: 0.01",
}


def named(run: Record) -> dict[str, Warning]:
    return {warning.code: warning for warning in run.warnings}


def test_every_injected_fault_is_named(train: Train) -> None:
    every = ",".join(f"{{{fault}}}" for fault in FAULTS.values())
    done = train("-m", *FAST, f"model.args.faults={every}")
    assert done.status == 0, done.err
    by_fault = dict(zip(FAULTS, done.records, strict=True))
    for code, run in by_fault.items():
        assert code in named(run), code
    slowed = by_fault["straggler"]
    assert named(slowed)["straggler"].ranks == [2]
    assert slowed.balance is not None
    assert slowed.balance.slowest_rank == 2
    assert slowed.balance.value == pytest.approx((3 + 1.4) / 4 / 1.4, rel=0.03)
    window = by_fault["drift"].window
    assert window is not None
    assert not window.steady


def test_slow_data_are_named(train: Train) -> None:
    done = train(*FAST, "dataset.delay_s=0.01")
    assert done.status == 0, done.err
    assert "input_bound" in named(done.record)


def test_nothing_is_named_in_twenty_clean_runs(train: Train) -> None:
    short = ("model.args.forward_s=0.004", "model.args.backward_s=0.006", "num_devices=2")
    done = train("-m", *FAST, *short, "repeat=20")
    assert len(done.records) == 20
    # What the plan and the machine add is no fault of the training.
    codes = [{warning.code for warning in run.warnings} for run in done.records]
    assert set().union(*codes) <= {"plan", "conditions"}


def test_the_waterfall_finds_the_factors_that_were_built_in(train: Train) -> None:
    """Passes take the same time whatever the batch, so half a batch is computed half as
    efficiently; the second rank takes 1.5 times as long; nothing else costs anything."""
    slow = ("model.args.forward_s=0.1", "model.args.backward_s=0.15")
    straggler = "model.args.faults={straggler_rank: 1, straggler_factor: 1.5}"
    done = train("-m", *CALIBRATED, *slow, straggler, "num_devices=1,2", "measure.ablation=true")
    assert done.status == 0, done.err
    found = find(runs_frame.load([done.folder / "outputs"]))
    (waterfall,) = found.waterfalls
    factors = {factor.name: factor.value for factor in waterfall.factors}
    assert factors == pytest.approx(
        {
            "input": 1.0,
            "granularity": 0.5,
            "contention": 1.0,
            "load balance": 1 / 1.5,
            "gradient synchronisation": 1.0,
            "remainder": 1.0,
        },
        rel=0.05,
    )
    assert math.prod(factors.values()) == pytest.approx(waterfall.efficiency)


def test_a_drift_makes_no_kind_of_block_slower_than_another(train: Train) -> None:
    """A step becomes longer by about half a percent each; in the fixed order of the three kinds,
    blocks of 10 to 20 steps would differ by several percent."""
    drift = "model.args.faults={drift_per_step: 0.01}"
    free = "model.args.gradient_mib=0"  # what synchronising costs is no drift
    run = train(*FAST, drift, free, "num_devices=2", "measure.ablation=true").record
    assert run.ablation is not None
    assert run.ablation.no_sync_s is not None
    means_s = {
        kind: np.mean([block.step_s[0] for block in run.ablation.blocks if block.kind == kind])
        for kind in KINDS
    }
    blocks_s = [float(np.mean(block.step_s[0])) for block in run.ablation.blocks]
    assert blocks_s[-1] > 1.1 * blocks_s[0], "there is a drift"
    assert means_s["no_sync"] / means_s["normal"] == pytest.approx(1, abs=0.03)
    assert means_s["alone"] / means_s["normal"] == pytest.approx(1, abs=0.03)


def test_all_ranks_stop_at_the_same_step_and_a_limit_keeps_what_was_measured(train: Train) -> None:
    done = train("-m", *FAST, "measure.rel_precision=0.5,0.001", "measure.time_limit_s=6")
    precise, limited = done.records
    for run in (precise, limited):
        assert run.status == "ok"
        assert len({len(rank.step_s) for rank in run.ranks}) == 1
    assert precise.window is not None
    assert precise.window.stopped_by == "precision"
    assert limited.window is not None
    assert limited.window.stopped_by in ("time_limit", "max_steps")
    assert limited.window.step_s.rel_half_width > 0.001
    text = named(limited)["imprecise"].text
    (known,) = re.findall(r"known to (?:± |\(-)([\d.]+)", text)
    low = 1 - limited.window.step_s.low / limited.window.step_s.mean
    assert float(known) == pytest.approx(100 * low, abs=0.11)
    assert "measure.rel_precision=0.001" in text


def test_windows_taken_apart_show_what_was_put_in(train: Train) -> None:
    """A straggler holds everybody up only while gradients are synchronised."""
    done = train(
        *FAST,
        "measure.ablation=true",
        "model.args.faults={straggler_rank: 0, straggler_factor: 1.5}",
    )
    ablation = done.record.ablation
    assert ablation is not None
    assert ablation.no_sync_s is not None
    assert ablation.normal_s == pytest.approx(0.075, rel=0.1)
    assert ablation.alone_s == pytest.approx(0.075, rel=0.1)  # rank 0 is the one that runs alone
    kinds = [block.kind for block in ablation.blocks]
    assert kinds == order(len(kinds) // 3)
    alone = next(block for block in ablation.blocks if block.kind == "alone")
    assert len(alone.step_s) == 1
    no_sync = [block.step_s for block in ablation.blocks if block.kind == "no_sync"]
    medians = [float(np.median(np.concatenate(blocks))) for blocks in zip(*no_sync, strict=True)]
    assert medians[0] == pytest.approx(0.075, rel=0.1)
    assert medians[1:] == pytest.approx([0.05] * 3, rel=0.1)
