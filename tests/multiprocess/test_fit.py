"""The largest batch that fits a stated budget, and forecasts that learn from measured peaks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from dpeval.commands.batch_search import Fit
from tests.multiprocess.conftest import Finished

GIB = 2**30
Train = Callable[..., Finished]


def test_the_largest_batch_is_confirmed_under_a_stated_budget(
    environment: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dpeval.fit", "-m", "model=resnet18", "dataset.image_px=48",
         "hardware.memory_gib=0.65", "num_devices=2"],
        cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=540, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("outputs/default/fit-*/fit.json")
    found = Fit.model_validate(json.loads(path.read_text()))
    assert [case.num_devices for case in found.cases] == [2]
    for case in found.cases:
        peaks = {item.batch: item.peak_bytes or 0 for item in case.tries}
        assert peaks[case.confirmed_batch] <= 0.65 * GIB
        assert case.failed_batch is not None
        assert peaks[case.failed_batch] > 0.65 * GIB
        assert case.failed_batch - case.confirmed_batch <= max(1, case.confirmed_batch // 32)
        assert case.img_per_s is not None
        assert case.forecast_batch is not None
        assert 0.5 < case.forecast_batch / case.confirmed_batch < 2
    assert "Largest batch per device that fits" in done.stdout


def test_a_third_run_is_forecast_by_the_line_through_the_first_two(train: Train) -> None:
    done = train(
        "-m", "model=resnet18", "dataset=imagenette_like", "dataset.train_images=256",
        "dataset.image_px=64", "measure=quick", "analyze=false", "batch=8,64,128",
        "sweep.order=sequential",  # runs that take turns are forecast before any has ended
        # Steps fill the memory, however long they take.
        "measure.min_steps=3", "measure.max_steps=6", "measure.time_limit_s=200",
    )  # fmt: skip
    first, second, third = done.records
    sources = [run.memory.forecast.source for run in (first, second, third) if run.memory.forecast]
    assert sources == ["model", "fit", "fit"], done.err
    assert third.memory.forecast is not None
    assert third.memory.forecast.parts["allowance"] != 0
    peak = third.ranks[0].peak_bytes
    assert peak is not None
    assert abs(third.memory.forecast.total_bytes / peak - 1) < 0.1


def test_what_a_run_holds_is_what_was_forecast(train: Train) -> None:
    done = train(
        "model=mobilenet_v3_large", "dataset=imagenette_like", "dataset.train_images=256",
        "dataset.image_px=64", "measure=quick", "analyze=false", "batch=64", "num_devices=2",
        "dataset.loader=resident", "precision=bf16",
        # Without AVX-512 a step in bf16 takes 5 s, on a busy machine 15: three fill the memory.
        "measure.min_warmup_steps=1", "measure.min_steps=2", "measure.max_steps=3",
        "measure.time_limit_s=200",
    )  # fmt: skip
    made = done.record
    assert made.status == "ok", done.err
    assert made.memory.forecast is not None
    for rank in made.ranks:
        assert rank.peak_bytes is not None
        assert abs(made.memory.forecast.total_bytes / rank.peak_bytes - 1) < 0.1
