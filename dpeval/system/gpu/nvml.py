"""Readings of a run's NVIDIA GPUs from NVML; the only module that calls it.

NVML numbers GPUs independently of ``CUDA_VISIBLE_DEVICES`` and ``CUDA_DEVICE_ORDER``, so a GPU is
found by its UUID and never by its CUDA index.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from dpeval.system.gpu.reader import GpuReader, UsedGpu

HARD_LIMITS = 0x8 | 0x20 | 0x40 | 0x80
"""Clock event reasons that mean throttling: HW slowdown, SW thermal, HW thermal, power brake
(nvml.h, nvmlClocksEventReasons)."""
POWER_CAP = 0x4
"""The clock is held down by the power limit, which is normal for many GPUs under full load."""


class NvmlReader(GpuReader):
    """Reads NVIDIA GPUs."""

    source = "NVML"

    def __init__(self, nvml: ModuleType | Any, gpus: Mapping[int, UsedGpu]) -> None:
        """Find the GPUs.

        Args:
            nvml: the module ``pynvml``, initialised, or a stand-in.
            gpus: the GPUs by CUDA index.

        Raises:
            nvml.NVMLError: a GPU is not found.
        """
        self._nvml = nvml
        self.errors = (nvml.NVMLError,)
        super().__init__(gpus)

    def handle(self, uuid: str) -> Any:
        return _handle(self._nvml, uuid)

    def readings(self, handle: Any) -> dict[str, Callable[[], float]]:
        nvml = self._nvml
        return {
            "energy_mj": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle),
            "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(
                handle, nvml.NVML_TEMPERATURE_GPU
            ),
            "power_mw": lambda: nvml.nvmlDeviceGetPowerUsage(handle),
            "reasons": lambda: self._reasons(handle),
        }

    def _reasons(self, handle: Any) -> int:
        try:
            return int(self._nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
        except self._nvml.NVMLError:
            # The same function in drivers before 535.
            return int(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))

    def pids(self, handle: Any) -> set[int]:
        return {process.pid for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)}

    def limits(self, series: Mapping[str, list[float]]) -> dict[str, float]:
        reasons = [int(value) for value in series.get("reasons", [])]
        if not reasons:
            return {}
        return {
            "throttled_share": float(np.mean([bool(value & HARD_LIMITS) for value in reasons])),
            "power_capped_share": float(np.mean([bool(value & POWER_CAP) for value in reasons])),
        }

    def close(self) -> None:
        self._nvml.nvmlShutdown()


def _handle(nvml: ModuleType | Any, uuid: str) -> Any:
    # torch omits the prefix that distinguishes a whole GPU from a MIG slice.
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
    """A reader for these GPUs, by CUDA index, or the reason why there is none."""
    try:
        import pynvml
    except ImportError:
        return "nvidia-ml-py is not installed"
    return connect(pynvml, gpus)


def connect(nvml: ModuleType | Any, gpus: Mapping[int, UsedGpu]) -> GpuReader | str:
    """A reader of GPUs through `nvml`, or the reason why there is none.

    Args:
        nvml: the module ``pynvml`` or a stand-in.
        gpus: the GPUs by CUDA index.
    """
    try:
        nvml.nvmlInit()
        return NvmlReader(nvml, gpus)
    except nvml.NVMLError as error:
        return f"NVML: {error}"
