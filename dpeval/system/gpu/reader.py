"""Samples a run's GPUs and summarises the readings, whichever library provides them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

_PROCESSES_UNKNOWN = -1.0


@dataclass(frozen=True)
class UsedGpu:
    """A GPU that ranks of this run use."""

    uuid: str
    """UUID, as torch reports it."""
    own_pids: Collection[int]
    """Process ids of the ranks on it."""


class GpuReader(ABC):
    """Samples clocks, temperature, power, throttling, energy and foreign processes of GPUs."""

    source: str
    """Name of the library that reads them."""
    errors: tuple[type[Exception], ...]
    """Exceptions that the library raises for a reading that a GPU does not support."""

    def __init__(self, gpus: Mapping[int, UsedGpu]) -> None:
        """Find the GPUs, given by CUDA index."""
        self._own = {str(index): frozenset(gpu.own_pids) for index, gpu in gpus.items()}
        self._handles = {str(index): self.handle(gpu.uuid) for index, gpu in gpus.items()}
        self._seen: dict[str, dict[str, list[float]]] = {name: {} for name in self._handles}

    @abstractmethod
    def handle(self, uuid: str) -> Any:
        """The library's handle of the GPU with this UUID."""

    @abstractmethod
    def readings(self, handle: Any) -> dict[str, Callable[[], float]]:
        """Functions that read energy_mj, sm_mhz, temperature_c, power_mw and what :meth:`limits`
        needs."""

    @abstractmethod
    def pids(self, handle: Any) -> set[int]:
        """The processes that compute on the GPU."""

    @abstractmethod
    def limits(self, series: Mapping[str, list[float]]) -> dict[str, float]:
        """throttled_share and power_capped_share over the time of `series`, if it shows them."""

    @abstractmethod
    def close(self) -> None:
        """Shut the library down."""

    def sample(self) -> None:
        """Read every GPU once; readings that a GPU does not support are omitted."""
        for name, handle in self._handles.items():
            for what, read in self.readings(handle).items():
                self._note(name, what, read)
            self._note(name, "processes", partial(self._foreign, name, handle))

    def _foreign(self, name: str, handle: Any) -> float:
        pids = self.pids(handle)
        if not pids:
            return _PROCESSES_UNKNOWN  # a rank does run there, so this container sees no processes
        own = self._own[name]
        if own.isdisjoint(pids):
            # Inside a container, processes have other ids than on the host.
            return max(0, len(pids) - len(own))
        return len(pids - own)

    def _note(self, name: str, what: str, read: Callable[[], float]) -> None:
        try:
            value = float(read())
        except self.errors:
            return
        self._seen[name].setdefault(what, []).append(value)

    def energy_now_j(self, names: Collection[str]) -> float | None:
        """The sum of the energy counters of some GPUs, J; None if any lacks one.

        Args:
            names: CUDA indices.
        """
        try:
            return sum(self.readings(self._handles[name])["energy_mj"]() for name in names) / 1e3
        except self.errors:
            return None
        except KeyError:  # this GPU has no such counter
            return None

    @property
    def energy_j(self) -> float | None:
        """Energy of all GPUs from the first to the last sample, J; None if any lacks it."""
        series = [seen.get("energy_mj", []) for seen in self._seen.values()]
        if not series or any(len(values) < 2 for values in series):
            return None
        return sum(values[-1] - values[0] for values in series) / 1e3

    def finish(self) -> dict[str, dict[str, float]]:
        """Per CUDA index: sm_mhz (median), temperature_c (highest), power_w (mean),
        throttled_share and power_capped_share, foreign_processes (most at once)."""
        return {name: _summary(series) | self.limits(series) for name, series in self._seen.items()}


def _summary(series: Mapping[str, list[float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    if series.get("sm_mhz"):
        found["sm_mhz"] = float(np.median(series["sm_mhz"]))
    if series.get("temperature_c"):
        found["temperature_c"] = max(series["temperature_c"])
    if series.get("power_mw"):
        found["power_w"] = float(np.mean(series["power_mw"])) / 1e3
    if max(series.get("processes", []), default=_PROCESSES_UNKNOWN) != _PROCESSES_UNKNOWN:
        found["foreign_processes"] = max(series["processes"])
    return found
