"""Execute one run: start its ranks, supervise them, and write exactly one record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from dpeval import record
from dpeval.data import Source
from dpeval.instruments.step_buffer import Stage, StepBuffer
from dpeval.record.conditions import Conditions
from dpeval.record.machine import Environment
from dpeval.record.plan import RankPlan
from dpeval.record.schema import Cause, DatasetUsed, Record, now
from dpeval.run import forkserver, multi_node, rank_supervisor, record_builder
from dpeval.run.job import Job, ProgressListener, Snapshot, StoreAddress
from dpeval.run.outcome import Outcome
from dpeval.system.conditions import ConditionSampler
from dpeval.system.gpu.reader import UsedGpu
from dpeval.system.process import avoid_cpus
from dpeval.worker.messages import RankTask


def skip(job: Job, environment: Environment, reason: Cause) -> Record:
    """Write the record of a run that is not started.

    Args:
        job: the run.
        environment: the hardware and software of this machine.
        reason: why it is skipped.
    """
    skipped = record_builder.blank(job, environment, now(), status="skipped", cause=reason)
    record.write(skipped, job.folder / record.FILE_NAME)
    return skipped


def execute(
    job: Job,
    source: Source,
    dataset: DatasetUsed,
    environment: Environment,
    listener: ProgressListener,
) -> Record:
    """Run `job` on this machine and write its record to ``job.folder``.

    A record is written however the run ends: ``ok``, ``oom``, ``failed`` or ``interrupted``. A bug
    in dpeval itself is recorded as ``failed``, then raised.

    Args:
        job: the run, planned for this machine.
        source: its prepared data.
        dataset: what the record says about that data.
        environment: the hardware and software of this machine.
        listener: shows progress.
    """
    begun, begun_s = now(), time.monotonic()
    path = job.folder / record.FILE_NAME
    blank = record_builder.blank(job, environment, begun, dataset=dataset)
    try:
        made = _measure(job, source, blank, begun_s, listener)
    except BaseException as error:
        cause = Cause(kind="bug", message=str(error), exception=type(error).__name__)
        failed = blank.model_copy(
            update={"status": "failed", "cause": cause, "wall_s": time.monotonic() - begun_s}
        )
        record.write(failed, path)
        raise
    record.write(made, path)
    return made


def _measure(
    job: Job, source: Source, blank: Record, begun_s: float, listener: ProgressListener
) -> Record:
    interface, host = job.config.hardware.interface or "lo", "127.0.0.1"
    if job.node is not None:
        interface, host = multi_node.interface_of(job.config)
    step_buffer = _step_buffer(job)
    store, port = forkserver.serve_store(host)
    if job.node is not None:
        multi_node.announce(job.node, host, port)
    store_address = StoreAddress(host, port, interface)
    outcome, pids, conditions = _run_ranks(job, source, step_buffer, store_address, listener)
    if job.node is not None:
        plan = multi_node.collect_parts(job.node, job.plan, step_buffer, outcome, pids)
        job, blank = replace(job, plan=plan), blank.model_copy(update={"plan": plan})
    del store  # kept alive until all ranks had ended
    return record_builder.finish(blank, job, step_buffer, outcome, conditions, begun_s, pids)


def assist(job: Job, source: Source, listener: ProgressListener) -> bool:
    """Run this node's ranks of a run that node 0 records.

    Args:
        job: the run; ``job.node`` is this node.
        source: its prepared data.
        listener: shows progress.

    Returns:
        Whether the ranks succeeded.
    """
    assert job.node is not None
    step_buffer = _step_buffer(job)
    outcome, pids, _ = _run_ranks(
        job, source, step_buffer, multi_node.find(job.node, job.config), listener
    )
    multi_node.write_part(job.node, job.plan, step_buffer, outcome, pids)
    return outcome.failure is None


def _step_buffer(job: Job) -> StepBuffer:
    return StepBuffer(forkserver.context(), job.plan.world_size, job.config.measure.max_steps)


def _run_ranks(
    job: Job,
    source: Source,
    step_buffer: StepBuffer,
    store_address: StoreAddress,
    listener: ProgressListener,
) -> tuple[Outcome, dict[int, int], Conditions | None]:
    """Start and supervise this node's ranks; return when all have ended."""
    config = job.config
    index = job.node.index if job.node is not None else 0
    here = [rank for rank in job.plan.ranks if rank.node == index]
    tasks = [
        RankTask(
            config,
            job.plan,
            rank.rank,
            source,
            store_address.host,
            store_address.port,
            _rank_environment(rank.threads, store_address.interface),
        )
        for rank in here
    ]
    ranks = rank_supervisor.RankSupervisor(tasks, step_buffer, config.hardware)
    pids = dict(ranks.pids)
    sampler = _sampler(here, pids) if config.measure.conditions else None
    notice = multi_node.FailureNotice(job.node) if job.node is not None else None
    computing = {cpu for rank in here for cpu in rank.cpus}
    loading = {cpu for rank in here for cpu in rank.spare_cpus}
    with avoid_cpus(computing | loading, computing):
        elsewhere = notice.failure_elsewhere if notice is not None else lambda: None
        outcome = ranks.watch(_ticker(job, step_buffer, sampler, listener), elsewhere)
    if notice is not None and outcome.failure is not None and outcome.failure.kind != "interrupt":
        notice.post()
    return outcome, pids, sampler.finish() if sampler is not None else None


def _ticker(
    job: Job, step_buffer: StepBuffer, sampler: ConditionSampler | None, listener: ProgressListener
) -> Callable[[], None]:
    begin_s: float | None = None

    def tick() -> None:
        nonlocal begin_s
        stage = step_buffer.stage(0)
        if begin_s is None and step_buffer.steps(0) > 0:
            begin_s = time.monotonic()
        if sampler is not None and stage == Stage.MEASURING:
            sampler.sample()
        step_s, rel_half_width, _ = step_buffer.estimate(0)
        listener.progress(
            job,
            Snapshot(
                stage=stage,
                steps=step_buffer.steps(0),
                elapsed_s=time.monotonic() - begin_s if begin_s is not None else 0.0,
                img_per_s=job.plan.global_batch_size / step_s if step_s else 0.0,
                rel_half_width=rel_half_width,
            ),
        )

    return tick


def _sampler(ranks: list[RankPlan], pids: dict[int, int]) -> ConditionSampler:
    rank_cpus = {pids[rank.rank]: rank.cpus for rank in ranks}
    return ConditionSampler(rank_cpus, gpus=used_gpus(ranks, pids))


def used_gpus(ranks: list[RankPlan], pids: dict[int, int]) -> dict[int, UsedGpu]:
    """The GPUs of `ranks` by CUDA index, from the ranks' process ids."""
    on_gpus: dict[int, list[RankPlan]] = {}
    for rank in ranks:
        if rank.device != "cpu":
            on_gpus.setdefault(int(rank.device.removeprefix("cuda:")), []).append(rank)
    return {
        index: UsedGpu(sharing[0].gpu_uuid, [pids[rank.rank] for rank in sharing])
        for index, sharing in on_gpus.items()
    }


def _rank_environment(threads: int, interface: str) -> dict[str, str]:
    """Variables that bind a rank to one network interface and set the size of its thread pools."""
    return {
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": interface,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }
