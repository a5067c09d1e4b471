"""Predicts each run's memory, budget and time for a session; computes each only once."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dpeval.components.check import check, has_single_sample
from dpeval.components.tasks import forecast_task
from dpeval.config import Config, DatasetConfig, to_plain
from dpeval.errors import ConfigError, NoForecast, RecordError
from dpeval.planning import step_time_bound
from dpeval.planning.memory.budget import Decision, budget, decide
from dpeval.planning.memory.forecast import PROCESS_BYTES, forecast
from dpeval.planning.memory.forecast_process import ForecastProcess
from dpeval.planning.memory.measured_peaks import Peak, learned, peak_of, work_key
from dpeval.planning.memory.training_trace import TrainingTrace
from dpeval.planning.rank_plan import backend
from dpeval.planning.step_time_bound import Setting, Timing, timing_of
from dpeval.record.io import below, read
from dpeval.record.machine import Environment, Machine
from dpeval.record.memory import Budget, Forecast
from dpeval.record.plan import Plan
from dpeval.record.schema import Record
from dpeval.system.gpu import libraries


@dataclass(frozen=True)
class EarlierRun:
    """What the record of one run shows about others that do the same work."""

    key: tuple[str, ...]
    peak: Peak | None
    timing: Timing | None

    @classmethod
    def of(cls, record: Record) -> EarlierRun:
        return cls(work_key(record.config), peak_of(record), timing_of(record))


@dataclass(frozen=True)
class _Asked:
    """What the forecast of a rank's memory depends on."""

    training: str
    """Everything but the batch; trainings that are equal here share their traces."""
    uses_nccl: bool
    train_images: int | None
    images: int
    micro_batches: int


class Predictor:
    """Forecasts, and decides what to do with, the runs of one session on `machine`."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.train_images: dict[DatasetConfig, int] = {}
        """Sizes of the datasets that have been prepared."""
        self._process = ForecastProcess()
        self._checked: set[str] = set()
        self._counted: dict[_Asked, Forecast | NoForecast] = {}
        self._begun: dict[_Asked, Callable[[], tuple[Forecast, TrainingTrace]]] = {}
        self._traces: dict[str, TrainingTrace] = {}
        self._listed: dict[Path, list[Path]] = {}
        self._read: dict[Path, EarlierRun | None] = {}

    def check(self, config: Config) -> None:
        """Reject what cannot train; see :func:`dpeval.components.check.check`.

        Raises:
            ConfigError: the model, the optimizer or the strategy cannot be built or trained as
                configured.
        """
        if config.task.is_script:
            return  # its model is unknown
        key = str(
            (
                config.task,
                config.model,
                config.optimizer,
                config.strategy,
                config.dataset,
                config.hardware.kind,
                # What the message names.
                (config.num_devices, config.batch) if has_single_sample(config) else None,
            )
        )
        if key not in self._checked:
            check(config)
            self._checked.add(key)

    def counted(self, config: Config, images: int, micro_batches: int = 1) -> Forecast:
        """The forecast by counting alone; see :func:`dpeval.planning.memory.forecast.forecast`.

        Args:
            config: the run's configuration.
            images: per-device batch of the fullest rank.
            micro_batches: parts into which that batch is divided.

        Raises:
            NoForecast: the model cannot run on fake tensors, or only the ranks can build it.
        """
        if config.task.has_own_data:
            raise NoForecast(
                f"not forecast: the needs of {config.task.name} show when it runs; its peak is "
                "recorded"
            )
        asked = self._asked(config, images, micro_batches)
        while self._begun:  # all of them: none may be at work beside a run
            with contextlib.suppress(ConfigError):  # told when that training is asked for
                self._finish(*self._begun.popitem())
        if asked not in self._counted:
            self._finish(asked, self._begin(self._process, config, asked))
        found = self._counted[asked]
        if isinstance(found, NoForecast):
            raise found
        return found

    def look_ahead(self, plans: Iterable[tuple[Config, Plan]]) -> None:
        """Begin the forecasts that most of the time goes to, two at a time, and do not wait.

        These are the smallest and the largest batch of each training; all others are scaled from
        them (:mod:`dpeval.planning.memory.training_trace`).
        """
        found: dict[str, dict[int, tuple[Config, _Asked]]] = {}
        for config, plan in plans:
            if not config.task.has_own_data:
                images = max(rank.per_device_batch_size for rank in plan.ranks)
                asked = self._asked(config, images, 1)
                found.setdefault(asked.training, {})[images] = config, asked
        processes = (self._process, ForecastProcess())  # the second ends with its last forecast
        for sizes in found.values():
            for process, images in zip(processes, {min(sizes), max(sizes)}, strict=False):
                config, asked = sizes[images]
                if asked not in self._counted:
                    with contextlib.suppress(NoForecast):  # told when it is asked for
                        self._begun[asked] = self._begin(process, config, asked)

    def _asked(self, config: Config, images: int, micro_batches: int) -> _Asked:
        is_resident = config.dataset.loader == "resident"
        return _Asked(
            json.dumps([*work_key(to_plain(config)), config.dataset.num_classes]),
            config.num_devices > 1 and backend(config, self._machine) == "nccl",
            self.train_images.get(config.dataset) if is_resident else None,
            images,
            micro_batches,
        )

    def _begin(
        self, process: ForecastProcess, config: Config, asked: _Asked
    ) -> Callable[[], tuple[Forecast, TrainingTrace]]:
        return process.begin(
            _forecast_without_gpu,
            config,
            asked.images,
            asked.micro_batches,
            self._traces.get(asked.training, TrainingTrace()),
            uses_nccl=asked.uses_nccl,
            train_images=asked.train_images,
        )

    def _finish(self, asked: _Asked, begun: Callable[[], tuple[Forecast, TrainingTrace]]) -> None:
        try:
            self._counted[asked], trace = begun()
        except NoForecast as error:
            self._counted[asked] = error
        else:
            self._traces.setdefault(asked.training, TrainingTrace()).add(trace)

    def forecast(self, config: Config, images: int, folder: Path | None = None) -> Forecast:
        """The forecast, corrected by the peaks measured so far.

        Args:
            config: the run's configuration.
            images: per-device batch of the fullest rank.
            folder: where earlier records of the same study lie.

        Raises:
            NoForecast: the model cannot run on fake tensors.
        """
        self._look_again(folder)
        return self._forecast(config, images, 1, folder)

    def _forecast(
        self, config: Config, images: int, micro_batches: int, folder: Path | None
    ) -> Forecast:
        counted = self.counted(config, images, micro_batches)
        peaks = [item.peak for item in self._earlier_runs(folder, config) if item.peak is not None]
        if not peaks:
            return counted
        if micro_batches == 1:
            return learned(counted, images, peaks)
        part = math.ceil(images / micro_batches)
        undivided = learned(self.counted(config, part), part, peaks)
        return counted.with_allowance_of(undivided)

    def decide(self, config: Config, plan: Plan, folder: Path | None = None) -> Decision:
        """Decide what to do with a run, from its forecast and its budget; starts nothing.

        Args:
            config: the run's configuration.
            plan: what its ranks would do.
            folder: where earlier records of the same study lie.

        Raises:
            NoForecast: the model cannot run on fake tensors.
        """
        self._look_again(folder)
        return decide(
            config.memory.on_excess,
            [rank.per_device_batch_size for rank in plan.ranks],
            lambda images, parts: self._forecast(config, images, parts, folder),
            self.budget_at(config),
            strong=config.scaling.kind == "strong",
        )

    def too_short(
        self, config: Config, plan: Plan, environment: Environment, folder: Path
    ) -> str | None:
        """Why the time limit of a run is too short for a mean; None unless a record proves it.

        Args:
            config: the run's configuration.
            plan: what its ranks would do.
            environment: where it would run.
            folder: the study's earlier records. Only those that exist at the first call count: a
                sweep calls this for all of its runs before any of them starts.
        """
        setting = Setting.of(to_plain(config), environment, plan)
        earlier = [item.timing for item in self._earlier_runs(folder, config)]
        return step_time_bound.too_short(config.measure, setting, earlier)

    def budget_at(self, config: Config) -> Callable[[int], Budget]:
        """The budget of one rank, from the number of ranks of the whole run."""
        gpu = config.hardware.kind == "gpu"
        free = libraries.free_bytes([item.uuid for item in self._machine.gpus]) if gpu else []

        def at(devices: int) -> Budget:
            ranks = math.ceil(devices / config.num_nodes)
            return budget(
                config.hardware,
                self._machine,
                ranks,
                shared_bytes=PROCESS_BYTES,
                gpu_free_bytes=free[:ranks],
            )

        return at

    def _earlier_runs(self, folder: Path | None, config: Config) -> list[EarlierRun]:
        """The runs under `folder` whose ranks did the same work, with any batch."""
        if folder is None:
            return []
        if folder not in self._listed:
            self._listed[folder] = sorted(below(folder))
        key = work_key(to_plain(config))
        found = [self._earlier_run(path) for path in self._listed[folder]]
        return [item for item in found if item is not None and item.key == key]

    def _look_again(self, folder: Path | None) -> None:
        """Let the next call see records that were added to `folder` since the last one."""
        if folder is not None:
            self._listed.pop(folder, None)

    def _earlier_run(self, path: Path) -> EarlierRun | None:
        if path not in self._read:
            try:
                self._read[path] = EarlierRun.of(read(path))
            except RecordError:
                self._read[path] = None
        return self._read[path]


def _forecast_without_gpu(
    config: Config,
    images: int,
    micro_batches: int,
    trace: TrainingTrace,
    *,
    uses_nccl: bool,
    train_images: int | None,
) -> tuple[Forecast, TrainingTrace]:
    """:func:`dpeval.planning.memory.forecast.forecast`, called in the forecast process.

    It knows nothing of earlier calls, so the trace travels to it and back."""
    found = forecast(
        config,
        images,
        forecast_task(config).on_meta,
        micro_batches,
        uses_nccl=uses_nccl,
        train_images=train_images,
        trace=trace,
    )
    return found, trace


def study_folder(folder: Path, study: str) -> Path:
    """The folder of all runs of `study` that holds the run folder `folder`."""
    return next((above for above in folder.parents if above.name == study), folder.parent)
