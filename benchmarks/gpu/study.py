"""The first study: batches, precisions, loaders, memory formats and strategies on one GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from benchmarks.gpu.checks import Check, report
from benchmarks.gpu.runs import call, train
from benchmarks.gpu.setting import Setting
from dpeval.commands.batch_search import expand
from dpeval.record.schema import Record

TINY = (
    "model=resnet18",
    "dataset.image_px=32",
    "dataset.train_images=256",
    "measure=quick",
    "measure.max_steps=12",
    "measure.time_limit_s=20",
)
"""For a rehearsal."""
FULL = (
    "dataset.image_px=224",
    "dataset.size=320px",
    "dataset.train_images=1000",
    "measure=quick",
    "measure.time_limit_s=8",
)


def run(setting: Setting) -> Iterator[Check]:
    """Throughput of every configuration, then dpeval's own analysis of all of them."""
    size = TINY if setting.rehearse else FULL
    base = ["dataset=imagenette_like", "dataset.loader=cached", *size]
    batches = "8" if setting.rehearse else "16,32,64,128"
    axes = {
        "batches": [f"batch={batches}", "precision=bf16,fp32"],
        "loaders": ["batch=64", "precision=bf16", "dataset.loader=resident,jpeg,constant"],
        "formats": ["batch=64", "precision=bf16,fp32", "memory_format=contiguous,channels_last"],
        "strategies": ["batch=64", "precision=bf16", "strategy=none,ddp"],
        "models": ["batch=64", "precision=bf16", "model=resnet18,resnet50,vit_b_16"],
    }
    if setting.rehearse:
        axes = {"batches": [f"batch={batches}", "precision=fp32"]}
    for name, overrides in axes.items():
        # One call for each run: a stage that is stopped keeps what was measured.
        for combination in expand(overrides):
            yield from map(_shown, train(setting, "study", *base, *combination))
        status = call(
            [sys.executable, "-m", "dpeval.analyze", "outputs/study"], setting.folder, "analysis"
        )
        yield report(f"analysis after {name}", f"exit status {status}")


def _shown(record: Record) -> Check:
    config = record.config
    name = (
        f"{config['model']['name']} batch {config['batch']} {config['precision']} "
        f"{config['dataset']['loader']} {config['memory_format']} {config['strategy']['name']}"
    )
    if record.throughput is None:
        why = record.cause.message if record.cause is not None else record.status
        return Check(name, record.status, note=why)
    rate, low, high = (
        record.throughput.img_per_s,
        record.throughput.low,
        record.throughput.high,
    )
    return report(name, rate, "img/s", f"95 %: {low:.0f} to {high:.0f}")
