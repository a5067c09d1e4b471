"""From records to a frame, a table and figures."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from dpeval import record
from dpeval.analysis import api
from dpeval.analysis.figures import FigureData, style
from dpeval.analysis.figures.catalogue import find_plot
from dpeval.analysis.frame import reader, runs_frame
from dpeval.analysis.pipeline import Options, analyze
from dpeval.analysis.pooling import repetitions
from dpeval.analyze import main
from dpeval.record.phases import PHASES
from dpeval.record.schema import Cause, Record
from tests.records import make_record

NO_CORES = Cause(kind="devices", message="8 CPU devices were asked for")


def written(folder: Path, runs: list[Record]) -> Path:
    for number, run in enumerate(runs):
        record.write(run, folder / str(number) / "metrics.json")
    return folder


def study() -> list[Record]:
    runs = [make_record(n, 32, 1.0 / n**0.8) for n in (1, 2, 4)]
    return [*runs, make_record(8, 32, status="skipped", cause=NO_CORES)]


def test_a_row_says_what_the_record_says(tmp_path: Path) -> None:
    run = make_record(2, 32, 0.5)
    loaded = runs_frame.load([written(tmp_path, [run])])
    (row,) = loaded.runs.to_dict("records")
    assert run.throughput is not None
    assert list(row) == list(runs_frame.COLUMNS)
    assert row["img_per_s"] == run.throughput.img_per_s
    assert row["num_devices"] == 2
    assert row["step_s"] == pytest.approx(0.5, rel=0.02)
    assert sum(row[f"{phase}_s"] for phase in PHASES) == pytest.approx(row["step_s"])


def test_what_cannot_be_read_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    written(tmp_path, [make_record(1)])
    for name, text in {"a": "{", "b": "[]", "c": '{"schema_version": 7}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(text)
    loaded = runs_frame.load([tmp_path])
    assert len(loaded.runs) == 1
    assert len(loaded.problems) == 3
    assert all("\n" not in problem for problem in loaded.problems)


MAIN_PID = os.getpid()


def parse_or_die(file: Path) -> reader.Line:
    """In a worker the third file ends the process, as the OOM killer does."""
    if os.getpid() != MAIN_PID and file.parent.name == "2":
        os.kill(os.getpid(), signal.SIGKILL)
    return file.parent.name


def test_processes_read_what_one_reads_and_a_killed_one_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, [make_record(1, batch) for batch in (8, 16, 24, 32, 40)])
    files = [tmp_path / str(number) / "metrics.json" for number in range(5)]
    serial = reader.parse_all(files)
    monkeypatch.setattr(reader, "PARALLEL_FROM", 0)
    monkeypatch.setattr(reader, "allowed_cpus", lambda: [0, 1])
    monkeypatch.setattr(reader, "_CHUNK", 1)
    assert reader.parse_all(files) == serial
    monkeypatch.setattr(reader, "parse", parse_or_die)
    assert reader.parse_all(files) == ["0", "1", "2", "3", "4"]


def test_a_record_below_two_given_paths_counts_once(tmp_path: Path) -> None:
    written(tmp_path, [make_record(1)])
    assert len(runs_frame.load([tmp_path, tmp_path / "0"]).runs) == 1


def test_repetitions_are_pooled_with_the_variance_between_them(tmp_path: Path) -> None:
    times = (0.9, 1.0, 1.1)
    runs = [make_record(1, 32, time, repetition=i, noise=0.001) for i, time in enumerate(times)]
    (row,) = repetitions.pool(runs_frame.load([written(tmp_path, runs)]).runs).to_dict("records")
    means = np.array([run.window.step_s.mean for run in runs if run.window is not None])
    assert row["runs"] == row["n_runs"] == 3
    # Images over the mean time, not the mean of img/s, which would weigh fast runs more.
    assert row["img_per_s"] == pytest.approx(32 / means.mean())
    # Student's t for two degrees of freedom; the runs' own intervals are far too narrow.
    half = 4.303 * np.log(means).std(ddof=1) / 3**0.5
    assert row["low"] == pytest.approx(row["img_per_s"] * np.exp(-half), rel=1e-3)
    assert row["high"] == pytest.approx(row["img_per_s"] * np.exp(half), rel=1e-3)
    assert row["spread_share"] == pytest.approx(0.1, rel=0.05)
    assert row["within_share"] < 0.001


def test_a_failed_repetition_is_never_averaged_in(tmp_path: Path) -> None:
    failed = make_record(1, 32, status="failed", cause=Cause(kind="exception", message="x"))
    (row,) = repetitions.pool(
        runs_frame.load([written(tmp_path, [make_record(1, 32, 1.0), failed])]).runs
    ).to_dict("records")
    assert (row["runs"], row["ok"], row["status"]) == (2, 1, "ok")
    assert row["img_per_s"] == pytest.approx(32, rel=0.02)


def test_runs_of_two_machines_are_kept_apart(tmp_path: Path) -> None:
    one = make_record(1)
    other = one.model_copy(
        update={"environment": one.environment.model_copy(update={"host": "other"})}
    )
    assert len(repetitions.pool(runs_frame.load([written(tmp_path, [one, other])]).runs)) == 2


AVX2, AMX = ["avx2"], [f"amx_{kind}" for kind in ("bf16", "int8", "tile")] + ["avx2"]


@pytest.mark.parametrize(
    ("features", "series"),
    [([AVX2, AMX], 2), ([AVX2, AVX2], 1), ([[], AMX], 1), ([[], []], 1), ([[], AVX2, AMX], 3)],
)
def test_hosts_of_one_name_with_other_instruction_sets_are_kept_apart(
    tmp_path: Path, features: list[list[str]], series: int
) -> None:
    run = make_record(1)
    runs = [
        run.model_copy(
            update={"environment": run.environment.model_copy(update={"cpu_features": listed})}
        )
        for listed in features
    ]
    assert runs_frame.load([written(tmp_path, runs)]).runs["series"].nunique() == series


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-3, 1e3), devices=st.integers(1, 8))
def test_scaling_all_times_scales_throughput_inversely(scale: float, devices: int) -> None:
    one, other = (
        runs_frame.row(make_record(devices, 32, step_s), Path()) for step_s in (1.0, scale)
    )
    assert other["img_per_s"] == pytest.approx(one["img_per_s"] / scale, rel=1e-6)


@dataclass(frozen=True)
class Analysed:
    """An analysis with figures, which take seconds to draw."""

    runs: list[Record]
    out: Path
    text: str


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Analysed:
    """One analysis of strong scaling on CPUs and on GPUs, and of weak scaling."""
    folder = tmp_path_factory.mktemp("analysed")
    runs = study()
    runs += [make_record(n, b, b / n, hardware="gpu") for n in (1, 2) for b in (16, 32)]
    runs += [make_record(n, 16, 1.0, scaling="weak") for n in (1, 2)]
    console = Console(width=200, record=True, file=io.StringIO())
    own = Options(own_figures=("tests.unit.test_face.title_only",))
    out = analyze([written(folder, runs)], console=console, options=own)
    return Analysed(runs, out, console.export_text())


def test_a_study_becomes_figures_tables_and_words(analysed: Analysed) -> None:
    made = {path.name for path in analysed.out.iterdir()}
    for stem in ("time_components", "throughput_cpu", "throughput_gpu", "best_devices"):
        assert {f"{stem}.{ending}" for ending in ("png", "svg", "pdf")} <= made
    assert {"summary.csv", "runs.csv"} <= made
    assert "skipped (devices)" in analysed.text
    assert re.search(r"\b1\.7[345]", analysed.text)  # 2 ** 0.8


def test_a_figure_of_ones_own_is_drawn_after_those_of_dpeval(analysed: Analysed) -> None:
    assert (analysed.out / "title_only.svg").exists()
    report = (analysed.out / "report.html").read_text()
    assert report.rindex("How many runs there are") > report.rindex("Memory of the fullest rank")


def test_the_same_records_give_the_same_bytes(analysed: Analysed, tmp_path: Path) -> None:
    records = zip(analysed.runs, map(Path, map(str, range(len(analysed.runs)))), strict=True)
    runs = runs_frame.of_records(records).runs
    figure_data = FigureData.of(runs, api.scaling(runs))
    for stem in ("throughput_gpu", "time_components"):
        with style.styled():
            style.save(find_plot(stem).draw(figure_data).figure, tmp_path, stem)
        for ending in ("png", "svg", "pdf"):
            name = f"{stem}.{ending}"
            assert (tmp_path / name).read_bytes() == (analysed.out / name).read_bytes()


def test_the_terminal_shows_what_to_use_then_the_table_then_doubts_and_the_report(
    analysed: Analysed,
) -> None:
    lines = analysed.text.splitlines()
    starts = ("strong scaling, CPU: ", "densenet121, imagenette", "report: ", "tables: ")
    at = [next(i for i, line in enumerate(lines) if line.startswith(one)) for one in starts]
    assert at == sorted(at)
    assert sum(line.startswith("doubt: ") for line in lines) <= 3
    assert len(lines) - at[2] == 2


def test_json_is_all_that_scripts_get(
    analysed: Analysed, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--tables-only", "--json", "--samples", "1e6", "--price-per-device-hour", "2"]
    assert main([str(analysed.out.parent), *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    fastest = found["recommendations"][0]["objectives"][0]
    assert fastest["training"]["price"] == pytest.approx(2 * fastest["training"]["device_hours"])
    assert fastest["training"]["energy_kwh"] is None
    assert json.loads((analysed.out / "summary.json").read_text()) == found


@pytest.mark.parametrize("value", ["0", "-3", "many", "inf"])
def test_an_amount_that_is_none_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["somewhere", "--samples", value])
    assert "is not a positive number" in capsys.readouterr().err


@pytest.mark.parametrize("make", [True, False])
def test_nothing_to_analyse_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: bool
) -> None:
    folder = tmp_path / "empty"
    if make:
        folder.mkdir()
    assert main([str(folder)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_analysis_does_not_import_torch() -> None:
    code = "import sys, dpeval.analyze; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
