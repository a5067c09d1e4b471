"""The site is built without a warning, its reference is complete, and its study is repeatable."""

from __future__ import annotations

import csv
import html
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dpeval.__main__ import COMMANDS
from dpeval.analysis.csv_import import runs as csv_runs
from dpeval.analysis.csv_import.rows import Layout
from dpeval.analysis.frame import runs_frame
from dpeval.config.composition import all_keys
from dpeval.record.schema import Record
from tests.docs.conftest import DOCS, DOCUMENTS, ROOT

DATA = DOCS / "pages" / "data"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = ["mkdocs", "build", "--strict", "--quiet", "-f", str(DOCS / "mkdocs.yml")]
    done = subprocess.run(
        [sys.executable, "-m", *command, "--site-dir", str(folder)],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_every_key_field_and_command_is_in_the_reference(site: Path) -> None:
    keys = text_of(site / "reference" / "configuration.html")
    assert [key for key in all_keys() if key not in keys] == []
    fields = text_of(site / "reference" / "record.html")
    assert [name for name in Record.model_fields if name not in fields] == []
    helped = text_of(site / "reference" / "commands.html")
    assert [one.name for one in COMMANDS if f"dpeval {one.name}" not in helped] == []
    assert "--fail-if-slower SHARE" in helped


def test_a_key_has_its_type_default_bounds_and_meaning(site: Path) -> None:
    text = (site / "reference" / "configuration.html").read_text()
    row = re.search(r"<tr>\s*<td><code>measure.rel_precision</code>.*?</tr>", text, re.S)
    assert row is not None
    cells = [html.unescape(re.sub(r"<[^>]+>", "", cell)) for cell in row[0].split("</td>")]
    words = [cell.strip() for cell in cells]
    assert words[1:3] == ["float > 0, ≤ 1", "0.02"]
    assert words[3].startswith("Stop once the 95 % interval of the mean step time")


def test_no_page_asks_another_machine_for_anything(site: Path) -> None:
    loaded = re.compile(r"<(?:script|img|link)\b[^>]*\b(?:src|href)=\"(https?://[^\"]+)")
    for page in site.rglob("*.html"):
        asked = [url for url in loaded.findall(page.read_text()) if "canonical" not in url]
        assert asked == [], page


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(page: Path) -> None:
    made = ("reference/", "contributing.md")
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith(("http", "../reference", "../contributing", *made)):
            assert (page.parent / target).exists(), target


def test_the_tables_of_the_study_are_those_of_the_records() -> None:
    made = module("illustrations")
    for name, (head, body) in made.tables(made.cpu_records()).items():
        with (DATA / f"{name}.csv").open(newline="") as file:
            assert [[str(cell) for cell in row] for row in (head, *body)] == list(csv.reader(file))


@pytest.mark.parametrize(
    ("name", "rate", "speedup"),
    [("first_step", 63.98, 1.82), ("steady", 78.24, 1.53), ("cold_baseline", 78.24, 2.23)],
)
def test_the_study_says_what_its_tables_give(name: str, rate: float, speedup: float) -> None:
    imported = csv_runs.read([DATA / f"{name}.csv"], Layout())
    runs = runs_frame.of_records((run, Path(run.run_id)) for run in imported.records).runs
    rates = runs[runs["batch"] == 16].groupby("num_devices")["img_per_s"].median()
    assert rates[2] == pytest.approx(rate, abs=0.2)
    assert rates[2] / rates[1] == pytest.approx(speedup, abs=0.02)
    page = (DOCS / "pages" / "study.md").read_text()
    assert f"{speedup}×" in page
    assert f"{rate:.1f}" in page


def test_the_first_steps_on_a_gpu_are_as_told() -> None:
    with (DATA / "h200_steps.csv").open(newline="") as file:
        steps = list(csv.DictReader(file))
    page = (DOCS / "pages" / "study.md").read_text()
    for line in re.findall(r"^\| (fp32|bf16) \| (\d+) \| ([\d.]+) s \| (\d+) img/s", page, re.M):
        precision, batch, first_s, naive = line
        series = [
            float(row["seconds"])
            for row in steps
            if (row["precision"], row["global_batch"]) == (precision, batch)
        ]
        assert f"{series[0]:.1f}" == first_s
        assert f"{int(batch) * 20 / sum(series[:20]):.0f}" == naive


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_names_is_in_the_code(page: Path) -> None:
    for name in set(re.findall(r"`(dpeval(?:\.\w+)+)`", page.read_text())):
        *above, last = name.split(".")
        folder = ROOT.joinpath(*above)
        places = [folder.with_suffix(".py"), folder / "__init__.py", folder / "__init__.pyi"]
        is_module = (folder / f"{last}.py").exists() or (folder / last).is_dir()
        assert is_module or any(last in one.read_text() for one in places if one.exists()), name
