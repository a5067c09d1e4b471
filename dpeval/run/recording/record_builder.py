"""Build the record of a run from the step buffer and the results of its ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpeval.config import CAUSAL_LM, identity, to_plain
from dpeval.instruments.step_buffer import StepBuffer, column_of, sum_columns
from dpeval.record import schema
from dpeval.record.codes import Status, StopReason
from dpeval.record.conditions import Conditions
from dpeval.record.machine import Environment
from dpeval.record.measurement import Window
from dpeval.record.phases import COMPUTE_PHASES
from dpeval.record.schema import (
    Cause,
    DatasetUsed,
    Loss,
    Record,
    SetupTimes,
    Sitting,
    Warning,
    readings,
)
from dpeval.run.job import Job, Span
from dpeval.run.recording import ablation_record, endings
from dpeval.run.recording.outcome import Outcome
from dpeval.run.recording.ranks import is_communication_measured, rank_record
from dpeval.stats import machine_speed, reentry, steady_state
from dpeval.stats import throughput as throughput_module
from dpeval.stats.record_warnings import find_warnings
from dpeval.stats.throughput import throughput
from dpeval.util.arrays import Bools, Floats
from dpeval.util.display.plural import counted
from dpeval.worker.messages import Metered

LOSS_STEPS = 5
NO_ABLATION = "ablation: a script cannot be made to skip gradient synchronisation"
NO_LOSS = "loss: known to the script alone"
UNTIMED_SCRIPT = (
    "exposed communication and load balance: the script's ranks do not synchronise through "
    "DistributedDataParallel, or their communication is part of backward"
)
BOUND = "ablation: strategy '{strategy}' cannot skip gradient synchronisation"
UNTIMED = (
    "exposed communication and load balance: strategy '{strategy}' does not time its "
    "communication, which is part of backward"
)


def blank(
    job: Job,
    environment: Environment,
    started_at: str,
    *,
    status: Status = "failed",
    cause: Cause | None = None,
    dataset: DatasetUsed | None = None,
) -> Record:
    """The record of a run before anything is measured.

    Args:
        job: the run.
        environment: the hardware and software of this machine.
        started_at: ISO 8601 with offset.
        status: how the run ends if nothing more is recorded.
        cause: why it is not ``ok``.
        dataset: the data it trains on.
    """
    return schema.blank(
        to_plain(job.config),
        identity(job.config),
        job.overrides,
        status,
        cause,
        environment=environment,
        started_at=started_at,
        plan=job.plan,
        dataset=dataset,
        memory=job.memory,
    )


def finish(
    record: Record,
    job: Job,
    step_buffer: StepBuffer,
    outcome: Outcome,
    conditions: Conditions | None,
    span: Span,
    pids: dict[int, int],
) -> Record:
    """Complete `record` with everything that was measured, however the run ended.

    Args:
        record: from :func:`blank`.
        job: the run.
        step_buffer: the step series of all ranks.
        outcome: how the ranks ended.
        conditions: the state of the machine, if it was sampled.
        span: when the run began, and how long it waited for its turns.
        pids: process id per rank.
    """
    steps = min((step_buffer.steps(local) for local in range(step_buffer.ranks)), default=0)
    held = suspended(_rows_here(job, step_buffer, steps), outcome.pauses)
    kept = _kept(record.sitting, steps) & ~held
    record = _without_reentry(record, kept)
    ended = len(outcome.results) == len(pids)
    fields: dict[str, Any] = {
        "status": endings.status(outcome, ended),
        "cause": endings.cause(outcome, ended),
        "wall_s": time.monotonic() - span.begun_s - span.waited_s,
        "conditions": conditions,
    }
    if kept.any():
        fields |= _series(job, step_buffer, outcome, kept, span, pids)
        fields["ablation"] = ablation_record.ablation(outcome, record.sitting, fields)
        if conditions is not None:
            seen = readings(fields["ranks"], fields["window"])
            unknown = machine_speed.not_measured(seen)
            found = {
                "bad": conditions.bad + machine_speed.disturbances(seen),
                "unreadable": conditions.unreadable + ([unknown] if unknown else []),
            }
            fields["conditions"] = conditions.model_copy(update=found)
        if fields["status"] == "ok" and fields["window"] is None:
            fields |= {
                "status": "failed",
                "cause": endings.cut_short(job, step_buffer, outcome, steps),
            }
        power_w = conditions.power_w if conditions is not None else None
        if record.sitting is not None:
            step_j = record.sitting.energy_j_per_step
            if step_j is not None:
                samples = fields.get("samples_per_step") or job.plan.global_batch_size
                fields["energy_j_per_img"] = step_j / samples
        # The energy of other nodes is not measured here.
        elif power_w is not None and job.node is None and "throughput" in fields:
            fields["energy_j_per_img"] = power_w / fields["throughput"].img_per_s
    elif fields["status"] == "oom":
        # No step was finished, but the memory of each rank is still worth recording.
        fields["ranks"] = [
            rank_record(job, rank.rank, step_buffer.rows(rank.rank)[:0], None, outcome, pids, kept)
            for rank in job.plan.ranks
        ]
    made = record.model_copy(update=fields)
    metered = _metered(outcome)
    told = [*outcome.notes, *(metered.doubts if metered is not None else ())]
    notes = [Warning(code="script", text=note) for note in told]
    warnings = [*find_warnings(made), *_suspended(outcome, held), *notes]
    return made.model_copy(update={"warnings": warnings})


def _rows_here(job: Job, step_buffer: StepBuffer, steps: int) -> list[Floats]:
    """The rows of the ranks on this node: other nodes have other clocks."""
    here = [rank for rank in job.plan.ranks if rank.node == job.plan.ranks[0].node]
    return [step_buffer.rows(rank.rank)[:steps] for rank in here]


def _suspended(outcome: Outcome, held: Bools) -> list[Warning]:
    """A warning if the whole run was suspended while it was measured."""
    if not held.any():
        return []
    total_s = sum(end_s - begin_s for begin_s, end_s in outcome.pauses)
    text = (
        f"the run was suspended for {total_s:.0f} s, by its scheduler or from a terminal; "
        f"{counted(int(held.sum()), 'step')} of that time left out"
    )
    return [Warning(code="suspended", text=text)]


def _kept(sitting: Sitting | None, steps: int) -> Bools:
    """Which steps count: not those at the start of a turn that cost more than the rest."""
    if sitting is None:
        return np.ones(steps, dtype=bool)
    return reentry.kept(sitting.rounds[:steps], sitting.reentry.steps)


def _without_reentry(record: Record, kept: Bools) -> Record:
    """`record` with the rounds of the steps that count."""
    if record.sitting is None:
        return record
    rounds = np.asarray(record.sitting.rounds[: len(kept)])[kept].tolist()
    changed = {"rounds": rounds, "left_out": int((~kept).sum())}
    return record.model_copy(update={"sitting": record.sitting.model_copy(update=changed)})


def _series(
    job: Job,
    step_buffer: StepBuffer,
    outcome: Outcome,
    kept: Bools,
    span: Span,
    pids: dict[int, int],
) -> dict[str, Any]:
    """The fields derived from the series of the steps that all ranks finished and that count."""
    buffered = [step_buffer.rows(local)[: len(kept)] for local in range(step_buffer.ranks)]
    rows = [table[kept] for table in buffered]
    step_s = [column_of(table, "step") for table in rows]
    stopped_by = endings.stopped_by(outcome)
    window = _window(step_s, stopped_by, job)
    ranks = [
        rank_record(job, rank, table, window, outcome, pids, kept)
        for rank, table in enumerate(rows)
    ]
    has_comm = [is_communication_measured(table, job.plan.world_size) for table in rows]
    fields: dict[str, Any] = {
        "ranks": ranks,
        "window": window,
        "setup": _setup(rows, outcome, span),
    }
    metered = _metered(outcome)
    unit, samples = _samples(job, step_buffer, outcome)
    if unit != "img" or metered is not None:
        fields |= {"unit": unit, "samples_per_step": samples}
    if window is not None:
        main = slice(window.first, window.first + window.steps)
        found = throughput(samples, [series[main] for series in step_s], window.step_s)
        if job.config.task.kind == CAUSAL_LM:
            sequences = job.plan.global_batch_size / window.step_s.mean
            found = found.model_copy(update={"sequences_per_s": sequences})
        fields["throughput"] = found
        compute = [sum_columns(table[main], COMPUTE_PHASES) for table in rows]
        # Without it, waiting for others is part of backward, and all ranks seem equally busy.
        if all(has_comm):
            fields["balance"] = throughput_module.load_balance(compute)
    fields["loss"] = _loss(job, outcome)
    is_bound = any(result.cannot_ablate for result in outcome.results.values())
    lacking = {UNTIMED: not all(has_comm), BOUND: is_bound}
    strategy = job.config.strategy.name
    if metered is not None:
        untimed = [UNTIMED_SCRIPT] * (not all(has_comm) and not metered.missing)
        fields["missing"] = [*metered.missing, *untimed, NO_ABLATION, NO_LOSS]
        return fields
    fields["missing"] = [text.format(strategy=strategy) for text, is_so in lacking.items() if is_so]
    return fields


def _samples(job: Job, step_buffer: StepBuffer, outcome: Outcome) -> tuple[str, float]:
    """What a sample is, and how many of them all ranks process in a step."""
    metered = _metered(outcome)
    whole: float = job.plan.global_batch_size
    if metered is not None:
        return metered.unit, metered.samples_per_step or whole
    results = [outcome.results.get(rank.rank) for rank in job.plan.ranks]
    own = [one.samples_per_step for one in results if one is not None and one.samples_per_step]
    unit = next((one.unit for one in results if one is not None), None)
    if unit is None or len(own) < len(results):  # a rank failed
        unit = step_buffer.unit or job.config.task.unit
        return unit, whole * step_buffer.samples_per_item
    return unit, sum(own)


def _metered(outcome: Outcome) -> Metered | None:
    """What the meter of the first rank that has one says; None for dpeval's own loop."""
    found = (outcome.results[rank].metered for rank in sorted(outcome.results))
    return next(filter(None, found), None)


def _window(step_s: list[Floats], stopped_by: StopReason, job: Job) -> Window | None:
    if len(step_s[0]) < job.config.measure.steps_for_a_mean:
        return None
    return steady_state.window(step_s, stopped_by, job.config.measure)


def suspended(rows: list[Floats], pauses: Sequence[tuple[float, float]]) -> Bools:
    """Which steps were under way while the whole run was suspended.

    Args:
        rows: per rank, its rows of the step buffer, shape [steps, columns].
        pauses: begin and end of each pause on the clock of the rows, s.
    """
    begin_s = np.min([column_of(table, "begin") for table in rows], axis=0)
    end_s = np.max([column_of(table, "begin") + column_of(table, "step") for table in rows], axis=0)
    held = np.zeros(len(begin_s), dtype=bool)
    for from_s, to_s in pauses:
        held |= (begin_s < to_s) & (end_s > from_s)
    return held


def _setup(rows: list[Floats], outcome: Outcome, span: Span) -> SetupTimes:
    """Time before the first step; for each part, that of the slowest rank."""
    parts: dict[str, float] = {}
    for result in outcome.results.values():
        for name, value in result.setup_s.items():
            parts[name] = max(value, parts.get(name, 0.0))
    first_begin_s = min(float(column_of(table, "begin")[0]) for table in rows)
    return SetupTimes(
        total_s=max(0.0, first_begin_s - span.begun_s - span.waited_before_s),
        first_step_s=max(float(column_of(table, "step")[0]) for table in rows),
        parts_s=parts,
    )


def _loss(job: Job, outcome: Outcome) -> Loss | None:
    """Mean loss over the global batch, of the first and the last steps."""
    if len(outcome.results) < len(job.plan.ranks) or _metered(outcome) is not None:
        return None
    weights = [rank.weight for rank in job.plan.ranks]
    series = [outcome.results[rank.rank].losses for rank in job.plan.ranks]
    total = [
        sum(weight * loss for weight, loss in zip(weights, step, strict=True))
        for step in zip(*series, strict=False)
    ]
    return Loss(start=_finite_mean(total[:LOSS_STEPS]), end=_finite_mean(total[-LOSS_STEPS:]))


def _finite_mean(values: list[float]) -> float | None:
    mean = float(np.mean(values)) if values else math.nan
    return mean if math.isfinite(mean) else None
