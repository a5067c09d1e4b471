"""Forecasts of memory against measured peaks, and the search for a batch against brute force."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from benchmarks.gpu.checks import Check, near, not_measured, report, same
from benchmarks.gpu.runs import call, train
from benchmarks.gpu.setting import Setting
from dpeval.record.schema import Record

CASES = {
    "densenet121": 64,
    "resnet18": 128,
    "resnet50": 64,
    "mobilenet_v3_large": 128,
    "vit_b_16": 64,
    "swin_b": 32,
}
"""Per model a batch of 224 px."""
FEW_STEPS = (
    "measure=quick",
    "measure.max_steps=8",
    "measure.rel_precision=1e-4",
    "measure.time_limit_s=120",
)
LIMIT_GIB = 4


def run(setting: Setting) -> Iterator[Check]:
    """Six models in fp32 and bf16, then ``dpeval.fit`` under a limit of 4 GiB."""
    yield from _fit(setting)
    cases = {"resnet18": 8} if setting.rehearse else CASES
    for name, batch in cases.items():
        records = train(
            setting,
            "memory",
            f"model={name}",
            f"batch={batch}",
            "precision=fp32,bf16",
            "dataset=imagenette_like",
            f"dataset.image_px={64 if setting.rehearse else 224}",
            "dataset.train_images=256",
            "dataset.loader=constant",
            *FEW_STEPS,
            multirun=True,
        )
        for record in records:
            yield _compared(record)


def _compared(record: Record) -> Check:
    """The forecast without the context, which no allocator sees, against the steady peak."""
    name = f"{record.config['model']['name']} {record.config['precision']}"
    forecast = record.memory.forecast
    peak = record.ranks[0].peak_bytes if record.ranks else None
    if forecast is None or peak is None:
        return not_measured(f"forecast, {name}", f"{record.status}: {record.cause}")
    counted = forecast.total_bytes - forecast.parts.get("context", 0)
    gib = 2**30
    return near(f"forecast, {name}", counted / gib, peak / gib, "GiB", share=0.10)


def _fit(setting: Setting) -> Iterator[Check]:
    """The largest batch that the search confirms runs, and the next one that failed does not."""
    if setting.rehearse:
        yield not_measured("dpeval.fit under a limit", "memory_gib is enforced on GPUs only")
        return
    common = ["model=resnet50", "precision=bf16", "dataset=imagenette_like"]
    common += ["dataset.image_px=224", "dataset.train_images=256", "dataset.loader=constant"]
    common += [f"hardware.memory_gib={LIMIT_GIB}"]
    command = [sys.executable, "-m", "dpeval.fit", setting.hardware, *common, "study=fit"]
    status = call(command, setting.folder, "fit")
    found = sorted((setting.folder / "outputs/fit").rglob("fit.json"))
    if not found:
        yield Check("dpeval.fit", f"exit status {status}", "a batch", passed=False)
        return
    case = json.loads(found[-1].read_text())["cases"][0]
    fits, failed = case["confirmed_batch"], case["failed_batch"]
    yield report("largest batch by fit, resnet50 bf16, 4 GiB", fits, "images")
    yield near("by forecast alone", case["forecast_batch"], fits, "images", share=0.10)
    for batch, expected in ((fits, "ok"), (failed, "oom")):
        if not batch:
            continue
        (record,) = train(
            setting, "brute", *common, f"batch={batch}", "memory.on_excess=try", *FEW_STEPS
        )
        yield same(f"brute force at batch {batch}", record.status, expected)
