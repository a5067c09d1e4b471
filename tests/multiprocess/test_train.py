"""The main job with real processes: one run, sweeps, refusals."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch

import dpeval
import dpeval.train
from dpeval.analysis.frame import runs_frame
from dpeval.analysis.scaling.findings import find
from dpeval.record.phases import PHASES
from tests.multiprocess.conftest import CALIBRATED, Finished

Train = Callable[..., Finished]
SMALL = ("dataset=imagenette_like", "dataset.train_images=100", "dataset.image_px=32")


def test_a_real_model_trains_on_two_ranks_and_leaves_a_whole_record(train: Train) -> None:
    done = train(
        *SMALL, "model=resnet18", "batch=8", "num_devices=2", "hardware.oversubscribe=true",
        "measure=quick", "measure.min_steps=6", "measure.ablation=true",
        "measure.rel_precision=0.5",
    )  # fmt: skip
    assert done.status == 0, done.err
    run = done.record
    assert run.status == "ok"
    assert run.throughput is not None
    assert run.window is not None
    assert run.ablation is not None
    assert run.loss is not None
    assert run.loss.start is not None
    assert run.plan is not None
    assert [rank.per_device_batch_size for rank in run.ranks] == [4, 4]
    for rank in run.ranks:
        phases = np.sum([rank.phase_s[phase] for phase in PHASES], axis=0)
        np.testing.assert_allclose(phases, rank.step_s, atol=1e-8)
        assert rank.peak_bytes is not None
        assert rank.peak_bytes > 2**26
        assert (
            sum(bucket.bytes for bucket in rank.buckets) == 4 * 11_181_642
        )  # ResNet-18, 10 classes
        for bucket in rank.buckets:
            assert len(bucket.allreduce_s) == run.window.steps
            assert np.median(bucket.allreduce_s) == pytest.approx(bucket.allreduce_median_s)
        measured = slice(run.window.first, None)
        # Buckets overlap in time: each of them ends within the step's time of communicating.
        longest = np.max([bucket.allreduce_s for bucket in rank.buckets], axis=0)
        assert (longest <= np.array(rank.comm_s)[measured] + 1e-9).all()
        hidden, whole = np.array(rank.comm_hidden_s), np.array(rank.comm_s)
        assert (hidden <= whole + 1e-9).all()
    assert run.setup is not None
    assert list(run.setup.parts_s) == ["device", "rendezvous", "model", "data", "wrap"]
    slowest = max(sum(rank.step_s[run.window.first :]) for rank in run.ranks)
    assert run.throughput.img_per_s == pytest.approx(8 * run.window.steps / slowest, rel=1e-6)
    schema = json.loads(Path(dpeval.__file__).with_name("metrics.schema.json").read_text())
    jsonschema.validate(json.loads(run.model_dump_json()), schema)
    assert "exposed communication" in done.out


def test_the_baseline_without_a_wrapper(train: Train) -> None:
    done = train(*CALIBRATED, "strategy=none", "batch=4")
    assert done.status == 0, done.err
    assert done.record.ranks[0].buckets == []
    assert done.record.ranks[0].stats["comm_exposed"].mean_s == 0


def test_a_sweep_runs_interleaved_and_skips_what_the_machine_has_not(train: Train) -> None:
    done = train("-m", *CALIBRATED, "num_devices=1,512", "batch=512,1024", "repeat=2")
    assert done.status == 0, done.err
    runs = done.records
    assert [(run.repetition, run.config["num_devices"], run.config["batch"]) for run in runs] == [
        (repetition, devices, batch)
        for repetition in (0, 1)
        for devices in (1, 512)
        for batch in (512, 1024)
    ]
    assert [run.status for run in runs] == ["ok", "ok", "skipped", "skipped"] * 2
    skipped = runs[2].cause
    assert skipped is not None
    assert skipped.kind == "devices"
    assert len({run.identity for run in runs}) == 8


def test_a_study_draws_its_figures(train: Train, tmp_path: Path) -> None:
    done = train(
        "-m", *CALIBRATED[:-1], "num_devices=1,2", "hardware.oversubscribe=true", "baseline=serial"
    )
    assert done.status == 0, done.err
    strategies = {run.config["num_devices"]: run.config["strategy"]["name"] for run in done.records}
    assert strategies == {1: "none", 2: "ddp"}
    made = {path.name for path in tmp_path.glob("outputs/**/analysis/*")}
    assert {"throughput_cpu.png", "throughput_cpu.svg", "summary.csv", "report.html"} <= made


def test_the_gpu_command_as_written_stops_before_anything_starts(
    train: Train, tmp_path: Path
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = train("-m", "hardware=gpu", "num_devices=1,2,3", "batch=16,32,64,128")
    assert done.status == 2
    assert len(done.err.strip().splitlines()) == 1
    assert "hardware=gpu" in done.err
    assert "needs CUDA or ROCm GPUs" in done.err
    assert "hardware=cpu" in done.err
    assert done.out == ""
    assert done.records == []


def train_in_this_process(
    overrides: tuple[str, ...], folder: Path, environment: dict[str, str]
) -> None:
    """What ``python -m dpeval.train`` does in `folder`, with its output in files there."""
    os.environ.update(environment)
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        with Path(name).open("wb") as file:
            os.dup2(file.fileno(), number)
    sys.argv = ["dpeval.train", *overrides]
    sys.exit(dpeval.train.main())


@pytest.fixture
def train_once_imported(environment: dict[str, str], tmp_path: Path) -> Train:
    """Run ``dpeval.train`` in a fork of a process that has imported it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dpeval.train"])

    def run(*overrides: str) -> Finished:
        process = context.Process(
            target=train_in_this_process, args=(overrides, tmp_path, environment)
        )
        process.start()
        process.join(540)
        assert process.exitcode is not None
        out, err = ((tmp_path / name).read_text() for name in ("out", "err"))
        return Finished(process.exitcode, out, err, tmp_path)

    return run


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("batch=0",), "batch=0 is too small"),
        (("-m", "num_devices=1,3", "batch=2"), "batch=2 is too small for num_devices=3"),
        (("model=torchvision", "model.name=resnet19"), "did you mean 'resnet1"),
        (("model._target_=no_such_package.build",), "no module 'no_such_package'"),
        (("optimizer.name=SDG",), "did you mean 'SGD'?"),
        (("optimizer.args={lr: -1}",), "rejects optimizer.args"),
        (("optimizer.name=AdamW", "~optimizer.args.momentum", "+optimizer.args.capturable=true"),
         "capturable=true is for CUDA graphs and needs hardware=gpu"),
        (("dataset=image_folder", "dataset.root=/nowhere/at/all", "dataset.num_classes=2"),
         "/nowhere"),
        (("repeat=2",), "add -m"),
        (("-m", "repeat=50", "sweep.time_limit_s=600"), "50 runs of up to"),
        (("-m", "repeat=0"), "dpeval: repeat=0 is too small"),
        (("-m", "seed=1", "batch=8,0"), "dpeval: seed=1 batch=0: batch=0 is too small"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_one_line_and_status_2(
    train_once_imported: Train, overrides: tuple[str, ...], words: str
) -> None:
    done = train_once_imported(*overrides)
    assert done.status == 2, done.err
    assert words in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert done.records == []


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # to import it is an error
import dpeval.train
sys.exit(dpeval.train.main())
"""


@pytest.mark.parametrize("overrides", [("batch=0",), ("-m", "batch=0,8"), ("repeat=2",)])
def test_a_wrong_value_is_told_before_torch_is_imported(
    environment: dict[str, str], overrides: tuple[str, ...]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *overrides],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert overrides[-1].split(",")[0] in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_users_own_model_from_a_users_own_yaml(train: Train, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def build(classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3, classes))\n"
    )
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(
        "name: mine\n_target_: mine.build\nargs: {classes: '${dataset.num_classes}'}\n"
    )
    done = train("model=mine", "dataset=calibrated", "measure=quick", "batch=4")
    assert done.status == 0, done.err
    assert done.record.config["model"]["args"] == {"classes": 10}


def test_missing_imagenette_is_replaced_loudly_and_marked(train: Train, tmp_path: Path) -> None:
    done = train(
        "dataset=imagenette_160", f"dataset.root={tmp_path / 'data'}", "dataset.train_images=40",
        "dataset.image_px=32", "model=mobilenet_v3_large", "batch=4", "measure=quick",
        "measure.min_steps=6", "measure.rel_precision=0.9",
    )  # fmt: skip
    assert done.status == 0, done.err
    run = done.record
    assert run.dataset is not None
    if not run.dataset.is_stand_in:
        pytest.skip("Imagenette could be downloaded here")
    assert (run.dataset.requested, run.dataset.used) == ("imagenette_160", "imagenette_like")
    assert "USING STAND-IN" in done.out
    assert run.warnings[0].code == "stand_in"


def test_communication_that_a_strategy_does_not_time_is_not_measured(train: Train) -> None:
    """Never a 0 or a factor of 1.0: that would say that communication costs nothing."""
    own = ("strategy.name=own", "strategy._target_=tests.multiprocess.untimed.plain_ddp")
    done = train(
        "-m", *CALIBRATED, *own, "num_devices=1,2", "hardware.oversubscribe=true", "batch=32",
        "measure.ablation=true", "measure.rel_precision=0.5", "measure.max_steps=40",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert "not measured" in done.out
    one, two = done.records
    assert one.ranks[0].stats["comm_exposed"].mean_s == 0, "a lone rank has nothing to communicate"
    assert one.missing == []
    for rank in two.ranks:
        assert "comm_exposed" not in rank.phase_s
        assert "comm_exposed" not in rank.stats
        assert rank.comm_s == rank.comm_hidden_s == []
    assert two.balance is None, "waiting for others is a part of backward here"
    assert two.ablation is None, "a rank alone would wait for the other for ever"
    assert [line.split(":")[0] for line in two.missing] == [
        "exposed communication and load balance",
        "ablation",
    ]
    found = find(runs_frame.load([done.folder / "outputs"]))
    assert found.loaded.runs["comm_exposed_s"].isna().tolist() == [False, True]
    (waterfall,) = found.waterfalls
    (merged,) = (f for f in waterfall.factors if "gradient synchronisation" in f.parts)
    assert len(merged.parts) > 1
    assert "exposed communication not measured" in merged.note
    assert math.prod(f.value for f in waterfall.factors) == pytest.approx(waterfall.efficiency)
