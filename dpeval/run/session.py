"""A session on one machine: what its runs share is detected, prepared and started only once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from dpeval.components.tasks import forecast_task
from dpeval.config import Config, DatasetConfig
from dpeval.data import Source, prepare, used
from dpeval.devices import cuda
from dpeval.errors import ConfigError, DataError, MachineError, ModelError, NoForecast
from dpeval.planning.predictor import Predictor, study_folder
from dpeval.planning.rank_plan import make_plan
from dpeval.record.machine import Environment, Machine
from dpeval.record.plan import Plan
from dpeval.record.schema import Cause, DatasetUsed, MemoryRecord, Record
from dpeval.run import execute as execution
from dpeval.run import forkserver
from dpeval.run.console import Reporter
from dpeval.run.job import Job, Node
from dpeval.run.recording.record_files import RecordFiles
from dpeval.system.environment import environment
from dpeval.system.topology import detect


class Session:
    """Plans runs for this machine and executes them one at a time."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        # The server imports torch while this process inspects the machine and the data.
        forkserver.warm_up()
        self.machine: Machine = detect(cuda.cuda_gpus())
        self.environment: Environment = environment(
            self.machine, extra_versions=cuda.library_versions()
        )
        self.predictor = Predictor(self.machine)
        self.files = RecordFiles()
        self._sources: dict[DatasetConfig, Source] = {}

    def job(
        self,
        config: Config,
        folder: Path,
        overrides: list[str],
        node: Node | None = None,
        *,
        keep_fault: bool = False,
    ) -> Job:
        """Plan one run for this machine.

        Args:
            config: the run's configuration.
            folder: where its record goes.
            overrides: the user's overrides of the defaults.
            node: this process's node, if the run has several.
            keep_fault: keep a fault of the model in the job, which then fails when it is executed.

        Raises:
            ConfigError: the model, optimizer or strategy cannot be built or trained as configured.
            MachineError: the run is forecast to exceed its memory and
                ``memory.on_excess=error``.
        """
        try:
            self.predictor.check(config)
        except ModelError as error:
            if not keep_fault:
                raise
            plan = make_plan(config, self.machine)
            return Job(config, plan, folder, tuple(overrides), node, fault=error)
        plan = self._in_time(config, make_plan(config, self.machine), folder, node)
        job = Job(config, plan, folder, tuple(overrides), node)
        if config.memory.on_excess == "error":
            self.plan_memory(job)
        return job

    def _in_time(self, config: Config, plan: Plan, folder: Path, node: Node | None) -> Plan:
        """`plan`, marked as skipped if an earlier record proves its time limit too short.

        The nodes of a run must agree on whether it starts, and they may see different records, so
        a run on several nodes is always tried.
        """
        if plan.skip is not None or node is not None:
            return plan
        line = self.predictor.too_short(
            config, plan, self.environment, study_folder(folder, config.study)
        )
        if line is None:
            return plan
        return plan.model_copy(update={"skip": line, "skip_kind": "time_limit"})

    def plan_memory(self, job: Job) -> Job:
        """`job` with its memory forecast, and with micro-batches if it needs them.

        Raises:
            MachineError: the run is forecast to exceed its memory and ``memory.on_excess=error``.
        """
        if job.plan.skip is not None or job.fault is not None:
            return job
        folder = study_folder(job.folder, job.config.study)
        try:
            decision = self.predictor.decide(job.config, job.plan, folder)
        except NoForecast as error:
            return replace(job, memory=MemoryRecord(decision=str(error)))
        if decision.action == "error":
            raise MachineError(decision.line)
        memory = MemoryRecord(
            forecast=decision.forecast,
            budget=decision.budget,
            action=decision.action,
            decision=decision.line,
            devices_needed=decision.devices_needed,
        )
        plan = job.plan.model_copy(update={"micro_batches": decision.micro_batches})
        return replace(job, memory=memory, plan=plan)

    @staticmethod
    def require_sound(jobs: list[Job]) -> None:
        """Raise an error if every one of `jobs` has a fault.

        Raises:
            ModelError: no model can be built.
            DataError: no data can be prepared.
        """
        faults = {str(job.fault): job.fault for job in jobs if job.fault is not None}
        if faults and all(job.fault is not None for job in jobs):
            raise type(next(iter(faults.values())))("; ".join(faults))

    def require_any(self, jobs: list[Job]) -> None:
        """Raise an error if none of `jobs` can start here.

        Raises:
            ConfigError: every time limit is too short.
            ModelError: no model can be built.
            DataError: no data can be prepared.
            MachineError: the machine lacks the devices even for the smallest run.
        """
        self.require_sound(jobs)
        if any(job.plan.skip is None for job in jobs):
            return
        short = [job for job in jobs if job.plan.skip_kind == "time_limit"]
        if short:
            raise ConfigError(str(min(short, key=lambda job: job.config.batch).plan.skip))
        smallest = min(jobs, key=lambda job: job.plan.world_size)
        if self.machine.gpus or smallest.config.hardware.kind != "gpu":
            raise MachineError(str(smallest.plan.skip))
        counts = sorted({job.plan.world_size for job in jobs})
        raise MachineError(
            f"hardware=gpu num_devices={','.join(map(str, counts))} needs CUDA or ROCm GPUs, and "
            f"{cuda.why_no_gpus(self.machine.host)}; use hardware=cpu"
        )

    def prepare_all(self, jobs: list[Job], *, keep_fault: bool = False) -> list[Job]:
        """Prepare the data of every job that will run, before any of them starts.

        Args:
            jobs: planned by :meth:`job`.
            keep_fault: a fault of the data is that of its jobs, which then fail when they are
                executed.

        Returns:
            `jobs`, with their faults.

        Raises:
            DataError: some data cannot be prepared; of all jobs, if faults are kept.
        """
        faults: dict[DatasetConfig, DataError] = {}
        prepared: list[Job] = []
        for job in jobs:
            data = job.config.dataset
            if job.plan.skip is None and job.fault is None and data not in faults:
                try:
                    self._data(job)
                except DataError as error:
                    if not keep_fault:
                        raise
                    faults[data] = error
            prepared.append(replace(job, fault=job.fault or faults.get(data)))
        self.require_any(prepared)
        return prepared

    def _data(self, job: Job) -> tuple[Source | None, DatasetUsed | None]:
        """The prepared data of one job, and what its record says of it, if dpeval loads it."""
        if job.config.task.has_own_data:
            return None, None
        source = self.prepare(job.config.dataset)
        forecast_task(job.config).check_source(source)
        return source, used(source, job.config.dataset)

    def prepare(self, config: DatasetConfig) -> Source:
        """The data of one configuration, prepared at most once per session."""
        if config not in self._sources:
            source = prepare(config, self.reporter.say)
            self.predictor.train_images[config] = source.train_samples
            self._sources[config] = source
        return self._sources[config]

    def assist(self, job: Job) -> bool:
        """Run this node's ranks of a run that node 0 records; return whether they succeeded."""
        if job.plan.skip is not None:
            return True  # node 0 skips it too, and records why
        return execution.assist(job, self._data(job)[0], self.reporter)

    def execute(self, job: Job) -> Record:
        """Run or skip one job, and write its record to ``job.folder``."""
        job = self.announce(job)
        record = self.skipped(job)
        if record is None:
            record = self.measure(job)
        self.reporter.run_ended(job, record)
        return record

    def measure(self, job: Job) -> Record:
        """Run one announced job, alone on this machine."""
        source, dataset = self._data(job)
        return execution.execute(job, source, dataset, self.environment, self.reporter, self.files)

    def look_ahead(self, jobs: Iterable[Job]) -> None:
        """Begin the forecasts of `jobs`, all of which will be announced now."""
        startable = (job for job in jobs if job.plan.skip is None and job.fault is None)
        self.predictor.look_ahead((job.config, job.plan) for job in startable)

    def announce(self, job: Job) -> Job:
        """Tell the user that `job` begins; return it with its memory forecast."""
        job = self.plan_memory(job)
        self.reporter.run_started(job)
        is_unknown = job.memory.forecast is None and job.memory.decision
        if is_unknown or job.memory.action not in ("run", "skip"):
            self.reporter.say(f"memory: {job.memory.decision}")
        return job

    def skipped(self, job: Job) -> Record | None:
        """Write and return the record of a job that is not to be started; None if it can start."""
        if job.plan.skip is not None:
            reason = Cause(kind=job.plan.skip_kind, message=job.plan.skip)
        elif job.memory.action == "skip":
            reason = Cause(kind="memory", message=job.memory.decision)
        elif job.fault is not None:
            reason = Cause(kind="setup", message=str(job.fault))
        else:
            return None
        return execution.skip(job, self.environment, reason, self.files)

    def live(self, job: Job) -> execution.LiveRun:
        """`job`, ready to start."""
        return execution.LiveRun(job, *self._data(job), self.environment, self.files)
