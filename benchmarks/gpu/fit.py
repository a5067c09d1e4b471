"""The search for the largest batch against brute force, under a limit of 4 GiB."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from benchmarks.gpu.checks import Check, not_measured, report, same
from benchmarks.gpu.memory import FEW_STEPS
from benchmarks.gpu.runs import call, train
from benchmarks.gpu.setting import Setting

LIMIT_GIB = 4


def run(setting: Setting) -> Iterator[Check]:
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
    yield report("by forecast alone", case["forecast_batch"], "images")
    for batch, expected in ((fits, "ok"), (failed, "oom")):
        if not batch:
            continue
        (record,) = train(
            setting, "brute", *common, f"batch={batch}", "memory.on_excess=try", *FEW_STEPS
        )
        yield same(f"brute force at batch {batch}", record.status, expected)
