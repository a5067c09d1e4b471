"""How long a step takes at least, so that a time without room for a window starts nothing.

A bound, not a forecast: what is refused could not have ended with a mean. Where nothing is known
of a step (a GPU's first run, a model that needs data to be walked) nothing is refused, and a run
whose time was too short ends as ``failed`` with the time that it needs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dpeval.config import MeasureConfig
from dpeval.devices.numerics import AUTOCAST_DTYPES
from dpeval.record.schema import Record
from dpeval.stats.steady_state import steps_for_a_mean

MARGIN = 2.0
"""How much faster than expected a step may be: a machine that was busy when its speed was taken,
convolutions by an algorithm that needs fewer products (Winograd 2.25 times at most)."""
PRODUCT_SIDE, PRODUCT_TRIES = 512, 8
"""A product of two such matrices takes a core 1 to 5 ms, and is as fast as its arithmetic gets."""


@dataclass(frozen=True)
class Pace:
    """How long a step is expected to take if nothing holds it up."""

    step_s: float
    sure_s: float
    """No step can be shorter."""
    why: str
    """How this is known, in words."""


@dataclass(frozen=True)
class Past:
    """What one run of the past tells of steps on as many devices with as many images, or more."""

    devices: int
    images: int
    """Per device."""
    compute_s: float
    """What the slowest rank of it computed in a step."""


def known(step_s: float) -> Pace:
    """The pace of a model that tells how long its step takes (`least_step_s`)."""
    return Pace(step_s, step_s, "as the model says")


def counted(flops: float, images: int, flops_per_s: float) -> Pace:
    """The pace of `images` images that need `flops` operations, on a device of known speed."""
    why = (
        f"{images} image{'s' * (images != 1)} per device are {flops / 1e9:.3g} GFLOP a step, and "
        f"a device here does not reach {MARGIN * flops_per_s / 1e9:.3g} GFLOP/s"
    )
    step_s = flops / flops_per_s
    return Pace(step_s, step_s / MARGIN, why)


def remembered(devices: int, images: int, past: Sequence[Past]) -> Pace | None:
    """The pace that earlier runs suggest whose ranks had no more work and no more neighbours."""
    fewer = [run for run in past if run.devices <= devices and run.images <= images]
    if not fewer:
        return None
    longest = max(fewer, key=lambda run: run.compute_s)
    why = (
        f"an earlier run here computed {longest.compute_s:.3g} s a step for {longest.images} "
        f"image{'s' * (longest.images != 1)} per device"
    )
    return Pace(longest.compute_s, longest.compute_s / MARGIN, why)


def past_of(record: Record) -> Past | None:
    """What a record teaches; None where it has no steps, or a machine that was not its own."""
    if record.status != "ok" or record.balance is None or record.plan is None:
        return None
    if record.conditions is not None and record.conditions.bad:
        return None
    plan = record.plan
    images = max(rank.batch for rank in plan.ranks)
    return Past(plan.world_size, images, max(record.balance.compute_s))


def too_short(measure: MeasureConfig, paces: Sequence[Pace]) -> str | None:
    """Why ``measure.time_limit_s`` leaves no room for a mean; None where it may.

    The step during which the time runs out is still finished.
    """
    if not paces:
        return None
    pace = max(paces, key=lambda one: one.sure_s)
    steps = steps_for_a_mean(measure)
    if (steps - 1) * pace.sure_s < measure.time_limit_s:
        return None
    enough_s = math.ceil((measure.min_warmup_steps + measure.min_steps) * pace.step_s)
    return (
        f"measure.time_limit_s={measure.time_limit_s:g} leaves no time for a mean, which takes "
        f"{steps} steps, here of {pace.sure_s:.2g} s at least ({pace.why}); "
        f"give measure.time_limit_s={enough_s} or more"
    )


def core_flops_per_s(precision: str) -> float:
    """What one core does in a product of matrices, the best of some tries, FLOP/s."""
    dtype = AUTOCAST_DTYPES.get(precision, torch.float32)
    factor = torch.ones(PRODUCT_SIDE, PRODUCT_SIDE, dtype=dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        factor @ factor
        best_s = math.inf
        for _ in range(PRODUCT_TRIES):
            begin_s = time.perf_counter()
            factor @ factor
            best_s = min(best_s, time.perf_counter() - begin_s)
    finally:
        torch.set_num_threads(threads)
    return 2.0 * PRODUCT_SIDE**3 / best_s
