"""Decides whether an earlier record proves that a time limit is too short.

Nothing else rejects a run for its time. The speed of matrix products does not bound convolutions,
which use other kernels, and a measurement on a busy machine bounds nothing. A run that turns out
too slow ends at its time limit and is recorded as ``failed``, with the time that it needs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpeval.config import MeasureConfig
from dpeval.config.identity import OUTPUT_KEYS
from dpeval.record.machine import Environment
from dpeval.record.plan import Plan, RankPlan
from dpeval.record.schema import Record
from dpeval.stats.steady_state import seconds_for_a_window

MARGIN = 2.0
"""The factor by which the same step may be faster than in an earlier run: the host of a virtual
machine is less busy, the CPU clock is higher, or files are now in the page cache."""
NOT_IN_A_STEP = frozenset([*OUTPUT_KEYS, "measure", "repetition", "seed"])
"""Keys of a configuration that do not change how long a step takes."""


@dataclass(frozen=True)
class Setting:
    """What determines how long a step takes. If anything here differs, a record proves nothing."""

    config: str
    """All keys but :data:`NOT_IN_A_STEP`, as JSON."""
    environment: Environment
    """Machine, versions, and environment variables that change speed."""
    ranks: tuple[RankPlan, ...]
    """Device, CPUs, threads and batch of every rank."""

    @classmethod
    def of(cls, config: dict[str, Any], environment: Environment, plan: Plan) -> Setting:
        """The setting of a run.

        Args:
            config: as in a record, or as :func:`dpeval.config.to_plain` gives it.
            environment: where the run was or will be executed.
            plan: what every rank does.
        """
        kept = {key: value for key, value in config.items() if key not in NOT_IN_A_STEP}
        return cls(json.dumps(kept, sort_keys=True, default=str), environment, tuple(plan.ranks))


@dataclass(frozen=True)
class Timing:
    """The steps of one earlier run."""

    setting: Setting
    shortest_step_s: float
    """The first step, which includes one-time costs, is left out."""


def timing_of(record: Record) -> Timing | None:
    """What `record` proves about the time of a step; None if it proves nothing.

    A record counts if its run was not stopped except by its time limit, used no micro-batches, and
    the machine was monitored throughout and found undisturbed.
    """
    plan, seen = record.plan, record.conditions
    if plan is None or plan.micro_batches != 1 or not _ended_by_itself(record):
        return None
    if seen is None or seen.bad or not seen.foreign_share:
        return None
    steps = list(zip(*(rank.step_s for rank in record.ranks), strict=False))[1:]
    if not steps:
        return None
    setting = Setting.of(record.config, record.environment, plan)
    return Timing(setting, min(max(step) for step in steps))


def _ended_by_itself(record: Record) -> bool:
    if record.status == "failed":
        return record.cause is not None and record.cause.kind == "time_limit"
    return record.status == "ok"


def too_short(
    measure: MeasureConfig, setting: Setting, earlier: Sequence[Timing | None]
) -> str | None:
    """Why ``measure.time_limit_s`` is too short for a mean; None unless a record proves it.

    The time limit starts when the first step has finished, and a step that is running when the time
    is up is still completed.

    Args:
        measure: the time limit and the minimum number of steps.
        setting: the setting of the run to judge.
        earlier: earlier runs; those in another setting are ignored.
    """
    shortest_s = min(
        (one.shortest_step_s for one in earlier if one is not None and one.setting == setting),
        default=0.0,
    )
    steps = measure.steps_for_a_mean
    if (steps - 2) * shortest_s / MARGIN < measure.time_limit_s:
        return None
    return (
        f"measure.time_limit_s={measure.time_limit_s:g} is too short: {steps} steps are needed, "
        f"and no step of an earlier run with these settings took less than {shortest_s:.3g} s; "
        f"use measure.time_limit_s={seconds_for_a_window(measure, shortest_s)} or more"
    )
