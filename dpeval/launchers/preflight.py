"""Memory before anything is submitted: what each run needs, and which cannot fit its budget."""

from __future__ import annotations

from dpeval import record
from dpeval.config import Config, per_device_batches_of
from dpeval.errors import MachineError, NoForecast
from dpeval.launchers.base import SweepJob
from dpeval.launchers.tracking.job_spec import JobSpec, unmeasured
from dpeval.planning.memory_budget import Decision, decide
from dpeval.record.memory import Budget, Forecast
from dpeval.record.schema import Cause, MemoryRecord, Scheduler
from dpeval.util.units import GIB


class Preflight:
    """Forecasts a sweep's runs for machines that are not this one.

    What a node will have free is not known here, so a run is refused in advance only where its
    budget is stated (``hardware.memory_gib``); every other is decided where it starts.
    """

    def __init__(self) -> None:
        # Late: torch takes seconds to import, and a sweep that is all done needs none of it.
        from dpeval.planning.predictor import Predictor
        from dpeval.record.machine import Machine

        nowhere = Machine(host="", cpus=[], gpus=[], memory_bytes=0)
        self._foresight = Predictor(nowhere)

    def forecast(self, config: Config) -> Forecast | None:
        """Memory of the fullest rank; None if its model cannot run on fake tensors.

        Raises:
            ConfigError: the model or the optimizer cannot be built or trained as asked.
        """
        self._foresight.check(config)
        try:
            return self._foresight.counted(config, max(per_device_batches_of(config)))
        except NoForecast:
            return None

    def refusal(self, config: Config) -> Decision | None:
        """The decision not to submit the run of `config`; None where it may go out.

        Raises:
            MachineError: it does not fit its stated budget and ``memory.on_excess=error``.
        """
        stated = config.hardware.memory_gib
        if stated is None or self.forecast(config) is None:
            return None
        budget = Budget(bytes=int(stated * GIB), source="hardware.memory_gib")
        decision = decide(
            config.memory.on_excess,
            per_device_batches_of(config),
            lambda images, parts: self._foresight.counted(config, images, parts),
            lambda _: budget,
            strong=config.scaling.kind == "strong",
        )
        if decision.action == "error":
            raise MachineError(decision.line)
        return decision if decision.action == "skip" else None


def leave_record(job: SweepJob, decision: Decision, launcher: str) -> None:
    """Leave the record of a run that was not submitted because it does not fit."""
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
