"""What NVIDIA's management library tells of a run's GPUs; every call that needs it is here."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

HARD_LIMITS = 0x8 | 0x20 | 0x40 | 0x80
"""Clock event reasons that mean throttling: HW slowdown, SW thermal, HW thermal, power brake
(nvml.h, nvmlClocksEventReasons)."""


class GpuReader:
    """Samples clocks, temperature, power, throttling and foreign processes of some GPUs."""

    def __init__(self, nvml: ModuleType | Any, indices: Sequence[int], own_pids: set[int]) -> None:
        self._nvml, self._own = nvml, own_pids
        self._handles = {str(index): nvml.nvmlDeviceGetHandleByIndex(index) for index in indices}
        self._seen: dict[str, dict[str, list[float]]] = {name: {} for name in self._handles}
        self._energy_mj = self._energies()

    def sample(self) -> None:
        """Read every GPU once; what a GPU does not support is left out."""
        nvml = self._nvml
        for name, handle in self._handles.items():
            self._note(name, "sm_mhz", nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM)
            self._note(
                name,
                "temperature_c",
                nvml.nvmlDeviceGetTemperature,
                handle,
                nvml.NVML_TEMPERATURE_GPU,
            )
            self._note(name, "power_mw", nvml.nvmlDeviceGetPowerUsage, handle)
            self._note(name, "reasons", nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
            self._note(name, "processes", self._foreign, handle)

    def _foreign(self, handle: Any) -> int:
        running = self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        return sum(process.pid not in self._own for process in running)

    def _note(self, name: str, what: str, read: Any, *arguments: Any) -> None:
        try:
            value = float(read(*arguments))
        except self._nvml.NVMLError:
            return
        self._seen[name].setdefault(what, []).append(value)

    def _energies(self) -> dict[str, float]:
        found = {}
        for name, handle in self._handles.items():
            try:
                found[name] = float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
            except self._nvml.NVMLError:
                continue
        return found

    def energy_j(self) -> float | None:
        """Energy of all the GPUs since this reader was made, J; None where one does not tell."""
        now = self._energies()
        if not self._handles or set(now) != set(self._handles) or set(self._energy_mj) != set(now):
            return None
        return sum(now[name] - self._energy_mj[name] for name in now) / 1e3

    def finish(self) -> dict[str, dict[str, float]]:
        """Per GPU: sm_mhz, temperature_c, power_w, throttled_share, foreign_processes."""
        return {name: self._summary(series) for name, series in self._seen.items()}

    def _summary(self, series: dict[str, list[float]]) -> dict[str, float]:
        found: dict[str, float] = {}
        if series.get("sm_mhz"):
            found["sm_mhz"] = float(np.median(series["sm_mhz"]))
        if series.get("temperature_c"):
            found["temperature_c"] = max(series["temperature_c"])
        if series.get("power_mw"):
            found["power_w"] = float(np.mean(series["power_mw"])) / 1e3
        if series.get("reasons"):
            hard = [bool(int(reasons) & HARD_LIMITS) for reasons in series["reasons"]]
            found["throttled_share"] = float(np.mean(hard))
        if series.get("processes"):
            found["foreign_processes"] = max(series["processes"])
        return found


def free_bytes(uuids: Sequence[str]) -> list[int]:
    """Free memory of the GPUs with these UUIDs; empty where it cannot be read of all of them."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        names = [uuid if uuid.startswith("GPU-") else f"GPU-{uuid}" for uuid in uuids]
        handles = [pynvml.nvmlDeviceGetHandleByUUID(name) for name in names]
        return [int(pynvml.nvmlDeviceGetMemoryInfo(handle).free) for handle in handles]
    except pynvml.NVMLError:
        return []


def open_reader(indices: Sequence[int], own_pids: set[int]) -> GpuReader | None:
    """A reader for the GPUs with these indices; None where NVML cannot be used."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return GpuReader(pynvml, indices, own_pids)
    except pynvml.NVMLError:
        return None
