"""Levers on what is computed and by how many: batch, arithmetic, layout, threads, devices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dpeval.analysis.advice.levers.lever import Lever, Situation, without
from dpeval.analysis.advice.quantity import NORMAL, Quantity
from dpeval.analysis.frame.cohorts import FEATURES
from dpeval.analysis.frame.labels import configuration
from dpeval.analysis.scaling.contrasts import contrasts
from dpeval.util.display.ranges import percent

LEAST_GAIN = 0.02
_CPU_BF16 = {"amx_bf16": 4.0, "avx512_bf16": 1.6}
"""The most that bf16 speeds up computing, by the instruction set that does it."""
_GPU_TF32 = 3.0
_CHANNELS_LAST = 1.5
"""The most that channels_last speeds up convolutions; DenseNet121 on one core gains 1.3."""


@dataclass(frozen=True)
class Growth:
    """A step's time by its batch, t = fixed + slope · batch, at one device count."""

    fixed_s: float
    slope_s: float
    covariance: Any
    """Of the two, shape [2, 2]."""

    def time_s(self, batch: float) -> float:
        return self.fixed_s + self.slope_s * batch

    def rate_ratio(self, batch: float, larger: float) -> Quantity:
        """Throughput at `larger` over that at `batch`, with its 95 % interval."""
        ratio = larger / batch * self.time_s(batch) / self.time_s(larger)
        slopes = np.array([
            1 / self.time_s(batch) - 1 / self.time_s(larger),
            batch / self.time_s(batch) - larger / self.time_s(larger),
        ])  # fmt: skip
        half = NORMAL * math.sqrt(max(0.0, float(slopes @ self.covariance @ slopes)))
        return Quantity(ratio, ratio * math.exp(-half), ratio * math.exp(half))

    def computing(self, batch: float) -> float:
        """The share of a step that grows with the batch."""
        return min(1.0, max(0.0, self.slope_s * batch / self.time_s(batch)))


def growth(points: pd.DataFrame, devices: int) -> Growth | None:
    """The line through the steps of one device count, weighted by their errors; None: too few."""
    same = points[points["num_devices"] == devices]
    times = same["step_s"].to_numpy(dtype=float)
    errors = same["error_share"].to_numpy(dtype=float) * times
    if same["batch"].nunique() < 2 or not np.isfinite(errors).all() or (errors <= 0).any():
        return None
    design = np.column_stack([np.ones(len(same)), same["batch"].to_numpy(dtype=float)])
    weighted = design / errors[:, None]
    covariance = np.linalg.inv(weighted.T @ weighted)
    fixed, slope = covariance @ weighted.T @ (times / errors)
    if slope <= 0 or fixed + slope * float(same["batch"].min()) <= 0:
        return None
    return Growth(float(fixed), float(slope), covariance)


def batch(now: Situation) -> Lever | None:
    """A larger batch, where a step has costs that do not grow with it."""
    line = growth(now.points, now.devices)
    same = now.pooled[now.pooled["num_devices"] == now.devices]
    larger = 2 * now.batch
    if line is None or now.batch < same["batch"].max():
        return None  # a larger one was measured, or did not fit
    peak, budget = float(now.row["peak_bytes"]), float(now.row["budget_bytes"])
    if peak * 2 > budget:
        return None
    ratio = line.rate_ratio(now.batch, larger)
    if ratio.low <= 1 or ratio.value - 1 < LEAST_GAIN:
        return None
    fixed = line.fixed_s / line.time_s(now.batch)
    return Lever(
        "batch",
        f"Double the batch to {larger}",
        f"{percent(fixed)} of a step does not grow with the batch",
        # A straight line is the best case: what is fixed may begin to grow.
        Quantity(0.75 * (ratio.value - 1), (ratio.low - 1) / 3, ratio.high - 1),
        now.trying({"batch": f"{now.batch},{larger}"}),
        caution="it changes the training: the learning rate must follow",
    )


def accumulation(now: Situation) -> Lever | None:
    """Accumulated gradients, where a larger batch does not fit and synchronisation costs."""
    factor = now.synchronisation
    table = now.pooled
    absent = table[
        table["num_devices"].eq(now.devices)
        & table["batch"].gt(now.batch)
        & table["status"].isin(["oom", "skipped"])
    ]
    if factor is None or absent.empty or now.devices < 2 or factor.high >= 1 or not now.is_own_loop:
        return None
    larger = int(absent["batch"].min())
    parts = larger / now.batch
    saved = (1 - factor.value) * (1 - 1 / parts)
    if saved < LEAST_GAIN / 2:
        return None
    return Lever(
        "accumulation",
        f"Accumulate gradients up to batch {larger}",
        f"batch {larger} does not fit into memory, and synchronising every step costs "
        f"{percent(1 - factor.value)} of it",
        Quantity(without(saved), without((1 - factor.high) * (1 - 1 / parts)),
                 without(1 - factor.low)),
        now.trying({"batch": f"{now.batch},{larger}", "memory.on_excess": "accumulate"}),
        caution="it changes the training: the learning rate must follow",
    )  # fmt: skip


def _faster(computing: float, most: float) -> Quantity:
    """The gain where the share `computing` of a step gets faster by a factor of at most `most`."""
    likely, high = (without(computing * (1 - 1 / factor)) for factor in (math.sqrt(most), most))
    return Quantity(likely, 0.0, high)


def precision(now: Situation) -> Lever | None:
    """Faster arithmetic, where the device has it and computing takes most of a step."""
    if not now.is_own_loop or now.asked.get("precision") != "fp32":
        return None
    line = growth(now.points, now.devices)
    if now.is_gpu:
        to, most, why = "tf32", _GPU_TF32, "GPUs compute tf32 in tensor cores"
        # Without a slope it is not known whether the device or the host bounds the step.
        computing = line.computing(now.batch) if line is not None else 0.0
    else:
        features = now.place.get(FEATURES, "").split()
        known = next((name for name in _CPU_BF16 if name in features), None)
        if known is None:
            return None
        to, most, why = "bf16", _CPU_BF16[known], f"the CPU has {known}"
        measured = now.share("forward_s") + now.share("backward_s")
        computing = min(measured, line.computing(now.batch)) if line is not None else measured
    if computing < 0.3:
        return None
    return Lever(
        "precision",
        f"Compute in {to}",
        f"computing takes {percent(computing)} of a step in fp32, and {why}",
        _faster(computing, most),
        now.trying({"precision": f"fp32,{to}"}),
        caution="it changes the arithmetic: compare the losses",
    )


def memory_format(now: Situation) -> Lever | None:
    """Channels last, where convolutions run on contiguous tensors that suit them less."""
    used = now.asked.get("memory_format")
    suits = now.is_gpu and now.asked.get("precision") == "fp32"
    computing = now.share("forward_s") + now.share("backward_s")
    if used != "contiguous" or suits or computing < 0.3 or not now.is_own_loop:
        return None
    return Lever(
        "memory_format",
        "Store images channels last",
        f"computing takes {percent(computing)} of a step on contiguous tensors",
        _faster(computing, _CHANNELS_LAST),
        now.trying({"memory_format": "contiguous,channels_last"}),
    )


def threads(now: Situation) -> Lever | None:
    """Fewer ranks with more threads each, where synchronisation costs CPU ranks much."""
    factor, each = now.synchronisation, float(now.row["threads"])
    is_even = now.devices % 2 == 0
    if now.is_gpu or factor is None or not is_even or not each > 0 or now.asked == {}:
        return None
    lost = 1 - factor.value
    if lost < LEAST_GAIN or factor.high >= 1:
        return None
    # As many ranks with as many threads need twice the cores; where these are not there, that run
    # is skipped.
    swept = {
        "num_devices": f"{now.devices // 2},{now.devices}",
        "hardware.cores_per_device": f"{each:g},{2 * each:g}",
    }
    ranks = f"{now.devices // 2} rank{'s' * (now.devices > 2)}"
    return Lever(
        "threads",
        f"Use {ranks} of {2 * each:g} threads",
        f"gradient synchronisation costs {percent(lost)} of a step; half the ranks with twice "
        "the threads on the same cores synchronise less",
        Quantity(without(lost / 2), -without(lost), without(1 - factor.low)),
        now.trying(swept),
        caution="threads of a rank share work less well than ranks",
    )


def fewer_devices(now: Situation) -> Lever | None:
    """The configuration with the fewest device-hours, where it saves more than errors."""
    best = now.cheapest.best if now.cheapest is not None else None
    if best is None or best.num_devices >= now.devices:
        return None
    same = now.points["num_devices"].eq(best.num_devices) & now.points["batch"].eq(best.batch)
    other = now.points[same].iloc[0]
    longer, shortest, longest = contrasts(pd.DataFrame([dict(now.row), other])).ratio(0, 1)
    share = best.num_devices / now.devices
    saved = Quantity(1 - share * longer, 1 - share * longest, 1 - share * shortest)
    if not saved.low > LEAST_GAIN:
        return None
    name = configuration(best.num_devices, best.batch, now.row["scaling"], now.row["hardware"])
    return Lever(
        "fewer_devices",
        f"Use {name}",
        f"it takes {longer:.2g} times as long and fewer device-hours",
        saved,
        now.trying({
            "num_devices": ",".join(str(n) for n in sorted({best.num_devices, now.devices})),
            "batch": ",".join(str(n) for n in sorted({best.batch, now.batch})),
        }),
        of="device-hours",
        is_measured=True,
    )  # fmt: skip
