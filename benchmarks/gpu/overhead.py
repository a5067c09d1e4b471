"""dpeval's loop against a bare one, interleaved, at a step that the host's launches bound."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import overhead
from benchmarks.gpu.checks import Check, at_most, report
from benchmarks.gpu.setting import Setting

LIMIT = 1.0
"""The most that dpeval may add to a bare step, in percent."""


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
        note = f"bare step {bare_s * 1e3:.2f} ms, 95 % interval {_percent(medians)}"
        name = f"more than a bare step, strategy={strategy}"
        more = 100 * (medians.value - 1)
        yield at_most(name, more, LIMIT, note, unit="%", is_timing=True)
        more = 100 * (means.value - 1)
        yield report(f"of means, strategy={strategy}", more, "%", f"95 %: {_percent(means)}")


def _percent(ratio: overhead.Ratio) -> str:
    return f"{100 * (ratio.low - 1):.1f} to {100 * (ratio.high - 1):.1f} %"
