"""Forecasts of memory against measured peaks."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu.checks import Check, near, not_measured
from benchmarks.gpu.runs import train
from benchmarks.gpu.setting import Setting
from dpeval.record.schema import Record

CASES = {
    "vit_b_16": 64,
    "swin_b": 32,
    "mobilenet_v3_large": 128,
    "resnet50": 64,
    "densenet121": 64,
    "resnet18": 128,
}
"""Per model a batch of 224 px."""
FEW_STEPS = (
    "measure=quick",
    "measure.max_steps=8",
    "measure.rel_precision=1e-4",
    "measure.time_limit_s=120",
)


def run(setting: Setting) -> Iterator[Check]:
    """Six models in fp32 and bf16."""
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
