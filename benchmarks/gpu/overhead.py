"""dpeval's loop against a bare one, interleaved, at a step that the host's launches bound."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import overhead
from benchmarks.gpu.checks import Check, at_most, report
from benchmarks.gpu.setting import Setting

LIMIT = 1.01


def run(setting: Setting) -> Iterator[Check]:
    """The ratio of steps for a small model, with DDP and without a wrapper."""
    base = [
        setting.hardware,
        "dataset=imagenette_like",
        "dataset.train_images=256",
        "dataset.image_px=32",
        "batch=8",
    ]
    base += ["dataset.loader=constant"]
    base += ["model=resnet18", "precision=fp32"]
    base += [f"repeat={4 if setting.rehearse else 100}"]
    for strategy in ("ddp", "none"):
        pairs = overhead.measure([*base, f"strategy={strategy}"])
        medians, means = overhead.ratio_of_medians(pairs), overhead.ratio_of_means(pairs)
        bare_s = overhead.bare_step_s(pairs)
        interval = f"95 % interval {medians.low:.4f}–{medians.high:.4f}"
        note = f"bare step {bare_s * 1e3:.2f} ms, {interval}"
        name = f"step over bare step, strategy={strategy}"
        yield at_most(name, medians.value, LIMIT, note, is_timing=True)
        note = f"95 % interval {means.low:.4f}–{means.high:.4f}"
        yield report(f"mean over bare mean, strategy={strategy}", means.value, "", note)
