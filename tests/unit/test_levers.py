"""Every lever on records that call for it, and on records that do not."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

import numpy as np
import pytest

from dpeval.analysis.advice.advise import Advice, advise
from dpeval.analysis.advice.levers.lever import Lever
from dpeval.record.phases import PHASES
from dpeval.record.schema import Cause, PhaseStats, RankRecord, Record
from tests.records import SHARES, ablation, findings, make_record
from tests.unit.test_paired import sat_together

STRATEGY = {
    "name": "ddp", "bucket_cap_mb": 25.0, "gradient_as_bucket_view": False, "static_graph": False,
    "find_unused_parameters": False,
}  # fmt: skip


def run(
    devices: int = 2,
    batch: int = 32,
    step_s: float = 0.6,
    *,
    shares: dict[str, float] | None = None,
    config: dict[str, Any] | None = None,
    **changes: Any,
) -> Record:
    """A run of nearly constant steps whose phases take these shares of it, the rest of forward."""
    command = f"python -m dpeval.train measure=quick num_devices={devices} batch={batch}"
    made = make_record(devices, batch, step_s, noise=0.003, command=command, **changes)
    asked = {**made.config, "strategy": STRATEGY}
    for key, value in (config or {}).items():
        group, _, name = key.partition(".")
        asked[group] = {**asked[group], name: value} if name else value
    return made.model_copy(
        update={"config": asked, "ranks": [_shared(rank, shares or {}) for rank in made.ranks]}
    )


def _shared(rank: RankRecord, changed: dict[str, float]) -> RankRecord:
    quiet = {"data": 0.0, "comm_exposed": 0.0, "grad_copy": 0.0, "other": 0.0, "h2d": 0.0}
    shares = {**SHARES, **quiet, **changed}
    shares["forward"] = 1 - sum(value for name, value in shares.items() if name != "forward")
    series = np.array(rank.step_s)
    step = rank.stats["step"]
    stats = {
        name: PhaseStats(**{key: value * shares[name] for key, value in step.model_dump().items()})
        for name in PHASES
    }
    return rank.model_copy(
        update={
            "phase_s": {name: list(series * shares[name]) for name in PHASES},
            "stats": {**stats, "step": step},
            "comm_s": list(series * (shares["comm_exposed"] + 0.02)),
            "comm_hidden_s": [0.02 * one for one in series],
        }
    )


def advised(*runs: Record) -> Advice:
    return advise(findings(runs))[0]


def lever(kind: str, *runs: Record) -> Lever | None:
    return next((one for one in advised(*runs).levers if one.kind == kind), None)


def proposed(kind: str, *runs: Record) -> Lever:
    """The lever, whose interval must hold its value and whose command must be one."""
    found = lever(kind, *runs)
    assert found is not None
    assert found.gain.low <= found.gain.value <= found.gain.high
    words = shlex.split(found.command)
    assert words[:4] == ["python", "-m", "dpeval.train", "-m"]
    assert len({word.partition("=")[0] for word in words[4:]}) == len(words[4:])
    return found


def test_calm_records_call_for_no_lever() -> None:
    assert advised(run(2, 32, 0.5), run(1, 32, 1.0)).levers == []


def test_a_loader_that_delays_the_step_is_to_be_replaced() -> None:
    waits = {"data": 0.3}
    slow = run(shares=waits, config={"dataset.loader": "jpeg"})
    found = proposed("loader", slow)
    # Without any wait the step would be 30 % shorter.
    assert found.gain.high == pytest.approx(0.3 / 0.7, rel=0.05)
    assert found.gain.low > 0.1
    assert "dataset.loader=jpeg,cached" in found.command
    assert lever("loader", run(shares=waits)) is None  # cached, on CPUs: there is nothing faster
    gpu = proposed("loader", run(shares=waits, hardware="gpu"))
    assert "dataset.loader=cached,resident" in gpu.command


def test_page_faults_call_for_memory_that_is_kept() -> None:
    def faulting(share: float, keep: bool = False) -> list[Lever]:
        found = findings([run(1, step_s=1.0, config={"hardware.keep_memory": keep})])
        points = found.points.assign(page_fault_share=share)
        return advise(dataclasses.replace(found, points=points))[0].levers

    (found,) = faulting(0.1)
    assert found.kind == "keep_memory"
    assert found.gain.low < 0.1 / 0.9 < found.gain.value < found.gain.high
    assert "hardware.keep_memory=false,true" in found.command
    assert faulting(0.005) == faulting(float("nan")) == faulting(0.1, keep=True) == []


def test_copies_of_gradients_are_to_be_saved() -> None:
    copies = {"grad_copy": 0.06}
    found = proposed("gradient_views", run(shares=copies))
    assert found.gain.value == pytest.approx(0.06 / 0.94, rel=0.02)
    assert "strategy.gradient_as_bucket_view=false,true" in found.command
    views = run(shares=copies, config={"strategy.gradient_as_bucket_view": True})
    assert lever("gradient_views", views) is None
    assert lever("gradient_views", run(1, shares=copies)) is None


def test_exposed_communication_that_backward_could_hide_calls_for_smaller_buckets() -> None:
    found = proposed("bucket_size", run(shares={"comm_exposed": 0.2}))
    assert (found.gain.low, found.gain.high) == pytest.approx((0.0, 0.25), abs=0.01)
    assert "strategy.bucket_cap_mb=25,10,5" in found.command
    assert lever("bucket_size", run(shares={"comm_exposed": 0.005})) is None


def test_a_search_for_unused_parameters_calls_for_a_static_graph() -> None:
    # Synchronisation takes 20 % of a step, and no phase shows it.
    windows = ablation(0.6, [0.48, 0.48], 0.48)
    search = {"strategy.find_unused_parameters": True}
    one = run(1, step_s=1.0, config=search)
    found = proposed("static_graph", one, run(config=search, ablation=windows))
    assert found.gain.low == 0
    assert found.gain.high > 0.15
    assert lever("static_graph", run(1, step_s=1.0), run(ablation=windows)) is None


def test_fixed_costs_of_a_step_call_for_a_larger_batch() -> None:
    # t = 0.1 s + 10 ms for each image: twice the batch 32 is 0.84 / 0.74 / ... as fast.
    runs = [run(2, b, 0.1 + 0.01 * b) for b in (8, 16, 32)]
    found = proposed("batch", *runs)
    truth = 2 * 0.42 / 0.74 - 1
    assert found.gain.low < truth < found.gain.high
    assert "batch=32,64" in found.command
    assert "learning rate" in found.caution
    proportional = [run(2, b, 0.01 * b) for b in (8, 16, 32)]
    assert lever("batch", *proportional) is None
    full = make_record(2, 64, status="oom", cause=Cause(kind="memory", message="full"))
    full = full.model_copy(update={"config": {**runs[0].config, "batch": 64}})
    assert lever("batch", *runs, full) is None


def test_a_batch_that_does_not_fit_calls_for_accumulation_where_synchronising_costs() -> None:
    windows = ablation(0.6, [0.48, 0.48], 0.48, noise=0.001)
    one, two = run(1, step_s=1.0), run(ablation=windows)
    full = make_record(2, 64, status="oom", cause=Cause(kind="memory", message="full"))
    full = full.model_copy(update={"config": {**two.config, "batch": 64}})
    found = proposed("accumulation", one, two, full)
    assert found.gain.high == pytest.approx(0.25, abs=0.03)
    assert "memory.on_excess=accumulate" in found.command
    assert lever("accumulation", one, two) is None


def test_faster_arithmetic_needs_a_device_that_has_it_and_steps_that_compute() -> None:
    def with_features(*names: str) -> Record:
        made = run()
        environment = made.environment.model_copy(update={"cpu_features": list(names)})
        return made.model_copy(update={"environment": environment})

    found = proposed("precision", with_features("avx2", "amx_bf16"))
    assert "precision=fp32,bf16" in found.command
    assert lever("precision", with_features("avx2")) is None
    # A GPU whose steps take as long at every batch is bound by the host: no arithmetic helps.
    slow = [run(1, b, 0.01 * b, hardware="gpu") for b in (16, 32)]
    bound = [run(1, b, 0.1 + 0.0001 * b, hardware="gpu") for b in (16, 32)]
    assert "precision=fp32,tf32" in proposed("precision", *slow).command
    assert lever("precision", *bound) is None


def test_contiguous_tensors_are_changed_where_the_hardware_prefers_channels_last() -> None:
    contiguous = {"memory_format": "contiguous"}
    found = proposed("memory_format", run(config=contiguous))
    assert "memory_format=contiguous,channels_last" in found.command
    assert lever("memory_format", run(config=contiguous, hardware="gpu")) is None
    assert lever("memory_format", run()) is None


def test_ranks_that_synchronise_much_may_be_threads() -> None:
    windows = ablation(0.6, [0.48, 0.48], 0.48, noise=0.001)
    found = proposed("threads", run(1, step_s=1.0), run(ablation=windows))
    assert "num_devices=1,2" in found.command
    assert "hardware.cores_per_device=1,2" in found.command
    assert found.gain.low < 0


def test_fewer_devices_are_proposed_for_the_device_hours_that_they_save() -> None:
    found = proposed("fewer_devices", run(1, step_s=1.0), run(2, step_s=0.8))
    assert found.of == "device-hours"
    assert found.gain.value == pytest.approx(1 - 0.5 * 1.25, abs=0.02)
    assert found.gain.low > 0
    assert lever("fewer_devices", run(1, step_s=1.0), run(2, step_s=0.5)) is None


def test_the_levers_are_ranked_by_their_gain() -> None:
    shares = {"data": 0.3, "grad_copy": 0.05, "comm_exposed": 0.1}
    found = advised(run(shares=shares, config={"dataset.loader": "jpeg"})).levers
    gains = [one.gain.value for one in found]
    assert len(found) >= 3
    assert gains == sorted(gains, reverse=True)
    assert found[0].kind == "loader"


def kept(step_s: float, keep: bool) -> Record:
    return run(step_s=step_s, config={"hardware.keep_memory": keep})


def test_what_was_tried_and_helped_is_proposed_with_its_measured_gain() -> None:
    # One more configuration makes the series without the change the first.
    found = advised(run(1, step_s=1.2, config={"hardware.keep_memory": False}),
                    kept(0.6, False), kept(0.5, True))  # fmt: skip
    (tried,) = found.tried
    assert tried.sentence.startswith("hardware.keep_memory=true instead of false brought 20 % (")
    (measured,) = [one for one in found.levers if one.is_measured and one.of == "throughput"]
    assert measured.gain.low < 0.2 < measured.gain.high
    assert "hardware.keep_memory=false,true" in measured.command


def test_what_was_tried_and_did_not_help_is_said_and_not_proposed() -> None:
    copies = {"grad_copy": 0.06}
    views = {"strategy.gradient_as_bucket_view": True}
    found = advised(run(1, step_s=1.2), run(shares=copies), run(shares=copies, config=views))
    (tried,) = found.tried
    assert "made no difference that can be told" in tried.sentence
    assert all(one.kind != "gradient_views" for one in found.levers)


def in_one_sitting(step_s: dict[int, float], keep: bool) -> list[Record]:
    """Runs in the same sitting for both values of `keep`, on a machine that wanders by 20 %."""
    made = sat_together(step_s, own_seed=keep)
    return [
        one.model_copy(
            update={
                "config": {
                    **one.config,
                    "hardware": {**one.config["hardware"], "keep_memory": keep},
                }
            }
        )
        for one in made
    ]


def test_what_took_turns_is_compared_by_its_rounds() -> None:
    """Each run alone is known to ± 20 %."""
    found = advised(*in_one_sitting({2: 0.6}, False), *in_one_sitting({2: 0.5}, True))
    (tried,) = found.tried
    assert tried.gain.value == pytest.approx(0.2, abs=0.02)
    assert tried.gain.high - tried.gain.low < 0.1, "not the 0.5 of independent runs"
    devices = proposed("fewer_devices", *in_one_sitting({1: 1.0, 2: 0.8}, False))
    assert devices.gain.value == pytest.approx(1 - 0.5 * 1.25, abs=0.02)
    assert devices.gain.high - devices.gain.low < 0.05


def test_series_that_differ_in_more_than_a_lever_are_no_trial() -> None:
    other = run(step_s=0.5, config={"hardware.keep_memory": True, "dataset.image_px": 128})
    assert advised(run(1, step_s=1.2), kept(0.6, False), other).tried == []


def test_a_script_is_not_told_to_change_what_it_decides_itself() -> None:
    waits = {"data": 0.3}
    task = {"kind": "script", "script": "train.py"}
    mine = run(shares=waits, config={"dataset.loader": "jpeg", "task": task})
    assert lever("loader", mine) is None
