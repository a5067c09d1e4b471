"""Every cause of a surprising speedup is found in a study constructed to have it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dpeval.analysis.csv_import import fields, rows
from dpeval.analysis.csv_import import runs as csv_runs
from dpeval.record.codes import WarningCode
from dpeval.record.conditions import Conditions
from dpeval.record.measurement import Balance
from dpeval.record.reference_times import PAGES, ReferenceTimes
from dpeval.record.schema import Cause, Record, Scheduler, Warning
from tests.records import ablation, findings, make_record, perfect, verdict_of

FAST = perfect(2, 32, 0.4)  # 2.5 times as fast as the 1 s of one device


def causes(runs: list[Record]) -> dict[str, tuple[str, ...]]:
    return {claim.kind: claim.causes for claim in findings(runs).claims}


def with_memory(run: Record) -> Record:
    budget = {"bytes": 2**30, "source": "test"}
    return Record.model_validate({**run.model_dump(), "memory": {"budget": budget}})


def with_threads(run: Record, threads: int) -> Record:
    ranks = [rank.model_copy(update={"threads": threads}) for rank in run.ranks]
    return run.model_copy(update={"ranks": ranks})


def in_micro_batches(run: Record, count: int) -> Record:
    assert run.plan is not None
    return run.model_copy(update={"plan": run.plan.model_copy(update={"micro_batches": count})})


def with_phase(run: Record, phase: str, share: float) -> Record:
    """The same run, of whose steps `share` goes to `phase`."""
    ranks = []
    for rank in run.ranks:
        spent = rank.stats[phase].model_copy(update={"mean_s": share * rank.stats["step"].mean_s})
        ranks.append(rank.model_copy(update={"stats": {**rank.stats, phase: spent}}))
    return run.model_copy(update={"ranks": ranks})


def with_fixed_work(run: Record, faults_per_step: float, work_s: float = 1.2e-3) -> Record:
    """The same run with page faults of 2 µs on every rank and a machine of a set speed.

    The counter of page faults holds those of the reference work, too.
    """
    count = len(run.ranks[0].step_s)
    work = ReferenceTimes(
        step=list(range(1, count)),
        product_s=[work_s - PAGES * 2e-6] * (count - 1),
        page_s=[2e-6] * (count - 1),
    )
    ranks = [rank.model_copy(update={"reference_times": work}) for rank in run.ranks]
    assert run.window is not None
    window = run.window
    done = len(work.within(window.first, window.first + window.steps).step)
    own_per_step = PAGES * done / window.steps
    rate = (faults_per_step + own_per_step) * len(ranks) / window.step_s.mean
    conditions = Conditions(samples=2, interval_s=1.0, minor_faults_per_s=rate)
    return run.model_copy(update={"ranks": ranks, "conditions": conditions})


def unsteady(run: Record) -> Record:
    assert run.window is not None
    drifting = {"steady": False, "steadiness": "drifting"}
    return run.model_copy(update={"window": run.window.model_copy(update=drifting)})


def warned(run: Record, code: WarningCode) -> Record:
    return run.model_copy(update={"warnings": [Warning(code=code, text=code)]})


def on_host(run: Record, host: str) -> Record:
    """A run that a scheduler sent to `host`."""
    environment = run.environment.model_copy(update={"host": host})
    job = Scheduler(kind="slurm", job_id="1")
    return run.model_copy(update={"environment": environment, "scheduler": job})


@pytest.mark.parametrize(
    ("base", "cause"),
    [
        ([perfect(1, repetition=r, step_s=s) for r, s in enumerate((*[0.8] * 9, 2.5))],
         "baseline_outlier"),
        ([warned(perfect(1), "cold_start")], "baseline_first_step"),
        ([unsteady(perfect(1))], "unsteady"),
        ([with_threads(perfect(1), 4)], "other_threads"),
        ([with_phase(perfect(1), "data", 0.4)], "baseline_input_bound"),
        ([with_memory(perfect(1))], "baseline_memory"),
        ([in_micro_batches(perfect(1), 4)], "baseline_accumulated"),
        ([make_record(1, 32, 1.0, noise=0.25)], "noisy"),
        ([warned(perfect(1), "jitter")], "noisy"),
    ],
)  # fmt: skip
def test_super_linear_speedup_is_explained(base: list[Record], cause: str) -> None:
    fast = perfect(2, 32, 0.3)
    assert cause in causes([*base, fast])["super-linear"]


def test_page_faults_of_the_baseline_are_told_as_a_claim_and_in_the_verdict() -> None:
    costly, cheap = with_fixed_work(perfect(1), 40_000.0), with_fixed_work(FAST, 900.0)
    found = findings([costly, cheap])
    (claim,) = found.claims
    assert claim.causes == ("baseline_page_faults",)
    assert "at least 8 % of its baseline's step, and 0 % of its own" in claim.sentence
    (told,) = [line for line in verdict_of(found) if "page faults" in line]
    assert "1 device at batch 32 loses at least 8 % of its step to 40,000 page faults" in told
    assert "hardware.keep_memory=true" in told
    assert "Part of any speedup over it comes from this" in told


def test_a_machine_that_was_slower_for_one_of_the_two_is_told() -> None:
    base, fast = with_fixed_work(perfect(1), 0.0, 1.3e-3), with_fixed_work(FAST, 0.0, 1.2e-3)
    assert causes([base, fast])["super-linear"] == ("slower_machine",)
    slow = with_fixed_work(SLOW, 0.0, 1.3e-3)
    assert (
        "slower_machine" in causes([with_fixed_work(perfect(6, 32, 0.3), 0.0, 1.2e-3), slow])["dip"]
    )


def test_a_faster_regime_is_told() -> None:
    fast = perfect(2, 32, 0.4, ablation=ablation(0.4, [0.4, 0.4], 0.4))
    assert "faster_regime" in causes([perfect(1), fast])["super-linear"]


def test_nodes_of_one_cluster_that_differ_are_told() -> None:
    runs = [on_host(perfect(1), "old"), on_host(FAST, "new")]
    assert "other_hardware" in causes(runs)["super-linear"]


def test_images_that_were_never_processed_are_told() -> None:
    run = perfect(7, 28, 0.2)
    assert run.plan is not None
    # 7 ranks of 4 images, called 32.
    called = run.plan.model_copy(update={"global_batch_size": 32})
    config = {**run.config, "batch": 32}
    changed = run.model_copy(update={"plan": called, "config": config})
    (claim,) = [one for one in findings([perfect(1), changed]).claims if one.kind == "images"]
    assert claim.causes == ("images_not_processed",)
    assert "28 of the 32 images" in claim.sentence


def test_super_linear_without_evidence_says_that_there_is_none() -> None:
    (claim,) = findings([perfect(1), FAST]).claims
    assert (claim.kind, claim.causes) == ("super-linear", ())
    assert "nothing in the records explains it" in claim.sentence


SLOW = perfect(7, 32, 0.35)
BEFORE = perfect(6, 32, 0.25)


def with_straggler(run: Record) -> Record:
    return run.model_copy(update={"balance": Balance(value=0.6, slowest_rank=3, compute_s=[])})


def oversubscribed(run: Record) -> Record:
    assert run.plan is not None
    notes = ["7 compute threads on 6 CPUs: oversubscribed"]
    return run.model_copy(update={"plan": run.plan.model_copy(update={"notes": notes})})


def on_two_nodes(run: Record) -> Record:
    return run.model_copy(update={"config": {**run.config, "num_nodes": 2}})


@pytest.mark.parametrize(
    ("slow", "cause"),
    [
        (SLOW, "uneven_shares"),
        (oversubscribed(SLOW), "oversubscribed"),
        (on_two_nodes(SLOW), "more_nodes"),
        (with_straggler(SLOW), "straggler"),
        (with_phase(SLOW, "comm_exposed", 0.5), "phase"),
        (perfect(7, 32, 0.35, ablation=ablation(0.35, [0.2] * 7, 0.15)), "factor"),
        (with_threads(SLOW, 2), "other_threads"),
        (unsteady(SLOW), "unsteady"),
        (make_record(7, 32, 0.35, noise=0.2), "noisy"),
    ],
)
def test_a_dip_is_explained(slow: Record, cause: str) -> None:
    assert cause in causes([perfect(1), BEFORE, slow])["dip"]


def test_linear_scaling_is_no_claim() -> None:
    assert causes([perfect(n, 32, 1 / n) for n in (1, 2, 4)]) == {}


def test_a_failed_run_explains_nothing() -> None:
    broken = make_record(2, 32, status="failed", cause=Cause(kind="exception", message="x"))
    assert causes([perfect(1), broken]) == {}


# --- the same of files that other programs wrote ------------------------------------------------

COLUMNS = "size=num_devices,rank=rank,batch_size=batch,load=data_s,work=compute_s"


def of_csv(folder: Path, lines: list[str]) -> list[Record]:
    path = folder / "study.csv"
    path.write_text("\n".join(["size,rank,batch_size,load,work", *lines]) + "\n")
    imported = csv_runs.read([path], rows.Layout(fields.parse(COLUMNS)))
    assert imported.problems == []
    return imported.records


def test_csv_baselines_of_one_cold_step_are_named(tmp_path: Path) -> None:
    runs = of_csv(tmp_path, ["1,0,64,0,3.12", "2,0,64,0,1.33", "2,1,64,0,1.33"])
    assert "baseline_first_step" in causes(runs)["super-linear"]
    (row,) = findings(runs[:1]).pooled.to_dict("records")
    assert math.isnan(row["low"]), "one step has no interval"


def test_csv_one_cold_run_in_ten_is_an_outlier_and_not_in_the_median(tmp_path: Path) -> None:
    baseline = [f"1,0,64,0,{time}" for time in (30.0, *[1.0] * 9)]
    ranks = [f"2,{rank},64,0,0.45" for _ in range(10) for rank in (0, 1)]
    found = findings(of_csv(tmp_path, [*baseline, *ranks]))
    (claim,) = [one for one in found.claims if one.kind == "super-linear"]
    assert "baseline_outlier" in claim.causes
    assert found.points["efficiency"].to_list() == pytest.approx([1.0, 1 / 0.9])


def test_csv_baselines_that_wait_for_data_are_named(tmp_path: Path) -> None:
    runs = of_csv(tmp_path, ["1,0,64,2.0,1.0", "2,0,64,0.1,0.6", "2,1,64,0.1,0.6"])
    assert "baseline_input_bound" in causes(runs)["super-linear"]


def test_csv_images_that_were_dropped_are_named(tmp_path: Path) -> None:
    runs = of_csv(tmp_path, ["1,0,32,0,1.0", *(f"7,{rank},32,0,0.2" for rank in range(7))])
    assert "images_not_processed" in causes(runs)["images"]


def test_csv_dips_of_one_slow_rank_are_named(tmp_path: Path) -> None:
    lines = ["1,0,32,0,1.0", *(f"4,{rank},32,0,0.25" for rank in range(4))]
    lines += [f"8,{rank},32,0,{0.5 if rank == 5 else 0.12}" for rank in range(8)]
    assert "straggler" in causes(of_csv(tmp_path, lines))["dip"]
