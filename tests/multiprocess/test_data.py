"""Data among processes: who builds, who waits, who ends."""
# ruff: noqa: F811  # fixtures that are imported are the arguments of the same names

from __future__ import annotations

import csv
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dpeval import input_bench
from dpeval.config import LOADERS, DatasetConfig
from dpeval.data import Source, prepare
from dpeval.data.sources import pixel_cache
from tests.multiprocess.conftest import ROOT, wait_for_none
from tests.unit.data.conftest import (  # noqa: F401  # fixtures are used by name
    FolderOf,
    folder_of,
    source,
    store,
)

SMALL = ["dataset=imagenette_like", "dataset.train_images=20", "dataset.image_px=32"]


def build_in_process(config: DatasetConfig, store: str, answers: object) -> None:
    os.environ["DPEVAL_DATA"] = store
    said: list[str] = []
    path = prepare(config, said.append).cache
    answers.put((path, [line for line in said if "decoding" in line]))  # type: ignore[attr-defined]


def test_two_sweeps_that_build_one_cache_build_it_once(folder_of: FolderOf, store: Path) -> None:
    config = folder_of(a=100, b=100)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [
        context.Process(target=build_in_process, args=(config, str(store), answers))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    (path, said), (other_path, other_said) = (answers.get(timeout=400) for _ in processes)
    for process in processes:
        process.join()
    assert path == other_path
    assert len(said + other_said) == 1
    assert pixel_cache.verify(Path(path))


PREPARE = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from dpeval.commands.main import run_main
from dpeval.config import LOADERS, DatasetConfig
from dpeval.data import prepare
sys.exit(run_main(lambda: prepare(DatasetConfig(
    name="image_folder", _target_="dpeval.data.image_folder", image_px=32, loader="cached",
    num_classes=2, root=sys.argv[1]))))
"""


def test_a_disk_that_fills_up_while_a_cache_is_built(folder_of: FolderOf, store: Path) -> None:
    """A limit on the size of files makes the same writes fail, with another errno."""
    config = folder_of(a=4, b=4)
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, str(config.root)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(store / "cache") in done.stderr
    assert "File too large" in done.stderr
    assert list(store.glob("cache/*.json")) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert pixel_cache.verify(Path(str(prepare(config).cache)))


def test_the_input_bench_measures_every_loader(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys,
        "argv",
        ["bench", "--seconds", "0.1", "--out", str(tmp_path / "out"), "batch=4", *SMALL],
    )
    assert input_bench.main() == 0
    assert "Input alone: imagenette_like, 32 px" in capsys.readouterr().out
    with (tmp_path / "out" / "input.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["loader"] for row in rows} == set(LOADERS)
    assert all(float(row["img_per_s"]) > 0 for row in rows)
    assert (tmp_path / "out" / "input.png").stat().st_size > 10_000
    assert pixel_cache.folder().is_dir()


def test_workers_end_with_their_rank_however_it_ends(source: Source, tmp_path: Path) -> None:
    program = tmp_path / "rank.py"
    program.write_text(
        "import dataclasses, multiprocessing, sys, time\n"
        "from dpeval.data import Source\n"
        "from dpeval.data.loading.loaders import make_loader\n"
        "from dpeval.devices.cpu import CpuDevice\n"
        "from tests.unit.data.conftest import CONFIG\n"
        "source = Source.model_validate_json(sys.stdin.read())\n"
        "config = dataclasses.replace(CONFIG, loader='jpeg', workers=2)\n"
        "loader = make_loader(source, config, shares=[8], rank=0, seed=0, device=CpuDevice(),\n"
        "                     channels_last=True, spare_cpus=[])\n"
        "loader.next()\n"
        "print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
        "time.sleep(60)\n"
    )
    rank = subprocess.Popen(
        [sys.executable, str(program)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert rank.stdin is not None
    assert rank.stdout is not None
    rank.stdin.write(source.model_dump_json())
    rank.stdin.close()
    workers = [psutil.Process(int(pid)) for pid in rank.stdout.readline().split()]
    assert len(workers) == 2
    rank.send_signal(signal.SIGKILL)
    rank.wait()
    rank.stdout.close()
    wait_for_none(workers)
