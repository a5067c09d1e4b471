"""Runs on the edge of memory: forecast before they start, survived if they exceed it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.multiprocess.conftest import Finished

Train = Callable[..., Finished]
GIB, MIB = 2**30, 2**20
V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")
RESNET = (
    "model=resnet18",
    "dataset=imagenette_like",
    "dataset.train_images=256",
    "dataset.image_px=64",
    "measure=quick",
    "measure.min_steps=6",
    "analyze=false",
)


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def hungry(folder: Path, name: str) -> tuple[str, ...]:
    """Overrides for a model of :mod:`tests.multiprocess.hungry`, entered as a user's own."""
    file = folder / "conf" / "model" / "hungry.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(
        f"name: hungry\n_target_: tests.multiprocess.hungry.{name}\n"
        "args: {num_classes: 10, at_step: 4}\n"
    )
    return (
        "model=hungry",
        "dataset=calibrated",
        "measure=quick",
        "analyze=false",
        "measure.min_steps=190",
        "measure.time_limit_s=250",
        "measure.max_steps=200",
        "memory.on_excess=try",
        "num_devices=2",
    )


def test_a_run_forecast_to_exceed_its_memory_is_skipped_with_the_way_out(train: Train) -> None:
    done = train(*RESNET, "batch=512", "hardware.memory_gib=1", "strategy=ddp")
    made = done.record
    assert made.status == "skipped"
    assert made.cause is not None
    assert made.cause.kind == "memory"
    assert made.memory.forecast is not None
    assert made.memory.budget is not None
    assert made.memory.forecast.total_bytes > made.memory.budget.bytes == 1 * GIB
    assert made.memory.devices_needed is not None
    assert 2 <= made.memory.devices_needed <= 8
    assert f"fits on {made.memory.devices_needed} devices" in done.out
    assert made.ranks == []


def test_accumulation_trains_the_same_batch_in_fewer_bytes(train: Train) -> None:
    done = train(
        *RESNET, "batch=192", "hardware.memory_gib=0.9", "memory.on_excess=accumulate",
        "measure.min_steps=3", "measure.max_steps=6", "measure.time_limit_s=200",
    )  # fmt: skip
    made = done.record
    assert made.status == "ok", done.err
    assert made.plan is not None
    assert made.plan.micro_batches > 1
    assert 192 % made.plan.micro_batches == 0
    assert made.memory.action == "accumulate"
    assert f"{made.plan.micro_batches} micro-batches" in done.out
    assert made.throughput is not None
    step_s = made.ranks[0].stats["step"].mean_s
    assert made.throughput.img_per_s == pytest.approx(192 / step_s, rel=0.01)
    assert made.ranks[0].peak_bytes is not None
    assert made.ranks[0].peak_bytes < 1.1 * 0.9 * GIB


def test_error_stops_before_anything_starts(train: Train) -> None:
    done = train(*RESNET, "batch=512", "hardware.memory_gib=1", "memory.on_excess=error")
    assert done.status == 2
    assert "is forecast to need" in done.err
    assert "Traceback" not in done.err
    assert done.records == []


def test_one_rank_that_is_refused_memory_ends_the_run_for_all(train: Train, tmp_path: Path) -> None:
    done = train(*hungry(tmp_path, "refused"))
    made = done.record
    assert made.status == "oom", (made.cause, done.err)
    assert made.cause is not None
    assert made.cause.rank == 1
    assert made.memory.forecast is not None
    assert len(made.ranks) == 2
    assert all(rank.peak_bytes is not None for rank in made.ranks)
    assert all(not psutil.pid_exists(rank.pid) for rank in made.ranks)
    assert done.status == 1


@pytest.fixture
def limited() -> Iterator[Callable[[int], Path]]:
    """Make a memory cgroup with a limit in bytes, v1 or v2; removed at the end."""
    made: list[Path] = []

    def make(limit: int) -> Path:
        version_1 = (V1 / "memory.limit_in_bytes").exists()
        folder = (V1 if version_1 else V2) / f"dpeval-test-{uuid.uuid4().hex[:8]}"
        try:
            folder.mkdir()
            made.append(folder)
            name = "memory.limit_in_bytes" if version_1 else "memory.max"
            (folder / name).write_text(str(limit))
        except OSError as error:
            pytest.skip(f"no memory cgroup can be made here: {error}")
        return folder

    yield make
    for folder in made:
        _remove(folder)


def _remove(folder: Path) -> None:
    for _ in range(600):
        try:
            folder.rmdir()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(
        f"processes were left in {folder}: {(folder / 'cgroup.procs').read_text()}"
    )


@pytest.mark.parametrize("order", ["sequential", "interleaved"])
def test_a_rank_killed_by_a_cgroup_limit_is_out_of_memory_and_the_other_run_goes_on(
    limited: Callable[[int], Path], environment: dict[str, str], tmp_path: Path, order: str
) -> None:
    """Whether the other run follows it or takes turns with it, which twice the memory allows."""
    folder = limited((4 if order == "interleaved" else 2) * GIB)

    def enter() -> None:
        (folder / "cgroup.procs").write_text(str(os.getpid()))

    process = subprocess.Popen(
        [
            sys.executable, "-m", "dpeval.train", "-m", *hungry(tmp_path, "growing"),
            # The second run never grows.
            "model.args.at_step=2,100000", f"sweep.order={order}",
        ],
        cwd=tmp_path, env=environment, text=True, preexec_fn=enter,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = process.communicate(timeout=540)
    done = Finished(process.returncode, out, err, tmp_path)
    killed, clean = done.records
    assert killed.status == "oom", (killed.cause, err)
    assert killed.cause is not None
    assert killed.cause.rank == 1
    assert killed.cause.signal == "SIGKILL"
    assert folder.name in killed.cause.message
    assert max(rank.peak_bytes or 0 for rank in killed.ranks) > 1 * GIB
    assert clean.status == "ok", clean.cause
    assert (clean.sitting is not None) == (order == "interleaved")
    # That no process is left in the cgroup shows when the fixture removes it.


@pytest.mark.skipif(
    "[always]" in _read("/sys/kernel/mm/transparent_hugepage/enabled"),
    reason="this system takes huge pages, of which a step has few",
)
def test_memory_that_is_kept_is_not_faulted_in_again(train: Train) -> None:
    """Tensors above 32 MiB are mapped anew in every step unless ranks keep what they free."""
    big = (
        "model=torchvision", "model.name=squeezenet1_1", "dataset=imagenette_like",
        "dataset.train_images=64", "dataset.image_px=160", "batch=32", "num_devices=1",
        "measure=quick", "measure.min_steps=12", "measure.max_steps=14", "measure.time_limit_s=200",
        "measure.ablation=false", "analyze=false",
    )  # fmt: skip

    done = train("-m", *big, "hardware.keep_memory=false,true")
    faults_per_step = []
    for made in done.records:
        assert made.conditions is not None
        assert made.conditions.minor_faults_per_s is not None
        assert made.window is not None
        faults_per_step.append(made.conditions.minor_faults_per_s * made.window.step_s.mean)
    given_back, kept = faults_per_step
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    assert given_back > 64 * MIB / page_bytes
    assert kept < 16 * MIB / page_bytes
