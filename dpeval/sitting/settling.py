"""Decide when a run of a sitting needs no further turns (``measure.until``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from dpeval.config import Config, curve_of
from dpeval.record.codes import StopReason
from dpeval.sitting.seat import Seat
from dpeval.stats import paired, steady_state
from dpeval.stats.best import compared_with_best


def judge(seat: Seat, seats: Sequence[Seat]) -> None:
    """Update a run's estimates, and decide whether it needs further turns.

    Args:
        seat: the run that has just had a turn.
        seats: all runs of the sitting.
    """
    step_s, numbers, first = seat.look()
    decision = steady_state.decide(step_s, seat.elapsed_s, seat.limits, taken=seat.steps)
    seat.mean = decision.interval
    if seat.base is not None:
        over, under = seat.base.by_round(), paired.by_round(step_s, numbers, first)
        seat.speedup = paired.ratio(over, under, "precision")
    reason = _reason(seat, seats, decision.reason)
    if reason is not None and (seat.is_at_limit or _may_leave(seat, seats)):
        seat.reason = reason


def _may_leave(seat: Seat, seats: Sequence[Seat]) -> bool:
    """Whether this run and those compared with it have enough ablation blocks."""
    compared = [other for other in seats if other.base is seat and other.is_measuring]
    return all(one.has_ablated for one in (seat, *compared))


def _reason(seat: Seat, seats: Sequence[Seat], reason: StopReason | None) -> StopReason | None:
    """Why `seat` needs no further turn, if so; `reason` is why its own mean needs none."""
    if seat.measure.until == "means" or seat.is_at_limit:
        return reason
    if seat.measure.until == "best":  # decided by rounds, unless there is nothing to choose from
        return reason if len(_racing(seat, seats)) == 1 and not _has_lost(seat, seats) else None
    compared = [other for other in seats if other.base is seat]
    if not (seat.base or compared):
        return reason
    if seat.base is None:
        return None if any(other.is_measuring for other in compared) else "ratios"
    if not seat.base.is_measuring:  # no further round can make the speedup more precise
        return reason or seat.base.reason
    was_narrow, seat.is_narrow = seat.is_narrow, _is_settled(seat)
    return "ratios" if was_narrow and seat.is_narrow else None


def _is_settled(seat: Seat) -> bool:
    """Whether the speedup is as precise as requested, from enough steps."""
    speedup = seat.speedup
    if speedup is None or not _has_enough_steps(seat):
        return False
    return speedup.rel_half_width <= seat.measure.rel_precision


def _has_enough_steps(seat: Seat) -> bool:
    return seat.steps >= seat.measure.min_steps + seat.measure.min_warmup_steps


def _rivals(seat: Seat, seats: Sequence[Seat]) -> list[Seat]:
    """The runs among which the best is sought, `seat` included."""
    mine = _task(seat.run.job.config)
    return [other for other in seats if _task(other.run.job.config) == mine]


def _racing(seat: Seat, seats: Sequence[Seat]) -> list[Seat]:
    """Those of them that have not failed and could still be the best."""
    return [one for one in _rivals(seat, seats) if one.is_running and one.reason != "best"]


def _has_lost(seat: Seat, seats: Sequence[Seat]) -> bool:
    """Whether some rivals are known not to be the best."""
    return any(other.reason == "best" for other in _rivals(seat, seats))


def _task(config: Config) -> Config:
    """What is trained, regardless of devices, batch and strategy."""
    return replace(curve_of(config), batch=1)


def judge_races(seats: Sequence[Seat]) -> None:
    """Stop runs that can no longer be the best and, once the best is settled, all its rivals.

    The best is settled when only one run could be it, or when all runs that could be it are known
    to be within ``measure.rel_precision`` of it. This must hold after two rounds in a row.

    Args:
        seats: all runs of the sitting.
    """
    judged: set[int] = set()
    for seat in seats:
        if seat.measure.until == "best" and id(seat) not in judged:
            judged |= {id(other) for other in _rivals(seat, seats)}
            racing = _racing(seat, seats)
            for one, is_settled in zip(racing, _settled(racing, seats), strict=True):
                was_narrow, one.is_narrow = one.is_narrow, is_settled
                if was_narrow and is_settled and one.is_measuring and _may_leave(one, seats):
                    one.reason = "best"


def _settled(racing: Sequence[Seat], seats: Sequence[Seat]) -> list[bool]:
    """Whether each run needs no further round: it is not the best, or the best is settled."""
    if len(racing) < 2:
        return [_has_lost(one, seats) for one in racing]
    if not all(_has_enough_steps(seat) for seat in racing):
        return [False] * len(racing)
    differences = paired.differences([seat.turns() for seat in racing])
    if differences is None:
        return [False] * len(racing)
    standing = compared_with_best(differences)
    near = math.log1p(racing[0].measure.rel_precision)
    able = [
        -low <= near
        for low, could in zip(standing.low.tolist(), standing.could_be_best, strict=True)
        if could
    ]
    return [len(able) == 1 or all(able) or not could for could in standing.could_be_best]
