"""Readings of a run's AMD GPUs from AMD SMI, whose Python package comes with ROCm; the only module
that calls it.

Checked against its source (ROCm/amdsmi, ``py-interface/amdsmi_interface.py``). A reading that a GPU
does not have raises an error or is the string ``N/A``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from dpeval.system.gpu.reader import GpuReader, UsedGpu

DRIVER = Path("/dev/kfd")
"""The device of AMD's compute driver."""
THERMAL_COUNTERS = (
    "prochot_residency_acc",
    "socket_thm_residency_acc",
    "vr_thm_residency_acc",
    "hbm_thm_residency_acc",
)
POWER_COUNTER = "ppt_residency_acc"
CLOCK_COUNTER = "accumulation_counter"
"""The other counters give the number of these ticks during which the clock was held down."""


class NoSuchGpu(Exception):
    """AMD SMI has no GPU with the UUID that torch reports."""


class AmdReader(GpuReader):
    """Reads AMD GPUs."""

    source = "AMD SMI"

    def __init__(self, amdsmi: ModuleType | Any, gpus: Mapping[int, UsedGpu]) -> None:
        """Find the GPUs.

        Args:
            amdsmi: the module, initialised, or a stand-in.
            gpus: the GPUs by CUDA index.

        Raises:
            NoSuchGpu: a GPU is not found.
            amdsmi.AmdSmiException: the GPUs cannot be listed.
        """
        self._amdsmi = amdsmi
        # ValueError and TypeError: "N/A" instead of a number; KeyError: an older version.
        self.errors = (amdsmi.AmdSmiException, ValueError, TypeError, KeyError)
        super().__init__(gpus)

    def handle(self, uuid: str) -> Any:
        return _handle(self._amdsmi, uuid)

    def readings(self, handle: Any) -> dict[str, Callable[[], float]]:
        amdsmi = self._amdsmi
        found: dict[str, Callable[[], float]] = {
            "energy_mj": lambda: _energy_mj(amdsmi, handle),
            "sm_mhz": lambda: amdsmi.amdsmi_get_clock_info(handle, amdsmi.AmdSmiClkType.GFX)["clk"],
            "temperature_c": lambda: amdsmi.amdsmi_get_temp_metric(
                handle,
                amdsmi.AmdSmiTemperatureType.JUNCTION,
                amdsmi.AmdSmiTemperatureMetric.CURRENT,
            ),
            "power_mw": lambda: _power_mw(amdsmi.amdsmi_get_power_info(handle)),
        }
        # amdsmi_get_violation_status reports the same, but every call takes 100 ms.
        with contextlib.suppress(*self.errors):
            metrics = amdsmi.amdsmi_get_gpu_metrics_info(handle)
            for name in (CLOCK_COUNTER, POWER_COUNTER, *THERMAL_COUNTERS):
                found[name] = partial(metrics.__getitem__, name)
        return found

    def pids(self, handle: Any) -> set[int]:
        return {item["pid"] for item in self._amdsmi.amdsmi_get_gpu_process_list(handle)}

    def limits(self, series: Mapping[str, list[float]]) -> dict[str, float]:
        ticks = _increase(series.get(CLOCK_COUNTER, []))
        thermal = [_increase(series[name]) for name in THERMAL_COUNTERS if series.get(name)]
        if not ticks or not thermal:
            return {}
        power = _increase(series.get(POWER_COUNTER, []))
        return {
            "throttled_share": min(1.0, max(thermal) / ticks),
            "power_capped_share": min(1.0, power / ticks),
        }

    def close(self) -> None:
        with contextlib.suppress(*self.errors):
            self._amdsmi.amdsmi_shut_down()


def _energy_mj(amdsmi: ModuleType | Any, handle: Any) -> float:
    """Energy in mJ; the counter's resolution is in µJ."""
    counter = amdsmi.amdsmi_get_energy_count(handle)
    return float(counter["energy_accumulator"] * counter["counter_resolution"]) / 1e3


def _power_mw(info: Mapping[str, Any]) -> float:
    """Power of the socket, W: the current power on MI300, the average on earlier GPUs."""
    value = info["average_socket_power"]
    return 1e3 * float(info["current_socket_power"] if value == "N/A" else value)


def _increase(values: Sequence[float]) -> float:
    return values[-1] - values[0] if values else 0.0


def serial_of(uuid: str) -> str | None:
    """The serial number, 16 hexadecimal digits, of the AMD GPU whose UUID torch reports.

    HIP fills the 16 bytes of a UUID with these digits as text, and torch prints every byte in
    hexadecimal once more.
    """
    plain = uuid.lower().removeprefix("gpu-").replace("-", "")
    with contextlib.suppress(ValueError):
        text = bytes.fromhex(plain).decode("ascii") if len(plain) == 32 else plain
        return f"{int(text, 16):016x}"
    return None


def _handle(amdsmi: ModuleType | Any, uuid: str) -> Any:
    """The handle of the GPU whose UUID torch reports."""
    serial = serial_of(uuid)
    for handle in amdsmi.amdsmi_get_processor_handles():
        own = str(amdsmi.amdsmi_get_gpu_device_uuid(handle))
        if own.lower() == uuid.lower().removeprefix("gpu-"):
            return handle
        if serial is not None and serial == serial_of(
            str(amdsmi.amdsmi_get_gpu_asic_info(handle)["asic_serial"])
        ):
            return handle
    raise NoSuchGpu(f"no GPU has the UUID {uuid}")


def _library() -> ModuleType | str:
    """The module, or the reason why it is missing."""
    if not DRIVER.exists():
        return f"no AMD GPU ({DRIVER} is missing)"
    try:
        import amdsmi
    except ImportError:
        return "amdsmi, the Python package of ROCm, is not installed"
    except (OSError, KeyError, AttributeError) as error:
        return f"amdsmi cannot load its library: {error}"
    return amdsmi  # type: ignore[no-any-return]


def free_bytes(uuids: Sequence[str]) -> list[int]:
    """Free memory of the GPUs with these UUIDs, bytes; empty unless all can be read."""
    amdsmi = _library()
    return [] if isinstance(amdsmi, str) else free_through(amdsmi, uuids)


def free_through(amdsmi: ModuleType | Any, uuids: Sequence[str]) -> list[int]:
    """:func:`free_bytes` through `amdsmi`, the module or a stand-in."""
    try:
        amdsmi.amdsmi_init()
        vram = amdsmi.AmdSmiMemoryType.VRAM
        handles = [_handle(amdsmi, uuid) for uuid in uuids]
        return [
            int(amdsmi.amdsmi_get_gpu_memory_total(handle, vram))
            - int(amdsmi.amdsmi_get_gpu_memory_usage(handle, vram))
            for handle in handles
        ]
    except (amdsmi.AmdSmiException, NoSuchGpu):
        return []


def open_reader(gpus: Mapping[int, UsedGpu]) -> GpuReader | str:
    """A reader for these GPUs, by CUDA index, or the reason why there is none."""
    amdsmi = _library()
    return amdsmi if isinstance(amdsmi, str) else connect(amdsmi, gpus)


def connect(amdsmi: ModuleType | Any, gpus: Mapping[int, UsedGpu]) -> GpuReader | str:
    """A reader of GPUs through `amdsmi`, or the reason why there is none.

    Args:
        amdsmi: the module or a stand-in.
        gpus: the GPUs by CUDA index.
    """
    try:
        amdsmi.amdsmi_init()
        return AmdReader(amdsmi, gpus)
    except (amdsmi.AmdSmiException, NoSuchGpu) as error:
        return f"AMD SMI: {' '.join(str(error).split())}"
