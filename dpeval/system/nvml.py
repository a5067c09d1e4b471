"""Readings of a run's GPUs from NVML; the only module that calls it.

NVML numbers GPUs independently of ``CUDA_VISIBLE_DEVICES`` and ``CUDA_DEVICE_ORDER``, so a GPU is
found by its UUID and never by its CUDA index.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

HARD_LIMITS = 0x8 | 0x20 | 0x40 | 0x80
"""Clock event reasons that mean throttling: HW slowdown, SW thermal, HW thermal, power brake
(nvml.h, nvmlClocksEventReasons)."""
POWER_CAP = 0x4
"""The clock is held down by the power limit: how many GPUs run under full load, so it is normal."""
_PROCESSES_UNKNOWN = -1.0


@dataclass(frozen=True)
class UsedGpu:
    """A GPU that ranks of this run use."""

    uuid: str
    own_pids: Collection[int]
    """Process ids of the ranks on it."""


class GpuReader:
    """Samples clocks, temperature, power, throttling, energy and foreign processes of GPUs."""

    def __init__(self, nvml: ModuleType | Any, gpus: Mapping[int, UsedGpu]) -> None:
        """Find the GPUs.

        Args:
            nvml: the module ``pynvml``, initialised, or a stand-in.
            gpus: the GPUs by CUDA index.

        Raises:
            nvml.NVMLError: a GPU is not found.
        """
        self._nvml = nvml
        self._own = {str(index): frozenset(gpu.own_pids) for index, gpu in gpus.items()}
        self._handles = {str(index): _handle(nvml, gpu.uuid) for index, gpu in gpus.items()}
        self._seen: dict[str, dict[str, list[float]]] = {name: {} for name in self._handles}

    def sample(self) -> None:
        """Read every GPU once; readings that a GPU does not support are omitted."""
        nvml = self._nvml
        for name, handle in self._handles.items():
            self._note(name, "energy_mj", nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
            self._note(name, "sm_mhz", nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM)
            self._note(
                name,
                "temperature_c",
                nvml.nvmlDeviceGetTemperature,
                handle,
                nvml.NVML_TEMPERATURE_GPU,
            )
            self._note(name, "power_mw", nvml.nvmlDeviceGetPowerUsage, handle)
            self._note(name, "reasons", self._reasons, handle)
            self._note(name, "processes", self._foreign, name, handle)

    def _reasons(self, handle: Any) -> int:
        try:
            return int(self._nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
        except self._nvml.NVMLError:
            # The same function in drivers before 535.
            return int(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))

    def _foreign(self, name: str, handle: Any) -> float:
        pids = {process.pid for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)}
        if not pids:
            return _PROCESSES_UNKNOWN  # a rank does run there: this container sees no processes
        own = self._own[name]
        if own.isdisjoint(pids):
            # Inside a container, processes have other ids than on the host.
            return max(0, len(pids) - len(own))
        return len(pids - own)

    def _note(self, name: str, what: str, read: Any, *arguments: Any) -> None:
        try:
            value = float(read(*arguments))
        except self._nvml.NVMLError:
            return
        self._seen[name].setdefault(what, []).append(value)

    @property
    def energy_j(self) -> float | None:
        """Energy of all GPUs from the first to the last sample, J; None if any lacks it."""
        series = [seen.get("energy_mj", []) for seen in self._seen.values()]
        if not series or any(len(values) < 2 for values in series):
            return None
        return sum(values[-1] - values[0] for values in series) / 1e3

    def finish(self) -> dict[str, dict[str, float]]:
        """Per CUDA index: sm_mhz (median), temperature_c (highest), power_w (mean),
        throttled_share and power_capped_share of samples, foreign_processes (most at once)."""
        return {name: _summary(series) for name, series in self._seen.items()}

    def close(self) -> None:
        """Shut the library down."""
        self._nvml.nvmlShutdown()


def _summary(series: dict[str, list[float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    if series.get("sm_mhz"):
        found["sm_mhz"] = float(np.median(series["sm_mhz"]))
    if series.get("temperature_c"):
        found["temperature_c"] = max(series["temperature_c"])
    if series.get("power_mw"):
        found["power_w"] = float(np.mean(series["power_mw"])) / 1e3
    if series.get("reasons"):
        reasons = [int(value) for value in series["reasons"]]
        found["throttled_share"] = float(np.mean([bool(value & HARD_LIMITS) for value in reasons]))
        found["power_capped_share"] = float(np.mean([bool(value & POWER_CAP) for value in reasons]))
    if max(series.get("processes", []), default=_PROCESSES_UNKNOWN) != _PROCESSES_UNKNOWN:
        found["foreign_processes"] = max(series["processes"])
    return found


def _handle(nvml: ModuleType | Any, uuid: str) -> Any:
    # Torch omits the prefix that distinguishes a whole GPU from a part of one (MIG).
    if uuid.startswith(("GPU-", "MIG-")):
        return nvml.nvmlDeviceGetHandleByUUID(uuid)
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except nvml.NVMLError:
        return nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")


def free_bytes(uuids: Sequence[str]) -> list[int]:
    """Free memory of the GPUs with these UUIDs, bytes; empty unless all can be read."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        handles = [_handle(pynvml, uuid) for uuid in uuids]
        return [int(pynvml.nvmlDeviceGetMemoryInfo(handle).free) for handle in handles]
    except pynvml.NVMLError:
        return []


def open_reader(gpus: Mapping[int, UsedGpu]) -> GpuReader | str:
    """A reader for these GPUs, by CUDA index, or why there is none."""
    try:
        import pynvml
    except ImportError:
        return "nvidia-ml-py is not installed"
    return connect(pynvml, gpus)


def connect(nvml: ModuleType | Any, gpus: Mapping[int, UsedGpu]) -> GpuReader | str:
    """A reader of GPUs through `nvml`, or why there is none.

    Args:
        nvml: the module ``pynvml`` or a stand-in.
        gpus: the GPUs by CUDA index.
    """
    if not all(gpu.uuid for gpu in gpus.values()):
        return "this version of torch does not report the UUIDs of its GPUs"
    try:
        nvml.nvmlInit()
        return GpuReader(nvml, gpus)
    except nvml.NVMLError as error:
        return f"NVML: {error}"
