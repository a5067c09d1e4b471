"""Execute one run: start its ranks, supervise them, and write exactly one record."""

from __future__ import annotations

import contextlib
import functools
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from dpeval.data import Source
from dpeval.errors import DpevalError
from dpeval.instruments.step_buffer import Stage, StepBuffer
from dpeval.record.codes import Status, StopReason
from dpeval.record.conditions import Conditions
from dpeval.record.machine import Environment
from dpeval.record.plan import RankPlan
from dpeval.record.schema import Cause, DatasetUsed, Record, Sitting, now
from dpeval.run import forkserver, multi_node
from dpeval.run.job import Job, ProgressListener, Snapshot, Span, StoreAddress
from dpeval.run.rank_supervisor import RankSupervisor
from dpeval.run.recording import endings, record_builder
from dpeval.run.recording.record_files import RecordFiles, keep_provisional
from dpeval.stats import paired
from dpeval.system.conditions import ConditionSampler
from dpeval.system.faults import of_system
from dpeval.system.gpu.reader import UsedGpu
from dpeval.system.processes.process import avoid_cpus
from dpeval.system.processes.signals import stop_signals
from dpeval.worker.environment import rank_environment, script_task
from dpeval.worker.messages import RankTask


def skip(job: Job, environment: Environment, reason: Cause, files: RecordFiles) -> Record:
    """Write the record of a run that is not started: skipped, or failed if its set-up failed.

    Args:
        job: the run.
        environment: the hardware and software of this machine.
        reason: why it is not started.
        files: writes its record.
    """
    status: Status = "failed" if reason.kind == "setup" else "skipped"
    skipped = record_builder.blank(job, environment, now(), status=status, cause=reason)
    files.keep(skipped, job.folder)
    return skipped


def execute(
    job: Job,
    source: Source | None,
    dataset: DatasetUsed | None,
    environment: Environment,
    listener: ProgressListener,
    files: RecordFiles,
) -> Record:
    """Run `job` on this machine and write its record to ``job.folder``.

    A record is written however the run ends: ``ok``, ``oom``, ``failed`` or ``interrupted``. A bug
    in dpeval itself is recorded as ``failed``, then raised. A stop signal takes its usual effect
    only after the record is written, and none if the record says ``interrupted``.

    Args:
        job: the run, planned for this machine.
        source: its prepared data; None if a script loads its own.
        dataset: what the record says about that data.
        environment: the hardware and software of this machine.
        listener: shows progress.
        files: writes its record.
    """
    run = LiveRun(job, source, dataset, environment, files)
    with stop_signals() as received:
        try:
            with run.bugs_recorded():
                made = _carried_out(run, listener, received)
        except (DpevalError, OSError):
            if run.failed is None or run.failed.cause is None or run.failed.cause.kind == "bug":
                raise
            made = run.failed
    if received and made.status != "interrupted":
        signal.raise_signal(signal.Signals[received[-1]])
    return made


def _carried_out(run: LiveRun, listener: ProgressListener, received: Sequence[str]) -> Record:
    """Start `run`, supervise it to its end, and return its record."""
    run.start()
    sampler = make_sampler([run]) if run.job.config.measure.conditions else None
    run.watch(sampler, listener, received)
    conditions = sampler.finish() if sampler is not None else None
    return run.finish(conditions, received=received)


class LiveRun:
    """One run on this machine, from the start of its ranks to its record."""

    def __init__(
        self,
        job: Job,
        source: Source | None,
        dataset: DatasetUsed | None,
        environment: Environment,
        files: RecordFiles,
    ) -> None:
        """Start nothing yet.

        Args:
            job: the run, planned for this machine.
            source: its prepared data; None if a script loads its own.
            dataset: what the record says about that data.
            environment: the hardware and software of this machine.
            files: writes its record.
        """
        self.job, self._source, self._files = job, source, files
        self._span = Span(time.monotonic())
        self._blank = record_builder.blank(job, environment, now(), dataset=dataset)
        self.step_buffer = _step_buffer(job)
        self._is_recorded = False
        self.failed: Record | None = None
        """The record of a run whose ranks could not be started or supervised."""

    def start(self, *, gated: bool = False) -> None:
        """Start the ranks; if `gated`, they step only on turns that ``ranks.gates`` grants."""
        job = self.job
        # Anew: runs that take turns are made together, and start one after another.
        self._span.begun_s = time.monotonic()
        self._blank = self._blank.model_copy(update={"started_at": now()})
        interface, host = job.config.hardware.interface or "lo", "127.0.0.1"
        if job.node is not None:
            interface, host = multi_node.interface_of(job.config)
        # The store is kept alive until all ranks have ended.
        self._store, port = forkserver.serve_store(host)
        if job.node is not None:
            multi_node.announce(job.node, host, port)
        address = StoreAddress(host, port, interface)
        self.ranks = _start_ranks(job, self._source, self.step_buffer, address, gated=gated)
        self.pids = dict(self.ranks.pids)

    def watch(
        self,
        sampler: ConditionSampler | None,
        listener: ProgressListener,
        received: Sequence[str],
    ) -> None:
        """Supervise the ranks until all have ended.

        Args:
            sampler: watches the machine; None if nothing does.
            listener: shows progress.
            received: the stop signals so far, from
                :func:`dpeval.system.processes.signals.stop_signals`.
        """
        _watch(self.job, self.ranks, self.step_buffer, sampler, listener, received)

    def waited(self, seconds: float) -> None:
        """Exclude `seconds` during which only other runs were on turn."""
        self._span.waited_s += seconds
        if self.step_buffer.steps(0) == 0:
            self._span.waited_before_s += seconds

    def finish(
        self,
        conditions: Conditions | None,
        sitting: Sitting | None = None,
        base: Record | None = None,
        received: Sequence[str] = (),
    ) -> Record:
        """Write and return the record of a run whose ranks have ended.

        Args:
            conditions: the state of the machine, if it was sampled.
            sitting: the turns it took; None if it took none.
            base: the run it is compared with, if both took turns.
            received: the stop signals so far; one that arrived after the last step interrupts a run
                that has measured everything.
        """
        node = self.job.node
        build = functools.partial(self._built, conditions, sitting, base, received)
        if node is not None and not multi_node.has_all_parts(node):
            # At once: while this node waits for the others, somebody may end its job.
            self._files.keep(build(part_timeout_s=0.0), self.job.folder)
        made = build(part_timeout_s=multi_node.PART_TIMEOUT_S)
        self._files.keep(made, self.job.folder)
        self._is_recorded = True
        return made

    def keep_so_far(self, sitting: Sitting, stopped_by: StopReason) -> None:
        """Write a provisional record of a run whose ranks are alive.

        Args:
            sitting: the turns it has taken.
            stopped_by: why it needs no further turn; ``interrupted``: it does.
        """
        made = self._built(None, sitting, None, (), part_timeout_s=0.0, stopped_by=stopped_by)
        keep_provisional(endings.provisional(made), self.job.folder)

    def _built(
        self,
        conditions: Conditions | None,
        sitting: Sitting | None,
        base: Record | None,
        received: Sequence[str],
        *,
        part_timeout_s: float,
        stopped_by: StopReason = "interrupted",
    ) -> Record:
        """The record, with the results of other nodes that arrive within `part_timeout_s`.

        `stopped_by` is why measuring ended, unless the ranks return it; see also :meth:`finish`.
        """
        job, blank = self.job, self._blank.model_copy(update={"sitting": sitting})
        outcome, pids = replace(self.ranks.outcome, stopped_by=stopped_by), self.pids
        if job.node is not None:
            outcome, pids = replace(outcome, results=dict(outcome.results)), dict(pids)
            plan = multi_node.collect_parts(
                job.node, job.plan, self.step_buffer, outcome, pids, part_timeout_s
            )
            job, blank = replace(job, plan=plan), blank.model_copy(update={"plan": plan})
        made = record_builder.finish(
            blank, job, self.step_buffer, outcome, conditions, self._span, pids
        )
        if base is not None:
            made = paired.compared(made, base)
        if received and made.status == "ok":
            made = endings.interrupted(made, received[0])
        return made

    @contextlib.contextmanager
    def bugs_recorded(self) -> Iterator[None]:
        """Record any exception raised here as a bug or a fault of the machine, then re-raise it."""
        try:
            yield
        except Exception as error:
            if self._is_recorded:
                raise
            fault = of_system(error) if isinstance(error, OSError) else None
            is_bug = fault is None and not isinstance(error, DpevalError)
            cause = Cause(
                kind="bug" if is_bug else "setup",
                message=str(fault or error),
                exception=type(error).__name__,
            )
            self.failed = self._blank.model_copy(
                update={
                    "status": "failed",
                    "cause": cause,
                    "wall_s": time.monotonic() - self._span.begun_s,
                }
            )
            self._files.keep(self.failed, self.job.folder)
            raise


def assist(job: Job, source: Source | None, listener: ProgressListener) -> bool:
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
    address = multi_node.find(job.node, job.config)
    ranks = _start_ranks(job, source, step_buffer, address)
    pids = dict(ranks.pids)
    with stop_signals() as received:
        _watch(job, ranks, step_buffer, None, listener, received)
    multi_node.write_part(job.node, job.plan, step_buffer, ranks.outcome, pids)
    return ranks.outcome.failure is None


def _step_buffer(job: Job) -> StepBuffer:
    return StepBuffer(forkserver.context(), job.plan.world_size, job.config.measure.max_steps)


def ranks_here(job: Job) -> list[RankPlan]:
    """The ranks of this node."""
    index = job.node.index if job.node is not None else 0
    return [rank for rank in job.plan.ranks if rank.node == index]


def _start_ranks(
    job: Job,
    source: Source | None,
    step_buffer: StepBuffer,
    address: StoreAddress,
    *,
    gated: bool = False,
) -> RankSupervisor:
    tasks = [
        RankTask(
            job.config,
            job.plan,
            rank.rank,
            source,
            address.host,
            address.port,
            rank_environment(rank.threads, address.interface),
        )
        for rank in ranks_here(job)
    ]
    if job.config.task.is_script:
        tasks = [script_task(task, job.folder) for task in tasks]
    return RankSupervisor(tasks, step_buffer, job.config, gated=gated)


def _watch(
    job: Job,
    ranks: RankSupervisor,
    step_buffer: StepBuffer,
    sampler: ConditionSampler | None,
    listener: ProgressListener,
    received: Sequence[str],
) -> None:
    """Supervise this node's ranks; return when all have ended."""
    notice = multi_node.FailureNotice(job.node) if job.node is not None else None
    with off_the_cores_of([job]):
        elsewhere = notice.failure_elsewhere if notice is not None else lambda: None
        tick = _ticker(job, step_buffer, sampler, listener)
        outcome = ranks.watch(tick, elsewhere, received)
    if notice is not None and outcome.failure is not None and outcome.failure.kind != "interrupt":
        notice.post()


def off_the_cores_of(jobs: Sequence[Job]) -> AbstractContextManager[None]:
    """Keep this process off the cores of the jobs' ranks and loaders, where others are free."""
    here = [rank for job in jobs for rank in ranks_here(job)]
    computing = {cpu for rank in here for cpu in rank.cpus}
    loading = {cpu for rank in here for cpu in rank.spare_cpus}
    return avoid_cpus(computing | loading, computing)


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
                img_per_s=samples_per_step(job, step_buffer) / step_s if step_s else 0.0,
                rel_half_width=rel_half_width,
                unit=unit_of(job, step_buffer),
            ),
        )

    return tick


def samples_per_step(job: Job, step_buffer: StepBuffer) -> float:
    """Samples of all ranks in a step, as far as it is known while the run is measured."""
    return job.plan.global_batch_size * step_buffer.samples_per_item


def unit_of(job: Job, step_buffer: StepBuffer) -> str:
    """What a sample of the run is, as far as it is known while the run is measured."""
    return step_buffer.unit or job.config.task.unit


def make_sampler(runs: Sequence[LiveRun]) -> ConditionSampler:
    """A sampler for started runs, whose ranks do not count as load on each other."""
    rank_cpus: dict[int, Sequence[int]] = {}
    gpus: dict[int, UsedGpu] = {}
    for run in runs:
        here = ranks_here(run.job)
        rank_cpus |= {run.pids[rank.rank]: rank.cpus for rank in here}
        for index, used in used_gpus(here, run.pids).items():
            known = gpus.get(index)
            gpus[index] = UsedGpu(used.uuid, [*(known.own_pids if known else []), *used.own_pids])
    return ConditionSampler(rank_cpus, gpus=gpus)


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
