"""What is asked of AMD's library and what is made of its answers, with a recording stand-in."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import pytest

from dpeval.system.gpu import amd_smi, libraries
from dpeval.system.gpu.amd_smi import AmdReader, connect, free_through
from dpeval.system.gpu.reader import UsedGpu

SERIAL = "2d2f1a6f3c8e9b01"
AS_TORCH_SAYS = "32643266-3161-3666-3363-386539623031"
"""The 16 digits of the serial number as text, each byte in hexadecimal."""


class AmdSmi:
    """Answers as the package ``amdsmi`` of ROCm 6 does, for two GPUs."""

    class AmdSmiException(Exception):
        """As the library's own."""

    class AmdSmiClkType(IntEnum):
        GFX = 0

    class AmdSmiTemperatureType(IntEnum):
        JUNCTION = 1

    class AmdSmiTemperatureMetric(IntEnum):
        CURRENT = 0

    class AmdSmiMemoryType(IntEnum):
        VRAM = 0

    def __init__(self, *, lacks: tuple[str, ...] = (), pids: tuple[int, ...] = (10,)) -> None:
        self.asked: list[str] = []
        self.lacks, self.pids = lacks, pids
        self.power: dict[str, Any] = {"average_socket_power": "N/A", "current_socket_power": 550}
        self.energy = 1_000_000
        self.metrics: dict[str, Any] = {
            "accumulation_counter": 1000,
            "prochot_residency_acc": 0,
            "ppt_residency_acc": 400,
            "socket_thm_residency_acc": 7,
            "vr_thm_residency_acc": 0,
            "hbm_thm_residency_acc": 0,
        }

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("amdsmi_"):
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            self.asked.append(name)
            if name in self.lacks:
                raise self.AmdSmiException("AMDSMI_STATUS_NOT_SUPPORTED\n - Feature not supported")
            return self.answer(name, arguments)

        return call

    def answer(self, name: str, arguments: tuple[Any, ...]) -> Any:
        serials = {"first": "0x" + "0" * 16, "second": f"0x{SERIAL.upper()}"}
        if name == "amdsmi_get_gpu_asic_info":
            return {"asic_serial": serials[arguments[0]]}
        if name == "amdsmi_get_gpu_device_uuid":
            return f"{arguments[0]}-74a1-1000-8000-000000000000"
        return {
            "amdsmi_get_processor_handles": list(serials),
            "amdsmi_get_energy_count": {
                "energy_accumulator": self.energy, "counter_resolution": 15.3, "timestamp": 1,
            },
            "amdsmi_get_clock_info": {"clk": 2100, "min_clk": 500, "max_clk": 2100},
            "amdsmi_get_temp_metric": 64,
            "amdsmi_get_power_info": self.power,
            "amdsmi_get_gpu_metrics_info": dict(self.metrics),
            "amdsmi_get_gpu_process_list": [{"name": "python", "pid": pid} for pid in self.pids],
            "amdsmi_get_gpu_memory_total": 192 * 2**30,
            "amdsmi_get_gpu_memory_usage": 2**30,
        }.get(name)  # fmt: skip


def reader(library: AmdSmi) -> AmdReader:
    found = connect(library, {0: UsedGpu(AS_TORCH_SAYS, [10])})
    assert isinstance(found, AmdReader), found
    return found


@pytest.mark.parametrize(
    "uuid", [AS_TORCH_SAYS, f"GPU-{SERIAL}", SERIAL, "second-74a1-1000-8000-000000000000"]
)
def test_a_gpu_is_found_by_its_serial_number(uuid: str) -> None:
    assert AmdReader(AmdSmi(), {0: UsedGpu(uuid, [10])})._handles == {"0": "second"}


def test_readings_are_summed_up_in_their_units() -> None:
    library = AmdSmi()
    gpu = reader(library)
    for _ in range(3):
        gpu.sample()
        library.energy += 1_000_000
        library.metrics["accumulation_counter"] += 100
        library.metrics["ppt_residency_acc"] += 50
        library.metrics["socket_thm_residency_acc"] += 10
    assert gpu.finish() == {
        "0": {
            "sm_mhz": 2100.0,
            "temperature_c": 64.0,
            "power_w": 550.0,
            "throttled_share": 0.1,
            "power_capped_share": 0.5,
            "foreign_processes": 0.0,
        }
    }
    assert gpu.energy_j == pytest.approx(2 * 15.3)
    gpu.close()
    assert library.asked[-1] == "amdsmi_shut_down"
    assert "amdsmi_get_violation_status" not in library.asked  # takes 100 ms


def test_an_earlier_gpu_tells_its_average_power() -> None:
    library = AmdSmi()
    library.power = {"average_socket_power": 300, "current_socket_power": "N/A"}
    gpu = reader(library)
    gpu.sample()
    assert gpu.finish()["0"]["power_w"] == 300.0


def test_what_a_gpu_does_not_support_is_left_out() -> None:
    library = AmdSmi(lacks=("amdsmi_get_energy_count", "amdsmi_get_gpu_process_list"))
    library.power = {"average_socket_power": "N/A", "current_socket_power": "N/A"}
    library.metrics = dict.fromkeys(library.metrics, "N/A")
    gpu = reader(library)
    gpu.sample()
    gpu.sample()
    assert gpu.finish() == {"0": {"sm_mhz": 2100.0, "temperature_c": 64.0}}
    assert gpu.energy_j is None


@pytest.mark.parametrize(
    ("pids", "foreign"), [((10,), 0.0), ((10, 77), 1.0), ((4010,), 0.0), ((), None)]
)
def test_processes_that_are_not_the_run_s_are_counted(
    pids: tuple[int, ...], foreign: float | None
) -> None:
    gpu = reader(AmdSmi(pids=pids))
    gpu.sample()
    assert gpu.finish()["0"].get("foreign_processes") == foreign


def test_why_there_is_no_reader_is_said_in_a_line() -> None:
    failed = connect(AmdSmi(lacks=("amdsmi_init",)), {0: UsedGpu(AS_TORCH_SAYS, [10])})
    assert failed == "AMD SMI: AMDSMI_STATUS_NOT_SUPPORTED - Feature not supported"
    unknown = connect(AmdSmi(), {0: UsedGpu("zz", [10])})
    assert unknown == "AMD SMI: no GPU has the UUID zz"


def test_free_memory_is_what_is_not_used() -> None:
    assert free_through(AmdSmi(), [AS_TORCH_SAYS]) == [191 * 2**30]
    assert free_through(AmdSmi(), ["zz"]) == []


@pytest.mark.skipif(amd_smi.DRIVER.exists(), reason="this machine has an AMD GPU")
def test_without_amds_driver_its_library_is_not_looked_for() -> None:
    assert amd_smi.free_bytes([AS_TORCH_SAYS]) == []
    found = libraries.open_reader({0: UsedGpu(AS_TORCH_SAYS, [10])})
    assert isinstance(found, str)
    assert "amdsmi" not in found
