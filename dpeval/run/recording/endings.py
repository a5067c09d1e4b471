"""How a run ended and why, as its record says it."""

from __future__ import annotations

import numpy as np

from dpeval.instruments.step_buffer import StepBuffer, column_of
from dpeval.record.codes import Status, StopReason
from dpeval.record.schema import Cause, Record
from dpeval.run.job import Job
from dpeval.run.recording.outcome import Failure, Outcome
from dpeval.stats import steady_state
from dpeval.util.display.plural import counted

NOT_RETURNED = (
    "loss, ablation, buckets and reference times: dpeval ended before the ranks returned them"
)
NO_FINAL_RECORD = (
    "dpeval was killed while it measured, or still measures; what was measured until then is kept"
)
_AS_ASKED: tuple[StopReason, ...] = ("precision", "ratios", "best")


def interrupted(record: Record, signal: str) -> Record:
    """`record` of a run that had measured everything when `signal` arrived."""
    return record.model_copy(
        update={"status": "interrupted", "cause": _interrupt(signal, ended=True)}
    )


def provisional(record: Record) -> Record:
    """`record` of a run whose ranks are alive, as it is to be read if no other replaces it.

    It is ``ok`` if all that was asked for is known, else ``interrupted``.
    """
    window = record.window
    if window is not None and window.stopped_by in _AS_ASKED:
        missing = [*record.missing, NOT_RETURNED]
        return record.model_copy(update={"status": "ok", "cause": None, "missing": missing})
    cause = Cause(kind="lost", message=NO_FINAL_RECORD)
    return record.model_copy(update={"status": "interrupted", "cause": cause})


def _interrupt(signal: str, *, ended: bool) -> Cause:
    what = "what was measured until then is kept" if ended else "ranks killed"
    return Cause(kind="interrupt", message=f"interrupted by {signal}; {what}", signal=signal)


def status(outcome: Outcome, ended: bool) -> Status:
    if outcome.interrupted_by is not None:
        return "interrupted"
    if ended and outcome.failure is None:
        return "ok"
    return "oom" if outcome.failure is not None and outcome.failure.kind == "oom" else "failed"


def cause(outcome: Outcome, ended: bool) -> Cause | None:
    if outcome.interrupted_by is not None:
        return _interrupt(outcome.interrupted_by, ended=ended)
    failure: Failure | None = outcome.failure
    if failure is None:
        return None
    return Cause(
        kind=failure.kind,
        message=failure.message,
        rank=failure.rank,
        exception=failure.exception,
        signal=failure.signal,
        log=failure.log,
    )


def cut_short(job: Job, step_buffer: StepBuffer, outcome: Outcome, steps: int) -> Cause:
    """Why a run without a failure has no mean: it ended before there was a window.

    Args:
        job: the run.
        step_buffer: the step series of all ranks.
        outcome: how the ranks ended.
        steps: how many steps all ranks finished.
    """
    limits = job.config.measure
    if stopped_by(outcome) == "ended":
        needed = limits.steps_for_a_mean
        message = (
            f"{job.config.task.name} ended its loop after {counted(steps, 'step')}, too few for a "
            f"mean; let it train for {needed} steps or more"
        )
        return Cause(kind="script", message=message)
    step_s = float(np.median(column_of(step_buffer.rows(0)[:steps], "step")))
    return Cause(
        kind="time_limit",
        message=(
            f"measure.time_limit_s={limits.time_limit_s:g} ended the run after "
            f"{counted(steps, 'step')} of {step_s:.3g} s, too few for a mean; "
            f"use measure.time_limit_s={steady_state.seconds_for_a_window(limits, step_s)} or more"
        ),
    )


def stopped_by(outcome: Outcome) -> StopReason:
    result = outcome.results.get(0)
    return result.stopped_by if result is not None else outcome.stopped_by
