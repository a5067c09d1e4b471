"""A part of each kind is added from outside the package, with the files that CONTRIBUTING names.

``example/`` is such a working folder. CONTRIBUTING's table "Adding a part" says which of its files
make up a part; the tests copy those and nothing else, and run them.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dpeval import analyze, record
from dpeval.record.schema import Record

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = Path(__file__).parent / "example"
PARTS = {
    "model", "dataset", "task", "loader", "strategy", "optimizer", "scheduler", "site", "figure",
}  # fmt: skip
CLASSIFIER = (
    "model=mine", "dataset=mine", "dataset.loader=my_package.loader.Preloaded",
    "dataset.loader_args={scale: 2.0}", "strategy=mine",
)  # fmt: skip
BRIEFLY = (
    "optimizer=mine", "batch=4",
    "measure=quick", "measure.time_limit_s=10", "measure.conditions=false",
)  # fmt: skip


def table() -> dict[str, tuple[str, str]]:
    """Of each part, the cells that say which files to touch inside and outside the package."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.partition("## Adding a part")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return {row[0]: (row[1], row[2]) for row in rows if row[0] in PARTS}


def files_of(cell: str) -> list[str]:
    """The paths that a cell names."""
    return re.findall(r"`([\w/]+\.(?:py|yaml))`", cell)


def add(folder: Path, *parts: str) -> None:
    """Copy what the table names for `parts` from the example to `folder`."""
    for part in parts:
        for name in files_of(table()[part][1]):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(EXAMPLE / name, folder / name)


def run(folder: Path, *command: str) -> str:
    """What a command prints that ends well in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DPEVAL_DATA": str(folder / "data")}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=540, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def records(folder: Path) -> list[Record]:
    found = [record.read(path) for path in record.below(folder / "outputs")]
    return sorted(found, key=lambda one: len(one.ranks))


def test_the_table_names_files_that_exist_and_all_of_the_example() -> None:
    assert set(table()) == PARTS
    named = [name for _, outside in table().values() for name in files_of(outside)]
    there = [path for path in EXAMPLE.rglob("*") if path.suffix in (".py", ".yaml")]
    assert sorted(named) == sorted(str(path.relative_to(EXAMPLE)) for path in there)
    for inside, _ in table().values():
        for name in files_of(inside):
            if not name.endswith(("/mine.py", "/mine.yaml")):
                assert (ROOT / name).is_file(), name


def test_no_part_of_the_example_needs_another() -> None:
    for path in EXAMPLE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("my_package"), path
                assert node.level == 0, path


def test_a_run_trains_with_parts_from_outside(tmp_path: Path) -> None:
    add(tmp_path, "model", "dataset", "loader", "strategy", "optimizer")
    # As pip's scripts do, whose folder is on the import path in place of the working directory.
    script = tmp_path / "bin" / "dpeval-train"
    script.parent.mkdir()
    script.write_text(
        "import sys\nfrom dpeval.train import main\n"
        "if __name__ == '__main__':\n    sys.exit(main())\n"
    )
    run(tmp_path, str(script), *CLASSIFIER, *BRIEFLY, "num_devices=2", "measure.ablation=true")
    (made,) = records(tmp_path)
    assert made.dataset is not None
    assert (made.dataset.used, made.dataset.train_images) == ("mine", 16)
    assert [rank.per_device_batch_size for rank in made.ranks] == [2, 2]
    assert all("comm_exposed" not in rank.phase_s for rank in made.ranks), "it times nothing"
    assert made.ablation is not None
    assert made.ablation.no_sync_s is not None, "it has a no_sync"
    assert made.memory.forecast is not None
    assert made.loss is not None
    assert made.loss.end is not None, "the loss is finite"


def test_a_task_from_outside_goes_through_a_scheduler_a_site_and_a_figure_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tmp_path, "task", "optimizer", "scheduler", "site", "figure")
    sweep = ["-m", "dpeval.train", "-m", "hydra/launcher=mine", "site=mine", "task=mine", *BRIEFLY]
    shown = run(tmp_path, *sweep, "num_devices=1", "hydra.launcher.dry_run=true")
    assert "processes=1 minutes=5" in shown, "the site's startup_s is in the time that is asked for"
    assert records(tmp_path) == []
    run(tmp_path, *sweep, "num_devices=1,2", "analyze=false")
    assert [(one.status, len(one.ranks)) for one in records(tmp_path)] == [("ok", 1), ("ok", 2)]
    assert all(one.scheduler and one.scheduler.kind == "processes" for one in records(tmp_path))
    for made in records(tmp_path):
        assert made.loss is not None
        assert made.loss.start is not None
        assert 0 < made.loss.start < 2, "the loss of the task"
    [manifest] = tmp_path.glob("outputs/*/*/sweep.json")
    assert json.loads(manifest.read_text())["launcher"] == "my_package.scheduler.Processes"
    monkeypatch.setattr(sys, "path", list(sys.path))
    figure = "my_package.figure.rate_over_devices"
    assert analyze.main(["outputs", "--out", "analysis", "--figure", figure]) == 0
    assert (tmp_path / "analysis" / "rate_over_devices.png").stat().st_size > 1_000
    assert "Images per second over devices" in (tmp_path / "analysis" / "report.html").read_text()
