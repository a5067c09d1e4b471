"""One run: a plan becomes ranks, their marks become exactly one record, whatever happens."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dpeval import assemble, record, supervise
from dpeval.board import Board, Stage
from dpeval.conditions import ConditionSampler
from dpeval.config import Config
from dpeval.machine import Environment
from dpeval.plan import Plan
from dpeval.record import Cause, DatasetUsed, Record

if TYPE_CHECKING:
    from dpeval.data import Source


@dataclass(frozen=True)
class Job:
    """One run as asked for: its configuration, plan and the folder of its record."""

    config: Config
    plan: Plan
    folder: Path
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Snapshot:
    """Where a run is, for a progress display."""

    stage: Stage
    steps: int
    elapsed_s: float
    img_per_s: float
    rel_half_width: float


class Watcher(Protocol):
    """Something that shows a run's progress to a person."""

    def progress(self, job: Job, snapshot: Snapshot) -> None: ...


def skip(job: Job, environment: Environment, reason: Cause) -> Record:
    """Record a run that is not started, and why."""
    skipped = assemble.blank(job, environment, _now(), status="skipped", cause=reason)
    record.write(skipped, job.folder / record.FILE_NAME)
    return skipped


def execute(
    job: Job, source: Source, dataset: DatasetUsed, environment: Environment, watcher: Watcher
) -> Record:
    """Run `job` on this machine and leave its record in ``job.folder``.

    Every ending leaves a record: ``ok``, ``oom``, ``failed`` or ``interrupted``. A bug in dpeval
    itself is recorded as ``failed`` too, and then raised.
    """
    begun, begun_s = _now(), time.monotonic()
    path = job.folder / record.FILE_NAME
    blank = assemble.blank(job, environment, begun, dataset=dataset)
    try:
        made = _measure(job, source, blank, begun_s, watcher)
    except BaseException as error:
        cause = Cause(kind="bug", message=str(error), exception=type(error).__name__)
        failed = blank.model_copy(
            update={"status": "failed", "cause": cause, "wall_s": time.monotonic() - begun_s}
        )
        record.write(failed, path)
        raise
    record.write(made, path)
    return made


def _measure(job: Job, source: Source, blank: Record, begun_s: float, watcher: Watcher) -> Record:
    from dpeval.worker import RankTask

    config, plan = job.config, job.plan
    board = Board(supervise.context(), plan.world_size, config.measure.max_steps)
    store, port = supervise.serve_store("127.0.0.1")
    env = _environment_of_ranks(config)
    tasks = [
        RankTask(config, plan, rank.rank, source, "127.0.0.1", port, env) for rank in plan.ranks
    ]
    ranks = supervise.Ranks(tasks, board, config.hardware)
    sampler = _sampler(plan, ranks.pids) if config.measure.conditions else None
    tick = _ticker(job, board, sampler, watcher)
    outcome = ranks.watch(tick)
    del store  # served the ranks until the last of them had ended
    conditions = sampler.finish() if sampler is not None else None
    return assemble.finish(blank, job, board, outcome, conditions, begun_s, ranks.pids)


def _ticker(
    job: Job, board: Board, sampler: ConditionSampler | None, watcher: Watcher
) -> Callable[[], None]:
    begin_s = time.monotonic()

    def tick() -> None:
        stage = board.stage(0)
        if sampler is not None and stage == Stage.MEASURING:
            sampler.sample()
        step_s, rel_half_width, _ = board.estimate(0)
        watcher.progress(
            job,
            Snapshot(
                stage=stage,
                steps=board.steps(0),
                elapsed_s=time.monotonic() - begin_s,
                img_per_s=job.plan.global_batch / step_s if step_s else 0.0,
                rel_half_width=rel_half_width,
            ),
        )

    return tick


def _sampler(plan: Plan, pids: dict[int, int]) -> ConditionSampler:
    gpus = [int(rank.device.removeprefix("cuda:")) for rank in plan.ranks if rank.device != "cpu"]
    return ConditionSampler({pids[rank.rank]: rank.cpus for rank in plan.ranks}, gpus=gpus)


def _environment_of_ranks(config: Config) -> dict[str, str]:
    """Variables that keep a single-node run on loopback and its thread pools at their size."""
    interface = config.hardware.interface or "lo"
    threads = str(config.hardware.cores_per_device)
    return {
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": interface,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")
