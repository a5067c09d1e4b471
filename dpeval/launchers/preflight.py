"""Memory checks before submission: what each run needs, and which runs exceed their budget."""

from __future__ import annotations

from dpeval import record
from dpeval.config import Config, per_device_batches_of
from dpeval.errors import MachineError, ModelError, NoForecast
from dpeval.launchers.base import SweepJob
from dpeval.launchers.in_job.execution import setup_cause
from dpeval.launchers.tracking.job_spec import JobSpec, unmeasured
from dpeval.planning.memory.budget import Decision, decide
from dpeval.record.memory import Budget, Forecast
from dpeval.record.schema import Cause, MemoryRecord, Scheduler
from dpeval.util.display.units import GIB


class Preflight:
    """Forecasts the memory of runs that will execute on other machines.

    The free memory of a node is unknown here, so a run is refused before submission only if its
    budget is given (``hardware.memory_gib``); any other run is checked where it starts."""

    def __init__(self) -> None:
        # Late: importing torch takes seconds, and a sweep with nothing left to do does not need it.
        from dpeval.planning.predictor import Predictor
        from dpeval.record.machine import Machine

        nowhere = Machine(host="", cpus=[], gpus=[], memory_bytes=0)
        self._predictor = Predictor(nowhere)

    def fault(self, config: Config) -> ModelError | None:
        """Why the model of `config` cannot be trained; None if nothing speaks against it.

        Raises:
            ConfigError: the optimizer or the strategy cannot be built as configured.
        """
        try:
            self._predictor.check(config)
        except ModelError as error:
            return error
        return None

    def forecast(self, config: Config) -> Forecast | None:
        """Memory of the rank that needs most; None if the model cannot run on fake tensors."""
        try:
            return self._predictor.counted(config, max(per_device_batches_of(config)))
        except NoForecast:
            return None

    def refusal(self, config: Config) -> Decision | None:
        """The decision not to submit the run of `config`; None if it may be submitted.

        Raises:
            MachineError: it exceeds its given budget and ``memory.on_excess=error``.
        """
        given_gib = config.hardware.memory_gib
        if given_gib is None or self.forecast(config) is None:
            return None
        budget = Budget(bytes=int(given_gib * GIB), source="hardware.memory_gib")
        decision = decide(
            config.memory.on_excess,
            per_device_batches_of(config),
            lambda images, parts: self._predictor.counted(config, images, parts),
            lambda _: budget,
            strong=config.scaling.kind == "strong",
        )
        if decision.action == "error":
            raise MachineError(decision.line)
        return decision if decision.action == "skip" else None


def write_fault(job: SweepJob, fault: ModelError, launcher: str) -> None:
    """Write the record of a run that was not submitted because its model cannot be trained.

    Args:
        job: the run.
        fault: why not.
        launcher: name of the scheduler.

    Raises:
        OSError: the run's folder cannot be written.
    """
    spec = JobSpec.of(launcher, job.config, job.overrides, requeue=0)
    made = unmeasured(spec, "failed", setup_cause(fault), Scheduler(kind=launcher, job_id=""))
    record.write(made, job.folder / record.FILE_NAME)


def write_refusal(job: SweepJob, decision: Decision, launcher: str) -> None:
    """Write the record of a run that was not submitted because it exceeds its memory budget.

    Args:
        job: the run.
        decision: why it is skipped.
        launcher: name of the scheduler.

    Raises:
        OSError: the run's folder cannot be written.
    """
    spec = JobSpec.of(launcher, job.config, job.overrides, requeue=0)
    cause = Cause(kind="memory", message=decision.line)
    made = unmeasured(spec, "skipped", cause, Scheduler(kind=launcher, job_id=""))
    memory = MemoryRecord(
        forecast=decision.forecast,
        budget=decision.budget,
        action=decision.action,
        decision=decision.line,
        devices_needed=decision.devices_needed,
    )
    record.write(made.model_copy(update={"memory": memory}), job.folder / record.FILE_NAME)
