"""What is asked of NVIDIA's library and what is made of its answers, with a recording stand-in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dpeval.record.conditions import Conditions
from dpeval.system.conditions import ConditionSampler, disturbances
from dpeval.system.gpu import libraries as gpu_libraries
from dpeval.system.gpu.nvml import connect, open_reader
from dpeval.system.gpu.reader import GpuReader, UsedGpu
from tests.unit.trees import grow, process, stat_of_cpus


class Nvml:
    """Answers as ``pynvml`` does for two GPUs, and keeps what it was asked."""

    NVML_CLOCK_SM = 1
    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        """As the library's own."""

    def __init__(self, *, lacks: tuple[str, ...] = (), pids: tuple[int, ...] = (10,)) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.lacks, self.pids = lacks, pids
        self.energy_mj, self.reasons = 1_000_000, 0
        self.known = {"GPU-aa": "first", "MIG-bb": "part"}

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            self.asked.append((name, arguments))
            if name in self.lacks:
                raise self.NVMLError("Not Supported")
            return self.answer(name, arguments)

        return call

    def answer(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if name == "nvmlDeviceGetHandleByUUID":
            if arguments[0] not in self.known:
                raise self.NVMLError("Not Found")
            return self.known[arguments[0]]
        if name == "nvmlDeviceGetComputeRunningProcesses":
            return [SimpleNamespace(pid=pid) for pid in self.pids]
        return {
            "nvmlDeviceGetTotalEnergyConsumption": self.energy_mj,
            "nvmlDeviceGetClockInfo": 1410,
            "nvmlDeviceGetTemperature": 61,
            "nvmlDeviceGetPowerUsage": 250_000,
            "nvmlDeviceGetCurrentClocksEventReasons": self.reasons,
            "nvmlDeviceGetCurrentClocksThrottleReasons": self.reasons,
        }.get(name)


def reader(
    nvml: Nvml, uuids: dict[int, str] | None = None, own: tuple[int, ...] = (10,)
) -> GpuReader:
    gpus = {index: UsedGpu(uuid, own) for index, uuid in (uuids or {0: "aa"}).items()}
    found = connect(nvml, gpus)
    assert isinstance(found, GpuReader)
    return found


def test_gpus_are_found_by_uuid_and_never_by_index() -> None:
    nvml = Nvml()
    reader(nvml, {0: "GPU-aa", 1: "bb"})
    asked = [arguments[0] for name, arguments in nvml.asked if name == "nvmlDeviceGetHandleByUUID"]
    assert asked == ["GPU-aa", "GPU-bb", "MIG-bb"]
    assert not any("ByIndex" in name for name, _ in nvml.asked)


def test_readings_are_summed_up_in_their_units() -> None:
    nvml = Nvml()
    gpu = reader(nvml)
    for reasons in (0, 0x4, 0x40, 0x1):
        nvml.reasons = reasons
        gpu.sample()
        nvml.energy_mj += 30_000
    assert gpu.finish() == {
        "0": {
            "sm_mhz": 1410.0,
            "temperature_c": 61.0,
            "power_w": 250.0,
            "throttled_share": 0.25,
            "power_capped_share": 0.25,
            "foreign_processes": 0.0,
        }
    }
    assert gpu.energy_j == pytest.approx(90.0)  # to the last sample, not to the end
    before_j = gpu.energy_now_j(["0"])
    nvml.energy_mj += 30_000
    after_j = gpu.energy_now_j(["0"])
    assert before_j is not None
    assert after_j == pytest.approx(before_j + 30.0)
    nvml.lacks = ("nvmlDeviceGetTotalEnergyConsumption",)
    assert gpu.energy_now_j(["0"]) is None
    gpu.close()
    assert nvml.asked[-1][0] == "nvmlShutdown"


def test_what_a_gpu_does_not_support_is_left_out() -> None:
    nvml = Nvml(lacks=("nvmlDeviceGetPowerUsage", "nvmlDeviceGetTotalEnergyConsumption"))
    gpu = reader(nvml)
    gpu.sample()
    gpu.sample()
    assert "power_w" not in gpu.finish()["0"]
    assert gpu.energy_j is None


def test_an_older_driver_tells_reasons_under_their_old_name() -> None:
    nvml = Nvml(lacks=("nvmlDeviceGetCurrentClocksEventReasons",))
    nvml.reasons = 0x80
    gpu = reader(nvml)
    gpu.sample()
    assert gpu.finish()["0"]["throttled_share"] == 1.0


@pytest.mark.parametrize(
    ("pids", "foreign"),
    [
        ((10,), 0.0),
        ((10, 11), 1.0),  # a rank that has no business on this GPU
        ((10, 77, 78), 2.0),
        ((4010,), 0.0),  # the rank, by the number that it has outside of its container
        ((4010, 4077), 1.0),
        ((), None),  # a container that is told of nobody
    ],
)
def test_processes_that_are_not_the_run_s_are_counted(
    pids: tuple[int, ...], foreign: float | None
) -> None:
    gpu = reader(Nvml(pids=pids))
    gpu.sample()
    assert gpu.finish()["0"].get("foreign_processes") == foreign


@pytest.mark.parametrize(
    ("pids", "foreign"),
    [
        ((10, 11), 0.0),
        ((10, 11, 77), 1.0),
        ((10,), 0.0),  # the other rank has no context yet
        ((4010, 4011), 0.0),  # as a container sees them
        ((4010, 4011, 4077), 1.0),
        ((4010,), 0.0),
    ],
)
def test_ranks_that_share_a_gpu_are_not_foreign_to_each_other(
    pids: tuple[int, ...], foreign: float
) -> None:
    gpu = reader(Nvml(pids=pids), own=(10, 11))
    gpu.sample()
    assert gpu.finish()["0"]["foreign_processes"] == foreign


def test_why_there_is_no_reader_is_said() -> None:
    assert connect(Nvml(lacks=("nvmlInit",)), {0: UsedGpu("aa", [10])}) == "NVML: Not Supported"
    assert connect(Nvml(), {0: UsedGpu("zz", [10])}) == "NVML: Not Found"
    unknown = gpu_libraries.open_reader({0: UsedGpu("", [10])})
    assert unknown == "this version of torch does not report the UUIDs of its GPUs"


def test_bad_gpus_are_told_in_words() -> None:
    gpus = {
        "0": {"throttled_share": 0.3, "power_capped_share": 1.0, "foreign_processes": 1.0},
        "1": {"throttled_share": 0.01, "foreign_processes": 2.0},
    }
    assert disturbances(Conditions(samples=9, interval_s=1, gpus=gpus)) == [
        "GPU 0 was throttled in 30 % of the samples",
        "GPU 0 was shared with 1 other process",
        "GPU 1 was shared with 2 other processes",
    ]


def watched(root: Path, monkeypatch: pytest.MonkeyPatch, nvml: Nvml) -> Conditions:
    """Ten seconds of a run on one GPU and a host that tells its own energy."""
    zone = "sys/class/powercap/intel-rapl:0"
    files = stat_of_cpus(cpu0=0) | process(10, 0)
    grow(root, files | {f"{zone}/name": "package-0\n", f"{zone}/energy_uj": "0\n"})
    monkeypatch.setattr(
        "dpeval.system.conditions.open_reader", lambda *given: connect(nvml, *given)
    )
    now = [0.0]
    sampler = ConditionSampler(
        {10: [0]}, gpus={0: UsedGpu("aa", [10])}, root=root, clock=lambda: now[0]
    )
    sampler.sample()
    nvml.energy_mj += 2_000_000
    grow(root, {f"{zone}/energy_uj": "500000000\n"})
    now[0] = 10.0
    sampler.sample()
    return sampler.finish()


def test_energy_of_a_gpu_run_is_that_of_gpus_and_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched(tmp_path, monkeypatch, Nvml())
    assert (seen.energy_j, seen.power_w) == (2500.0, 250.0)
    assert seen.energy_source == "NVML (the ranks' GPUs) and RAPL (1 CPU package)"


def test_the_host_s_energy_does_not_pass_for_a_gpu_run_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched(tmp_path, monkeypatch, Nvml(lacks=("nvmlDeviceGetTotalEnergyConsumption",)))
    assert seen.energy_j is None
    assert seen.energy_source == ""


def test_gpus_without_nvml_are_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(tmp_path, monkeypatch, Nvml(lacks=("nvmlInit",)))
    assert any("of the GPUs (NVML: Not Supported)" in what for what in seen.unreadable)
    assert seen.energy_j is None


def test_the_stand_in_has_the_library_s_names() -> None:
    import pynvml

    nvml = Nvml()
    gpu = reader(nvml)
    gpu.sample()
    gpu.close()
    assert {name for name, _ in nvml.asked} <= set(dir(pynvml))
    for constant in ("NVML_CLOCK_SM", "NVML_TEMPERATURE_GPU"):
        assert getattr(pynvml, constant) == getattr(Nvml, constant)
    if isinstance(found := open_reader({0: UsedGpu("none", [10])}), str):
        assert found.startswith("NVML: ")
