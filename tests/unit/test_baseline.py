"""What speedup is relative to: serial execution where it was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from rich.console import Console

from dpeval.analysis import api, figures
from dpeval.analysis.figures.scaling import speedup
from dpeval.analysis.frame import runs_frame
from dpeval.analysis.report import terminal
from dpeval.analysis.scaling.findings import Findings
from dpeval.commands import hydra_app
from dpeval.config import Config, identity
from dpeval.launchers.base import compose_job, with_baselines
from dpeval.launchers.compose import Composer
from dpeval.record.schema import Cause, Record
from dpeval.util.paths import conf_dir
from tests.records import ablation, findings, make_record, perfect, verdict_of

DDP = {"name": "ddp", "_target_": "dpeval.components.ddp", "bucket_cap_mb": 25.0}
SERIAL = {"name": "none", "_target_": "dpeval.components.single_device", "bucket_cap_mb": 25.0}


def trained(run: Record, strategy: dict[str, Any]) -> Record:
    return run.model_copy(update={"config": {**run.config, "strategy": strategy}})


def ddp(devices: int, step_s: float, batch: int = 32, **keys: Any) -> Record:
    return trained(perfect(devices, batch, step_s), {**DDP, **keys})


def serial(step_s: float, batch: int = 32) -> Record:
    return trained(perfect(1, batch, step_s), SERIAL)


def speedups(found: Findings, series: str | None = None) -> dict[int, float]:
    points = found.points
    if series is not None:
        points = points[points["series"] == series]
    return dict(zip(points["num_devices"], points["speedup"].round(6), strict=True))


def test_speedup_is_relative_to_serial_execution_where_it_was_measured() -> None:
    # DDP on one device takes 2 % more than no wrapper.
    without = findings([ddp(1, 1.02), ddp(2, 0.6)])
    assert speedups(without) == {1: 1.0, 2: 1.7}
    assert set(without.points["baseline"]) == {"ddp"}
    found = findings([serial(1.0), ddp(2, 0.6)])
    assert speedups(found) == {1: 1.0, 2: round(1 / 0.6, 6)}
    assert set(found.points["baseline"]) == {"none"}
    assert found.loaded.runs["series"].nunique() == 1


def test_a_strategy_on_one_device_is_no_repetition_of_serial_execution() -> None:
    found = findings([serial(1.0), ddp(1, 1.02), ddp(2, 0.6)])
    (curve, apart) = found.points["series"].unique()
    assert apart == f"{curve}, ddp on one device"
    assert speedups(found, curve) == {1: 1.0, 2: round(1 / 0.6, 6)}
    assert found.points["n_runs"].to_list() == [1, 1, 1]


def test_several_strategies_share_one_serial_baseline() -> None:
    runs = [serial(1.0), *(ddp(2, 0.5 + cap / 100, bucket_cap_mb=cap) for cap in (1.0, 25.0))]
    found = findings(runs)
    assert found.points["series"].nunique() == 2
    for _, curve in found.points.groupby("series"):
        assert curve["num_devices"].to_list() == [1, 2]
        assert set(curve["baseline"]) == {"none"}
    assert sorted(found.points["speedup"].round(6)) == [
        1,
        1,
        round(1 / 0.75, 6),
        round(1 / 0.51, 6),
    ]
    # One run stays one run where runs are listed.
    assert len(runs_frame.of_records((run, Path(str(i))) for i, run in enumerate(runs)).runs) == 3


def test_series_differ_in_their_strategies_and_not_in_the_baseline_of_one() -> None:
    runs = [serial(1.0), *(ddp(2, 0.6, bucket_cap_mb=cap) for cap in (1.0, 25.0))]
    differences = findings(runs).loaded.differences
    assert [set(fields) for fields in differences.values()] == [{"strategy.bucket_cap_mb"}] * 2
    assert {fields["strategy.bucket_cap_mb"] for fields in differences.values()} == {"1.0", "25.0"}


@pytest.mark.parametrize("key", ["precision", "batch", "data", "machine"])
def test_a_serial_run_of_another_kind_is_nobodys_baseline(key: str) -> None:
    other = serial(1.0)
    if key == "batch":
        other = serial(1.0, 64)
    elif key == "precision":
        other = other.model_copy(update={"config": {**other.config, "precision": "bf16"}})
    elif key == "data":
        assert other.dataset is not None
        used = other.dataset.model_copy(update={"used": "imagenette_like"})
        other = other.model_copy(update={"dataset": used})
    else:
        machine = other.environment.model_copy(update={"host": "elsewhere"})
        other = other.model_copy(update={"environment": machine})
    found = findings([other, ddp(1, 1.02), ddp(2, 0.6)])
    two = found.points[found.points["num_devices"] == 2]
    assert two["baseline"].to_list() == ["ddp"]
    assert two["speedup"].to_list() == pytest.approx([1.7])


def test_a_serial_run_out_of_memory_is_a_gap_and_no_baseline() -> None:
    broken = make_record(1, 32, status="oom", cause=Cause(kind="oom", message="x"))
    found = findings([trained(broken, SERIAL), ddp(2, 0.6), ddp(4, 0.3)])
    assert found.pooled["status"].to_list() == ["oom", "ok", "ok"]
    assert found.pooled["series"].nunique() == 1
    assert set(found.points["baseline_devices"]) == {2}
    beside = findings([trained(broken, SERIAL), ddp(1, 1.02), ddp(2, 0.6)])
    assert speedups(beside) == {1: 1.0, 2: 1.7}
    assert set(beside.points["baseline"]) == {"ddp"}


def test_the_order_of_records_changes_no_baseline() -> None:
    runs = [serial(1.0), ddp(1, 1.02), ddp(2, 0.6), ddp(2, 0.7, bucket_cap_mb=1.0)]
    columns = ["series", "num_devices", "speedup", "baseline"]
    one, two = (findings(order).points[columns] for order in (runs, runs[::-1]))
    pd.testing.assert_frame_equal(
        one.sort_values(columns, ignore_index=True), two.sort_values(columns, ignore_index=True)
    )


@pytest.mark.parametrize(
    ("base", "name"), [(serial(1.0), "1 device, serial (strategy=none)"),
                       (ddp(1, 1.0), "1 device with ddp")],
    ids=["serial", "ddp"],
)  # fmt: skip
def test_tables_figures_and_words_name_the_baseline(base: Record, name: str) -> None:
    found = findings([base, ddp(2, 0.6)])
    assert f"1.67 times the throughput of {name}:" in " ".join(verdict_of(found))
    console = Console(width=300)
    with console.capture() as said:
        console.print(*terminal.tables(found))
    assert said.get().count(f"baseline: {name}") == 1
    data = figures.FigureData.of(found.loaded.runs, found.summary)
    drawn = speedup(data).figure
    assert any(f"Baseline: {name}." in text.get_text() for text in drawn.texts)
    assert "ddp" in data.words()


def test_factors_multiply_to_the_efficiency_against_serial_execution() -> None:
    many = perfect(2, 32, 0.8, ablation=ablation(0.8, [0.75, 0.75], 0.6))
    (found,) = findings([serial(1.0), ddp(1, 1.02), trained(many, DDP)]).waterfalls
    assert found.efficiency == pytest.approx(1 / 1.6)
    assert math.prod(factor.value for factor in found.factors) == pytest.approx(1 / 1.6)


def test_the_command_that_settles_what_is_best_repeats_the_serial_run() -> None:
    began = "python -m dpeval.train batch=32 baseline=serial num_devices="
    one = serial(1.0).model_copy(update={"command": f"{began}1 strategy=none"})
    two = ddp(2, 0.99).model_copy(update={"command": f"{began}2"})
    (said,) = [line for line in verdict_of(findings([one, two])) if "tell them" in line]
    assert "num_devices=1,2" in said
    assert said.count("baseline=serial") == 1
    assert "strategy" not in said


def test_a_notebook_sees_the_same_baseline() -> None:
    runs = findings([serial(1.0), ddp(2, 0.6), ddp(2, 0.7, bucket_cap_mb=1.0)]).loaded.runs
    assert set(api.scaling(runs)["baseline"]) == {"none"}


@pytest.fixture(scope="module")
def composer() -> Iterator[Composer]:
    hydra_app.register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader: Any = GlobalHydra.instance().config_loader()
        yield Composer(loader, loader.load_configuration("config", [], RunMode.MULTIRUN))


def planned(composer: Composer, jobs: list[list[str]]) -> list[Config]:
    listed = with_baselines(composer, [compose_job(composer, job, 0) for job in jobs])
    return [compose_job(composer, list(job), place).config for place, job in enumerate(listed)]


def told(configs: list[Config]) -> list[tuple[int, int, str]]:
    return [(one.num_devices, one.batch, one.strategy.name) for one in configs]


def test_a_plain_sweep_measures_what_it_names(composer: Composer) -> None:
    jobs = [[f"num_devices={n}", f"batch={b}"] for n in (1, 2, 3) for b in (16, 32)]
    assert told(planned(composer, jobs)) == [(n, b, "ddp") for n in (1, 2, 3) for b in (16, 32)]


def test_a_serial_baseline_replaces_the_one_device_run(composer: Composer) -> None:
    jobs = [["baseline=serial", f"num_devices={n}", f"batch={b}"] for n in (1, 2) for b in (16, 32)]
    made = planned(composer, jobs)
    assert told(made) == [(1, 16, "none"), (1, 32, "none"), (2, 16, "ddp"), (2, 32, "ddp")]


def test_a_serial_baseline_is_added_once_where_it_lacks(composer: Composer) -> None:
    jobs = [
        ["baseline=serial", "batch=32", f"num_devices={n}", f"strategy.bucket_cap_mb={cap}", *more]
        for cap in (1, 25)
        for n, more in ((2, []), (4, ["num_nodes=2"]))
    ]
    made = planned(composer, jobs)
    assert told(made) == [(1, 32, "none"), *[(2, 32, "ddp"), (4, 32, "ddp")] * 2]
    assert made[0].num_nodes == 1
    assert len({identity(one) for one in made}) == 5


def test_the_baseline_of_a_sweep_is_no_part_of_what_a_run_measures(composer: Composer) -> None:
    same, other = (
        compose_job(composer, [f"baseline={name}", "num_devices=2"], 0).config
        for name in ("same", "serial")
    )
    assert identity(same) == identity(other)


@pytest.mark.parametrize("study", ["quickstart", "cpu_scaling", "gpu_scaling"])
def test_the_standard_studies_measure_a_serial_baseline(composer: Composer, study: str) -> None:
    assert compose_job(composer, [f"experiment={study}"], 0).config.baseline == "serial"
