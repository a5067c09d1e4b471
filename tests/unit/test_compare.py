"""Comparing two sweeps: what counts as one configuration, and what counts as a change."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks.comparison import CHANGES, simulate
from dpeval import record
from dpeval.analysis.frame import runs_frame
from dpeval.analysis.pipeline import told_of_machine
from dpeval.analysis.scaling.compare import FAMILY_ERROR, Change, compare, machine_change
from dpeval.analyze import main
from dpeval.errors import ConfigError
from dpeval.record.schema import Cause, Record
from dpeval.stats.comparison import LARGEST_SPREAD
from tests.records import make_record, perfect


def frame(runs: Iterable[Record]) -> pd.DataFrame:
    return runs_frame.of_records((run, Path(str(place))) for place, run in enumerate(runs)).runs


def changed(run: Record, **groups: Any) -> Record:
    """`run` with keys of its configuration set: ``strategy={"bucket_cap_mb": 1}``."""
    config = dict(run.config)
    for group, value in groups.items():
        config[group] = {**config.get(group, {}), **value} if isinstance(value, dict) else value
    return run.model_copy(update={"config": config})


def sweep(scale: float, noise: float, seed: int, repeats: int = 3) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    return frame(
        perfect(
            devices, 48, scale / devices * (1 + noise * generator.standard_normal()), repetition=r
        )
        for devices in range(1, 6)
        for r in range(repeats)
    )


def test_a_change_is_found_and_its_interval_holds_it() -> None:
    found = compare(sweep(1.0, 0.005, 1), sweep(1.2, 0.005, 2), allowed=0.03)
    assert len(found) == 5
    assert all(change.is_different and change.is_slower for change in found)
    assert all(change.low < 1 / 1.2 < change.high for change in found)


@pytest.mark.parametrize("spread", [0.0, 0.02, 0.05])
@pytest.mark.parametrize("repeats", [1, 2, 3, 5])
def test_unchanged_sweeps_are_called_different_in_one_case_of_twenty_at_most(
    spread: float, repeats: int
) -> None:
    for spreads in (np.full(8, spread), np.r_[np.full(7, 0.01), spread]):
        found = simulate(spreads, repeats, 2000, np.random.default_rng(1))
        # Four standard errors of a share of 5 % among 2000.
        assert found.false_alarms <= FAMILY_ERROR + 4 * math.sqrt(0.05 * 0.95 / 2000)


def test_the_change_that_is_said_to_be_found_is_found_that_often() -> None:
    found = simulate(np.full(8, 0.02), 5, 2000, np.random.default_rng(1))
    said = found.detectable
    below = max(power for change, power in zip(CHANGES, found.power, strict=True) if change < said)
    above = min(power for change, power in zip(CHANGES, found.power, strict=True) if change > said)
    assert below < 0.8 < above


def test_single_runs_assume_the_spread_that_shared_machines_have() -> None:
    (slower,) = compare(frame([perfect(1)]), frame([perfect(1, 32, 1.08)]))
    assert not slower.is_different
    assert math.log(slower.high / slower.low) / 2 == pytest.approx(
        1.96 * LARGEST_SPREAD * math.sqrt(2), rel=1e-3
    )
    assert slower.is_assumed
    (slower,) = compare(frame([perfect(1)]), frame([perfect(1, 32, 1.08)]), assumed_spread=0.01)
    assert slower.is_different
    (slower,) = compare(frame([perfect(1)]), frame([perfect(1, 32, 1.3)]))
    assert slower.is_different


SETTINGS: list[dict[str, Any]] = [
    {"strategy": {"bucket_cap_mb": 1.0}},
    {"strategy": {"args": {"rank": 4}}},
    {"compile": True},
    {"optimizer": {"name": "Adam"}},
    {"optimizer": {"args": {"lr": 0.5}}},
    {"model": {"args": {"width": 2}}},
    {"dataset": {"augment": "none"}},
    {"hardware": {"keep_memory": True}},
    {"measure": {"min_steps": 7}},
    {"deterministic": True},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_runs_that_were_asked_for_something_else_are_not_compared(setting: dict[str, Any]) -> None:
    one, two = perfect(1), changed(perfect(1, 32, 2.0), **setting)
    found = compare(frame([one]), frame([two]))
    assert {change.status for change in found} == {("ok", "absent"), ("absent", "ok")}
    assert not any(change.is_different or change.is_slower for change in found)


def test_the_options_of_a_strategy_are_two_configurations_and_not_two_repetitions() -> None:
    def both(scales: tuple[float, float]) -> pd.DataFrame:
        return frame(
            changed(perfect(2, 32, scale, repetition=r), strategy={"bucket_cap_mb": cap})
            for cap, scale in zip((1.0, 25.0), scales, strict=True)
            for r in range(3)
        )

    found = compare(both((2.0, 1.0)), both((4.0, 1.0)), allowed=0.03)
    by_name = {change.name: change for change in found}
    assert set(by_name) == {"strategy.bucket_cap_mb=1.0", "strategy.bucket_cap_mb=25.0"}
    assert by_name["strategy.bucket_cap_mb=1.0"].ratio == pytest.approx(0.5)
    assert by_name["strategy.bucket_cap_mb=1.0"].is_slower
    assert not by_name["strategy.bucket_cap_mb=25.0"].is_slower
    assert {change.runs for change in found} == {(3, 3)}


def test_stand_in_and_real_data_are_not_compared() -> None:
    real = perfect(1)
    assert real.dataset is not None
    stand_in = real.dataset.model_copy(update={"used": "imagenette_like", "note": "no network"})
    found = compare(frame([real]), frame([real.model_copy(update={"dataset": stand_in})]))
    assert all(change.is_alone for change in found)
    assert all("dataset_used imagenette before, imagenette_like after" in c.note for c in found)


def test_a_key_that_old_records_lack_has_its_default() -> None:
    old, new = perfect(1), changed(perfect(1), hardware={"keep_memory": False}, compile=False)
    assert "compile" not in old.config
    (change,) = compare(frame([old]), frame([new]))
    assert change.status == ("ok", "ok")


def test_what_differs_between_repetitions_and_folders_does_not_matter() -> None:
    one = perfect(1)
    two = changed(
        perfect(1, repetition=3), seed=7, repetition=3, repeat=5, study="other",
        dataset={"root": "/elsewhere"}, hardware={"hang_timeout_s": 5.0},
    )  # fmt: skip
    (change,) = compare(frame([one]), frame([two]))
    assert change.status == ("ok", "ok")


@pytest.mark.parametrize(("after_s", "change"), [(0.012, 0.2), (0.01, 0.0), (math.nan, math.nan)])
def test_a_machine_that_became_slower_is_told_from_the_program(
    after_s: float, change: float
) -> None:
    before = frame([perfect(1), perfect(2)]).assign(machine_s=0.01)
    after = frame([perfect(1), perfect(2), perfect(4)]).assign(machine_s=after_s)
    # What only one sweep holds counts for nothing.
    after.loc[after["num_devices"] == 4, "machine_s"] = 9.0
    assert machine_change(before, after) == pytest.approx(change, nan_ok=True)
    said = list(told_of_machine(change))
    assert len(said) == (change > 0.05)
    assert all("20 % slower in the second sweep" in line for line in said)


def only(found: list[Change]) -> Change:
    (change,) = found
    return change


def test_what_ran_before_and_fails_now_is_a_regression() -> None:
    broken = make_record(1, 32, status="oom", cause=Cause(kind="oom", message="x"))
    change = only(compare(frame([perfect(1)]), frame([broken])))
    assert change.is_lost
    assert change.is_slower


def test_a_run_refused_before_it_had_data_is_still_the_same_configuration() -> None:
    refused = make_record(1, 32, status="skipped", cause=Cause(kind="memory", message="x"))
    refused = refused.model_copy(update={"dataset": None, "plan": None})
    assert only(compare(frame([perfect(1)]), frame([refused]))).is_lost


def written(folder: Path, runs: list[Record]) -> str:
    for number, run in enumerate(runs):
        record.write(run, folder / str(number) / "metrics.json")
    return str(folder)


def test_the_gate_fails_a_slower_sweep_with_its_own_status(tmp_path: Path) -> None:
    one = written(tmp_path / "a", [perfect(1, 32, 1.0, repetition=r) for r in range(3)])
    two = written(tmp_path / "b", [perfect(1, 32, 1.2, repetition=r) for r in range(3)])
    assert main(["--compare", one, two, "--fail-if-slower", "3%"]) == 3
    assert main(["--compare", one, one, "--fail-if-slower", "3%"]) == 0
    assert main(["--compare", one, two]) == 0


def test_what_is_not_compared_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [perfect(1, 32, repetition=r) for r in range(3)]
    one = written(tmp_path / "a", [*runs, perfect(2)])
    two = written(tmp_path / "b", [*runs, changed(perfect(2), compile=True)])
    assert main(["--compare", one, two]) == 0
    told = capsys.readouterr().out
    assert told.count("caution: 1 configuration of") == 2
    assert "compile False before, True after" in told
    assert "with a probability of 80 %" in told


@pytest.mark.parametrize("share", ["0%", "0", "3%", "0.03", "99.9%"])
def test_a_limit_of_the_gate_that_makes_sense_is_taken(share: str, tmp_path: Path) -> None:
    one = written(tmp_path / "a", [perfect(1)])
    assert main(["--compare", one, one, "--fail-if-slower", share]) == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["a", "--fail-if-slower", "3%"], "--fail-if-slower needs --compare"),
        (["--compare", "a", "b", "--objective", "energy"], "--objective has no effect with --com"),
        (["--compare", "a", "b", "--min-efficiency", "0"], "--min-efficiency has no effect with"),
        (["--compare", "a", "b", "--pdf"], "--pdf has no effect with --compare"),
        (["--compare", "a", "b", "--hardware", "gpu"], "--hardware needs --from-csv"),
        (["a", "--tables-only", "--pdf"], "--pdf has no effect with --tables-only"),
        (["a", "--tables-only", "--figure", "x.y"], "--figure has no effect with --tables-only"),
        (["a", "--columns", "size=num_devices"], "--columns needs --from-csv"),
        (["a", "--per-rank-batch", "floor"], "--per-rank-batch needs --from-csv"),
    ],
)
def test_an_option_without_effect_is_refused(
    options: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 2
    assert capsys.readouterr().err.startswith(f"dpeval: {why}")


@pytest.mark.parametrize("option", ["--fail-if-slower", "--min-efficiency"])
@pytest.mark.parametrize("share", ["-1%", "-0.5", "nan", "nan%", "inf", "10", "150%", "%", "", "x"])
def test_a_share_that_makes_no_sense_is_one_line(
    option: str, share: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([f"{option}={share}", "--compare", "a", "b"])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"'{share}' is not a share from 0 to 1; give 0.1 or 10%" in last


@pytest.mark.parametrize("share", ["100%", "1", "1.0"])
def test_nothing_can_be_slower_by_all_of_its_throughput(
    share: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--compare", "a", "b", "--fail-if-slower", share])
    assert "give less, as in 0.03 or 3%" in capsys.readouterr().err


@pytest.mark.parametrize("allowed", [1.0, -0.1, math.nan, 10.0])
def test_the_same_limit_in_a_notebook_is_an_error_of_the_user(allowed: float) -> None:
    with pytest.raises(ConfigError, match=r"give 0\.03 for 3 %"):
        compare(frame([perfect(1)]), frame([perfect(1)]), allowed)
