"""Looks ahead for a session: every run's forecast, budget and decision, each counted once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

from dpeval import models, nvml
from dpeval.config import Config, to_plain
from dpeval.errors import RecordError
from dpeval.forecast import PROCESS_BYTES, forecast
from dpeval.machine import Machine
from dpeval.memory import Budget, Decision, Forecast, NoForecast, budget, decide
from dpeval.peaks import Peak, learned, memory_key, peak_of
from dpeval.plan import Plan
from dpeval.record import FILE_NAME, read


class Foresight:
    """Forecasts and decides for the runs of one session on `machine`."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._counted: dict[tuple[str, int, int], Forecast | NoForecast] = {}
        self._read: dict[Path, tuple[tuple[str, ...], Peak] | None] = {}

    def counted(self, config: Config, images: int, micro_batches: int = 1) -> Forecast:
        """The forecast by counting alone; see :func:`dpeval.forecast.forecast`.

        Raises:
            NoForecast: the model cannot be walked without data.
        """
        several = config.num_devices > 1
        what = json.dumps([*memory_key(to_plain(config)), several, config.dataset.num_classes])
        key = (what, images, micro_batches)
        if key not in self._counted:
            try:
                self._counted[key] = forecast(
                    config,
                    images,
                    config.dataset.num_classes,
                    lambda: models.build(config.model),
                    micro_batches,
                )
            except NoForecast as error:
                self._counted[key] = error
        found = self._counted[key]
        if isinstance(found, NoForecast):
            raise found
        return found

    def forecast(
        self, config: Config, images: int, micro_batches: int = 1, folder: Path | None = None
    ) -> Forecast:
        """The forecast, with the allowance that measured peaks under `folder` suggest.

        Raises:
            NoForecast: the model cannot be walked without data.
        """
        counted = self.counted(config, images, micro_batches)
        peaks = self._peaks(folder, config) if folder is not None else []
        if not peaks:
            return counted
        if micro_batches == 1:
            return learned(counted, images, peaks)
        part = math.ceil(images / micro_batches)
        undivided = learned(self.counted(config, part), part, peaks)
        return counted.with_allowance_of(undivided)

    def decide(self, config: Config, plan: Plan, folder: Path | None = None) -> Decision:
        """What becomes of the run of `config` as planned; starts nothing.

        Args:
            folder: where earlier records of the same study lie.

        Raises:
            NoForecast: the model cannot be walked without data.
        """
        return decide(
            config.memory.on_excess,
            [rank.batch for rank in plan.ranks],
            lambda images, parts: self.forecast(config, images, parts, folder),
            self.budget_at(config),
            strong=config.scaling.kind == "strong",
        )

    def budget_at(self, config: Config) -> Callable[[int], Budget]:
        """The budget of one rank, from the number of ranks of the whole run."""
        gpu = config.hardware.kind == "gpu"
        free = nvml.free_bytes([item.uuid for item in self._machine.gpus]) if gpu else []

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

    def _peaks(self, folder: Path, config: Config) -> list[Peak]:
        key = memory_key(to_plain(config))
        found = [self._peak(path) for path in sorted(folder.rglob(FILE_NAME))]
        return [item[1] for item in found if item is not None and item[0] == key]

    def _peak(self, path: Path) -> tuple[tuple[str, ...], Peak] | None:
        if path not in self._read:
            try:
                self._read[path] = peak_of(read(path))
            except RecordError:
                self._read[path] = None
        return self._read[path]


def study_folder(folder: Path, study: str) -> Path:
    """The folder of all runs of `study` that holds the run folder `folder`."""
    return next((above for above in folder.parents if above.name == study), folder.parent)
