"""What one rank did, as it is recorded."""

from __future__ import annotations

import numpy as np

from dpeval.instruments.step_buffer import column_of
from dpeval.record.measurement import Window
from dpeval.record.phases import PHASES, SYNC_PHASES
from dpeval.record.schema import Bucket, PhaseStats, RankRecord
from dpeval.run.job import Job
from dpeval.run.recording.outcome import Outcome
from dpeval.util import arrays
from dpeval.util.arrays import Bools, Floats
from dpeval.worker.messages import RankResult


def is_communication_measured(table: Floats, world_size: int) -> bool:
    """Whether the strategy times its all-reduces with the phase clock, as ``ddp`` does.

    A single rank communicates nothing, so its zeros are measurements.

    Args:
        table: one rank's rows of the step buffer, shape [steps, columns].
        world_size: ranks of the run.
    """
    return world_size == 1 or not len(table) or bool(column_of(table, "comm").any())


def rank_record(
    job: Job,
    rank: int,
    table: Floats,
    window: Window | None,
    outcome: Outcome,
    pids: dict[int, int],
    kept: Bools,
) -> RankRecord:
    """What a rank did in the steps that count, and what it reported at the end.

    Args:
        job: the run.
        rank: which of its ranks.
        table: the rank's rows of the step buffer for the steps that count, shape [steps, columns].
        window: the main window, if there is one.
        outcome: how the ranks ended.
        pids: process id per rank.
        kept: which of all steps count, shape [steps taken].
    """
    result = outcome.results.get(rank)
    times = result.reference_times if result is not None else None
    plan = job.plan.ranks[rank]
    first, last = (window.first, window.first + window.steps) if window is not None else (0, 0)
    has_comm = is_communication_measured(table, job.plan.world_size)
    phases = [phase for phase in PHASES if has_comm or phase not in SYNC_PHASES]
    if result is not None and result.metered is not None:
        told = {*result.metered.phases, *SYNC_PHASES}
        phases = [phase for phase in phases if phase in told]
    return RankRecord(
        rank=rank,
        host=result.host if result is not None else "",
        pid=pids.get(rank, 0),
        cpus=plan.cpus,
        device=plan.device,
        per_device_batch_size=plan.per_device_batch_size,
        threads=plan.threads,
        begin_s=arrays.rounded(column_of(table, "begin")),
        step_s=arrays.rounded(column_of(table, "step")),
        phase_s={phase: arrays.rounded(column_of(table, phase)) for phase in phases},
        comm_s=arrays.rounded(column_of(table, "comm")) if has_comm else [],
        comm_hidden_s=arrays.rounded(column_of(table, "comm_hidden")) if has_comm else [],
        stats={name: _stats(column_of(table, name)[first:last]) for name in (*phases, "step")}
        if last > first
        else {},
        buckets=_buckets(result, first, last, kept),
        peak_bytes=result.peak_bytes if result is not None else outcome.peak_bytes.get(rank),
        peak_allocated_bytes=result.peak_allocated_bytes if result is not None else None,
        tuning_peak_bytes=result.tuning_peak_bytes if result is not None else None,
        baseline_bytes=result.baseline_bytes if result is not None else None,
        reference_times=times.counted(kept) if times is not None else None,
    )


def _stats(series: Floats) -> PhaseStats:
    low, median, high = np.quantile(series, (0.05, 0.5, 0.95))
    return PhaseStats(
        median_s=float(median), mean_s=float(series.mean()), p05_s=float(low), p95_s=float(high)
    )


def _buckets(result: RankResult | None, first: int, last: int, kept: Bools) -> list[Bucket]:
    """The buckets over steps `first` to `last` of those that count."""
    if result is None or last <= first:
        return []
    chosen = np.flatnonzero(kept)[first:last]
    found = []
    for _, (nbytes, series) in sorted(result.buckets.items()):
        # Buckets are rebuilt after the first step, so a series may lack it: count from the end.
        places = chosen - len(kept) + len(series)
        times = np.array(series)[places[places >= 0]]
        if len(times):
            found.append(
                Bucket(
                    bytes=nbytes,
                    allreduce_median_s=float(np.median(times)),
                    allreduce_s=arrays.rounded(times),
                )
            )
    return found
