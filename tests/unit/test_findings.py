"""What the analysis computes: factors of efficiency, laws, claims, choices, comparisons."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpeval import record
from dpeval.analysis.csv_import import fields, rows, settle
from dpeval.analysis.csv_import import runs as csv_runs
from dpeval.analysis.frame import runs_frame
from dpeval.analysis.pooling import repetitions
from dpeval.analysis.scaling import (
    efficiency,
    scaling_laws,
    speedup,
)
from dpeval.analysis.scaling.best_configuration import ENERGY, OBJECTIVES, THROUGHPUT, choose
from dpeval.analysis.scaling.findings import Findings, find
from dpeval.analyze import main
from dpeval.errors import ConfigError
from dpeval.record.schema import Cause, Record
from tests.records import ablation, findings, make_record, perfect, verdict_of


def factors(found: Findings) -> dict[str, float]:
    (waterfall,) = found.waterfalls
    assert math.prod(f.value for f in waterfall.factors) == pytest.approx(waterfall.efficiency)
    return {factor.name: factor.value for factor in waterfall.factors}


def test_known_factors_are_found_and_multiply_to_the_efficiency() -> None:
    # 1 device: 1 s for 32 images. Alone at 16: 0.6 s; beside another 0.75; with all-reduce 0.8.
    many = perfect(2, 32, 0.8, ablation=ablation(0.8, [0.75, 0.75], 0.6))
    found = factors(findings([perfect(1), many]))
    assert found == pytest.approx(
        {
            "input": 1.0,
            "granularity": (16 / 0.6) / 32,
            "contention": 0.6 / 0.75,
            "load balance": 1.0,
            "gradient synchronisation": 0.75 / 0.8,
            "remainder": 1.0,
        },
        rel=1e-6,
    )


@pytest.mark.parametrize(("normal_s", "is_doubted"), [(0.8, False), (0.86, False), (1.0, True)])
def test_windows_unlike_the_main_one_are_told(normal_s: float, is_doubted: bool) -> None:
    many = perfect(2, 32, 0.8, ablation=ablation(normal_s, [0.75, 0.75], 0.6))
    said = " ".join(verdict_of(findings([perfect(1), many])))
    assert "gradient synchronisation" in said
    assert ("took 1.25 times as long per step as the main window" in said) is is_doubted
    assert ("trust no factor beyond that" in said) is is_doubted


def test_a_straggler_is_load_balance_and_not_contention() -> None:
    many = perfect(2, 32, 0.75, ablation=ablation(0.75, [0.5, 0.75], 0.5))
    found = factors(findings([perfect(1), many]))
    assert found["load balance"] == pytest.approx(2 / 3)
    assert found["contention"] == pytest.approx(1.0)


def test_uneven_shares_are_load_balance() -> None:
    # 16 over 3 is 6+5+5; a device takes 1/16 s per image whatever its batch.
    share_s = [6 / 16, 5 / 16, 5 / 16]
    many = perfect(3, 16, 6 / 16, ablation=ablation(6 / 16, share_s, 6 / 16))
    found = factors(findings([perfect(1, 16), many]))
    assert found["load balance"] == pytest.approx(16 / 18)
    assert [found["granularity"], found["contention"]] == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("scaling_kind", ["strong", "weak"])
def test_a_perfect_machine_has_efficiency_one_and_every_factor_one(scaling_kind: str) -> None:
    step_s = 0.5 if scaling_kind == "strong" else 1.0
    many = perfect(
        2, 32, step_s, scaling=scaling_kind, ablation=ablation(step_s, [step_s] * 2, step_s)
    )
    found = findings([perfect(1, scaling=scaling_kind), many])
    assert found.points["efficiency"].to_list() == pytest.approx([1.0, 1.0])
    assert list(factors(found).values()) == pytest.approx([1.0] * 6)


def test_without_windows_factors_are_merged_and_say_so() -> None:
    found = findings([perfect(1), perfect(2, 32, 0.8)])
    (waterfall,) = found.waterfalls
    merged = next(factor for factor in waterfall.factors if len(factor.parts) > 1)
    assert {"granularity", "contention"} <= set(merged.parts)
    assert "no ablation windows" in merged.note
    factors(found)


def without_phases(run: Record, *phases: str) -> Record:
    """`run` as if these phases of its ranks had not been measured."""
    ranks = [
        rank.model_copy(update={"stats": {k: v for k, v in rank.stats.items() if k not in phases}})
        for rank in run.ranks
    ]
    return run.model_copy(update={"ranks": ranks})


def test_gradient_copies_cost_more_devices_only_what_one_device_does_not_pay() -> None:
    one, many = perfect(1), perfect(2, 32, 0.8)
    # See tests.records.SHARES. Of a step without waits for data, which are the input factor:
    with_copies = 1 - (0.08 + 0.02) / 0.99
    assert synchronisation(one, many) == pytest.approx(with_copies / (1 - 0.02 / 0.99))
    assert synchronisation(without_phases(one, "grad_copy"), many) == pytest.approx(with_copies)


def test_a_record_without_timed_copies_says_unknown_and_not_none() -> None:
    one, many = (without_phases(run, "grad_copy") for run in (perfect(1), perfect(2, 32, 0.8)))
    found = findings([one, many])
    assert found.points["grad_copy_s"].isna().all()
    assert synchronisation(one, many) == pytest.approx(1 - 0.08 / 0.99)


def synchronisation(one: Record, many: Record) -> float:
    """The factor of gradient synchronisation, from phases alone."""
    (waterfall,) = findings([one, many]).waterfalls
    return next(f.value for f in waterfall.factors if f.parts == ("gradient synchronisation",))


def test_untimed_communication_is_no_factor_of_one() -> None:
    many = without_phases(perfect(2, 32, 0.8), "comm_exposed", "grad_copy")
    many = many.model_copy(update={"balance": None})
    found = findings([perfect(1), many])
    assert math.isnan(found.points["comm_exposed_s"].iloc[1])
    (waterfall,) = found.waterfalls
    (merged,) = (f for f in waterfall.factors if "gradient synchronisation" in f.parts)
    assert len(merged.parts) > 1
    assert "exposed communication not measured" in merged.note
    factors(found)


@settings(max_examples=12, deadline=None)
@given(
    one=st.floats(1e-3, 1e3),
    ratios=st.lists(st.floats(0.2, 1.5), min_size=5, max_size=5),
    devices=st.integers(2, 6),
)
def test_the_product_is_exact_whatever_was_measured(
    one: float, ratios: list[float], devices: int
) -> None:
    alone, first, slowest, normal, step = one * np.cumprod(ratios)
    no_sync = [first, *[max(first, slowest)] * (devices - 1)]
    many = perfect(devices, 32, step, ablation=ablation(normal, no_sync, alone))
    factors(findings([perfect(1, 32, one), many]))


def test_order_of_records_changes_nothing() -> None:
    runs = [make_record(n, 32, 1 / n**0.8, repetition=r, seed=r) for n in (1, 2, 4) for r in (0, 1)]
    straight = findings(runs).summary
    random.Random(1).shuffle(runs)
    mixed = findings(runs).summary
    numbers = ["num_devices", "img_per_s", "low", "high", "efficiency"]
    assert straight[numbers].to_numpy() == pytest.approx(mixed[numbers].to_numpy())


def test_order_of_ranks_in_a_record_changes_nothing() -> None:
    run = make_record(3, 16, 0.5, ablation=ablation(0.5, [0.4, 0.45, 0.5], 0.4))
    turned = run.model_copy(update={"ranks": run.ranks[::-1]})
    one, other = (runs_frame.row(record, Path()) for record in (run, turned))
    assert one == other


LAWS = {
    "Amdahl": (scaling_laws.AMDAHL, (0.08,), (1, 2, 3, 4, 6, 8)),
    "Gustafson": (scaling_laws.GUSTAFSON, (0.1,), (1, 2, 4, 8, 16)),
    "USL": (scaling_laws.USL, (0.05, 0.004), (1, 2, 3, 4, 6, 8, 12, 16)),
}


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("errors_known", [True, False])
def test_fits_recover_known_parameters_with_honest_intervals(name: str, errors_known: bool) -> None:
    law, truth, counts = LAWS[name]
    generator, devices, runs = np.random.default_rng(7), np.array(counts, dtype=float), 400
    rate = 50 * law.speedup(devices, devices, truth)
    errors = np.full(len(devices), 0.01) if errors_known else None
    hits, centres = [], []
    for _ in range(runs):
        noisy = rate * np.exp(0.01 * generator.standard_normal(len(devices)))
        fitted = list(scaling_laws.fit(law, devices, noisy, errors).parameters.values())
        hits.append([e.low <= true <= e.high for e, true in zip(fitted, truth, strict=True)])
        centres.append([estimate.value for estimate in fitted])
    assert np.mean(centres, axis=0) == pytest.approx(truth, rel=0.05)
    # 400 draws of a 95 % event: 92.5 to 97.5 % holds 97.8 % of all such series.
    assert np.all(np.abs(np.mean(hits, axis=0) - 0.95) <= 0.025)


def test_two_points_are_too_few_for_any_law() -> None:
    (curve,) = findings([perfect(1), perfect(2, 32, 0.6)]).curves
    assert curve.fits == []
    assert curve.best is None
    assert "too few to fit any law" in curve.verdict


def test_the_law_that_made_the_data_is_chosen_and_a_zigzag_supports_none() -> None:
    counts = (1, 2, 3, 4, 6, 8)
    amdahl = [perfect(n, 48, 0.2 + 0.8 / n) for n in counts]
    assert findings(amdahl).curves[0].best == "Amdahl"
    zigzag = [perfect(n, 48, (1.0, 1.6)[n % 2] / n) for n in counts]
    assert findings(zigzag).curves[0].best is None


def test_karp_flatt_is_amdahls_serial_fraction() -> None:
    points = findings([perfect(n, 48, 0.2 + 0.8 / n) for n in (1, 2, 4)]).points
    assert points["serial_fraction"].to_list()[1:] == pytest.approx([0.2, 0.2])


def test_ties_within_the_error_are_called_ties() -> None:
    runs = [make_record(n, 48, s, noise=0.05) for n, s in ((1, 1.0), (2, 0.5), (3, 0.497))]
    best = next(one for one in findings(runs).choices if one.objective is THROUGHPUT)
    assert best.best is not None
    assert {best.best.num_devices, *(tie.num_devices for tie in best.ties)} == {2, 3}


@pytest.mark.parametrize(
    ("objective", "floor", "devices"),
    [("throughput", None, 4), ("device_seconds", None, 1), ("efficient", 0.8, 2)],
)
def test_the_best_depends_on_the_objective(
    objective: str, floor: float | None, devices: int
) -> None:
    runs = [perfect(1, 32, 1.0), perfect(2, 32, 0.55), perfect(4, 32, 0.5)]
    chosen = choose(findings(runs).points, OBJECTIVES[objective], floor)[0]
    assert chosen.best is not None
    assert chosen.best.num_devices == devices


def test_no_energy_is_said_and_not_guessed() -> None:
    (chosen,) = choose(findings([perfect(1)]).points, ENERGY)
    assert chosen.best is None
    assert "no energy" in chosen.why_not


def test_a_missing_configuration_is_shown_where_its_neighbours_exist() -> None:
    runs = [perfect(n, b) for n in (1, 2, 3) for b in (32, 64) if (n, b) != (2, 64)]
    holes = findings(runs).pooled
    (hole,) = holes[holes["status"] == "missing"].to_dict("records")
    assert (hole["num_devices"], hole["batch"]) == (2, 64)
    assert math.isnan(hole["img_per_s"])


def test_a_skipped_run_joins_the_series_that_was_measured_elsewhere() -> None:
    skipped = make_record(8, 32, status="skipped", cause=Cause(kind="memory", message="no"))
    login = skipped.environment.model_copy(update={"host": "login"})
    runs = [perfect(1), skipped.model_copy(update={"environment": login, "dataset": None})]
    assert findings(runs).loaded.runs["series"].nunique() == 1


def test_two_commits_are_two_series_and_the_difference_is_listed() -> None:
    one = perfect(1)
    other = one.environment.model_copy(update={"git_commit": "abcdef"})
    loaded = findings([one, one.model_copy(update={"environment": other})]).loaded
    assert loaded.runs["series"].nunique() == 2
    assert all(set(fields) == {"commit"} for fields in loaded.differences.values())


def written(folder: Path, runs: list[Record]) -> str:
    for number, run in enumerate(runs):
        record.write(run, folder / str(number) / "metrics.json")
    return str(folder)


COLUMNS = "size=num_devices,rank=rank,batch_size=batch,load=data_s,work=compute_s"


def csv_study(folder: Path, lines: list[str]) -> list[Path]:
    path = folder / "study.csv"
    path.write_text("\n".join(["size,rank,batch_size,load,work", *lines]) + "\n")
    return [path]


@pytest.mark.parametrize(("share", "images"), [("floor", 28), ("even", 32), ("nominal", 224)])
def test_csv_throughput_counts_images_that_were_processed(
    tmp_path: Path, share: settle.Share, images: int
) -> None:
    lines = [f"7,{rank},32,0.1,{1.9 if rank == 3 else 0.9}" for rank in range(7)]
    imported = csv_runs.read(csv_study(tmp_path, lines), rows.Layout(fields.parse(COLUMNS), share))
    (run,) = imported.records
    assert imported.problems == []
    assert run.throughput is not None
    assert run.throughput.img_per_s == pytest.approx(images / 2.0)
    assert run.throughput.slowest_rank == 3
    assert any("warm-up" in lack for lack in run.missing)


def test_csv_repeats_give_a_median(tmp_path: Path) -> None:
    lines = [f"1,0,10,0,{time}" for time in (9.0, 1.0, 1.1, 1.0, 1.1, 1.0, 1.1)]
    records = csv_runs.read(csv_study(tmp_path, lines), rows.Layout(fields.parse(COLUMNS))).records
    (row,) = findings(records).pooled.to_dict("records")
    assert row["n_runs"] == 7
    assert row["img_per_s"] == pytest.approx(10 / 1.1)
    assert row["low"] < row["img_per_s"] <= row["high"]


@pytest.mark.parametrize(
    "columns", ["size", "size=devices", "size=num_devices", "a=num_devices,b=batch"]
)
def test_wrong_columns_are_one_clear_line(columns: str) -> None:
    with pytest.raises(ConfigError, match="columns"):
        fields.parse(columns)


def test_an_unchanged_record_is_not_parsed_twice(tmp_path: Path) -> None:
    runs = [make_record(n, repetition=r) for n in (1, 2) for r in (0, 1)]
    folder, cached = Path(written(tmp_path / "r", runs)), tmp_path / "cache.parquet"
    (folder / "bad").mkdir()
    (folder / "bad" / "metrics.json").write_text("{")
    first, second = (runs_frame.load([folder], cached) for _ in range(2))
    assert (first.from_cache, second.from_cache) == (0, 5)
    assert second.problems == first.problems
    assert second.runs.equals(first.runs)
    record.write(make_record(1, 64), folder / "0" / "metrics.json")
    assert runs_frame.load([folder], cached).from_cache == 4
    cached.write_bytes(b"not parquet")
    assert runs_frame.load([folder], cached).from_cache == 0


MEASURED = make_record(2, steps=6).model_dump_json()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_hostile_values_anywhere_end_in_a_row_or_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = json.loads(MEASURED)
    place: Any = content
    while isinstance(place, dict | list) and place:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or data.draw(st.integers(0, 4)) == 0:
            place[key] = data.draw(JSON)
            break
        place = place[key]
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "metrics.json").write_text(json.dumps(content))
    loaded = runs_frame.load([folder])
    assert len(loaded.runs) + len(loaded.problems) == 1
    assert all("\n" not in line and len(line) < 500 for line in loaded.problems)
    if len(loaded.runs):
        find(loaded)


def test_text_of_records_cannot_steer_a_terminal_or_fill_a_table() -> None:
    run = perfect(1, study="\x1b[31m<script>\u202e" + "x" * 10_000_000)
    (row,) = findings([run]).loaded.runs.to_dict("records")
    assert "\x1b" not in row["study"]
    assert "\u202e" not in row["study"]
    assert len(row["study"]) <= 400


def test_a_record_that_contradicts_itself_is_left_out() -> None:
    run = perfect(1)
    assert run.throughput is not None
    faster = run.throughput.model_copy(update={"img_per_s": 1e6})
    loaded = findings([perfect(2), run.model_copy(update={"throughput": faster})]).loaded
    assert len(loaded.runs) == 1
    assert "contradicts itself" in loaded.problems[0]


def test_steps_are_a_long_frame(tmp_path: Path) -> None:
    run = make_record(2, steps=10)
    steps = runs_frame.load([Path(written(tmp_path, [run]))]).steps()
    whole = steps[steps["phase"] == "step"]
    assert run.window is not None
    assert len(whole) == sum(len(rank.step_s) for rank in run.ranks)
    assert whole["measured"].sum() == 2 * run.window.steps


def test_a_summary_is_valid_json_without_nan(tmp_path: Path) -> None:
    folder = written(tmp_path / "r", [perfect(1), perfect(2, 32, 0.6)])
    assert main([folder, "--tables-only"]) == 0

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    text = (tmp_path / "r" / "analysis" / "summary.json").read_text()
    made = json.loads(text, parse_constant=refuse)
    assert made["configurations"][1]["efficiency"] == pytest.approx(1 / 1.2)
    assert made["verdict"]


def test_pooling_and_points_of_nothing_are_empty() -> None:
    runs = findings([make_record(1, status="failed", cause=Cause(kind="exit", message="y"))])
    assert runs.points.empty
    assert efficiency.table(runs.waterfalls).empty
    assert speedup.points(repetitions.pool(runs.loaded.runs)).empty
