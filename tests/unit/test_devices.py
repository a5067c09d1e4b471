"""The CUDA side, held against a recording stand-in for ``torch.cuda``; the CPU side for real."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dpeval.devices import cuda as cuda_module
from dpeval.devices import numerics
from dpeval.devices.cpu import CpuDevice
from dpeval.devices.cuda import CudaDevice
from dpeval.devices.select import open_device
from dpeval.errors import MachineError
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.instruments.step_buffer import COLUMNS
from dpeval.worker import loop


class Recorder:
    """Records every call; events take the order in which they were recorded as their time."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.recorded = 0
        self.reached = 10**9

    def event(self, enable_timing: bool) -> Any:
        recorder = self
        self.calls.append("new event")

        class Event:
            at = -1

            def record(self, stream: str) -> None:
                recorder.calls.append(f"record on {stream}")
                recorder.recorded += 1
                self.at = recorder.recorded

            def query(self) -> bool:
                recorder.calls.append("query")
                return self.at <= recorder.reached

            def elapsed_time(self, end: Any) -> float:
                recorder.calls.append("elapsed_time")
                return float(end.at - self.at)  # ms

        assert enable_timing
        return Event()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(torch.cuda, "Event", recorder.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(
        torch._C, "_cuda_getCurrentStream", lambda index: (7, index, 1), raising=False
    )
    for name, value in {
        "set_device": None,
        "synchronize": None,
        "empty_cache": None,
        "reset_peak_memory_stats": None,
        "max_memory_reserved": 7,
        "max_memory_allocated": 6,
        "memory_reserved": 5,
        "mem_get_info": (3, 11),
        "set_per_process_memory_fraction": None,
    }.items():

        def call(*_: Any, name: str = name, value: Any = value) -> Any:
            recorder.calls.append(name)
            return value

        monkeypatch.setattr(torch.cuda, name, call)
    return recorder


def test_a_step_on_cuda_is_timed_by_events_without_a_synchronisation(cuda: Recorder) -> None:
    rows = np.zeros((2, len(COLUMNS)))
    clock = PhaseClock(CudaDevice(1), rows)
    cuda.reached = 0
    clock.start_step(0, 0.0)
    for phase in ("data", "h2d", "forward", "backward", "optimizer"):
        clock.mark(phase)
    clock.end_step()
    assert "synchronize" not in cuda.calls
    assert "elapsed_time" not in cuda.calls  # would wait for an event that is not yet past
    cuda.reached = 10**9
    clock.drain()
    assert rows[0, COLUMNS.index("step")] == pytest.approx(6e-3)
    assert rows[0, COLUMNS.index("forward")] == pytest.approx(1e-3)
    assert "synchronize" not in cuda.calls


def test_events_are_used_again_once_their_times_have_been_read(cuda: Recorder) -> None:
    rows = np.zeros((20, len(COLUMNS)))
    clock = PhaseClock(CudaDevice(0), rows)
    for step in range(20):
        cuda.reached = 10**9 if step % 5 == 4 else 0
        clock.start_step(step, float(step))
        clock.mark("forward")
        clock.bucket_done(clock.bucket_ready(0, 8, is_last=True))
        clock.mark("backward")
        clock.end_step()
    # Five steps are pending at most. Each has five events: the last gradient's is also its
    # all-reduce's, and the end of a step is the begin of the next.
    assert cuda.calls.count("new event") == 5 * 5 + 1
    assert rows[:, COLUMNS.index("step")] == pytest.approx(5e-3)


def test_an_event_is_recorded_on_the_rank_s_gpu_from_any_thread(cuda: Recorder) -> None:
    # gloo calls hooks in threads whose current device is still GPU 0.
    CudaDevice(1).stamp()
    assert cuda.calls[-1] == "record on stream of cuda:1"


def test_cuda_memory_is_what_the_allocator_reserved(cuda: Recorder) -> None:
    device = CudaDevice(0)
    device.reset_peak()
    assert (device.peak_bytes(), device.memory_bytes(), device.free_bytes()) == (7, 5, 3)
    device.release()
    device.finish()
    assert cuda.calls[-2:] == ["empty_cache", "synchronize"]


@pytest.mark.parametrize(
    ("budget_mib", "uses_nccl", "share"),
    [(1512, False, 0.5), (1512, True, 0.372), (2512, False, 1.0), (9000, False, 1.0), (1, True, 0)],
)
def test_a_memory_budget_limits_the_allocator_to_what_the_context_leaves(
    monkeypatch: pytest.MonkeyPatch, cuda: Recorder, budget_mib: int, uses_nccl: bool, share: float
) -> None:
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1, 2000 * 2**20))
    cpus = sorted(os.sched_getaffinity(0))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(torch, "set_num_interop_threads", lambda _: None)
    open_device("cuda:0", cpus, 1, budget_bytes=budget_mib * 2**20, uses_nccl=uses_nccl)
    assert shares == [pytest.approx(share)]
    assert isinstance(shares[0], float)  # torch takes nothing else
    open_device("cuda:0", cpus, 1)
    assert len(shares) == 1


def test_the_peak_is_measured_from_the_end_of_tuning(cuda: Recorder) -> None:
    device = CudaDevice(0)
    cuda.calls.clear()
    assert device.end_tuning() == 7
    # The first step must be over, and its peak read, before the cache is emptied.
    assert cuda.calls == [
        "synchronize", "max_memory_reserved", "empty_cache", "reset_peak_memory_stats"
    ]  # fmt: skip
    assert device.peak_allocated_bytes() == 6
    assert CpuDevice().end_tuning() is None


def test_tuning_ends_once_after_the_first_step_and_outside_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []

    def end_tuning() -> int:
        seen.append("end_tuning")
        return 9

    def go_on(steps: int) -> bool:
        seen.append("go_on")
        return steps < 3

    device = SimpleNamespace(end_tuning=end_tuning)
    trainer: Any = SimpleNamespace(device=device, tuning_peak_bytes=None)
    monkeypatch.setattr(loop, "train_step", lambda _, index: seen.append(f"step {index}"))
    stop_sync: Any = SimpleNamespace(go_on=go_on)
    assert loop.training_loop(trainer, stop_sync) == 3
    assert seen == ["step 0", "end_tuning", "go_on", "step 1", "go_on", "step 2", "go_on"]
    assert trainer.tuning_peak_bytes == 9


@pytest.mark.parametrize(("limit", "free_bytes"), [(None, 3), (9, 3), (6, 1), (1, 0)])
def test_no_more_is_free_than_the_limit_of_the_allocator_leaves(
    cuda: Recorder, limit: int | None, free_bytes: int
) -> None:
    # 3 of 11 bytes are free, 5 are reserved.
    assert CudaDevice(0, limit).free_bytes() == free_bytes


def test_batches_are_copied_on_a_stream_that_nothing_else_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda *args, **named: made.append((args, named)))
    device = torch.device("cuda", 1)
    cuda_module.CopyPrefetcher(device)
    assert made == [((device,), {"priority": -1})]


def test_a_gpu_that_is_not_there_is_told_in_a_line() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(MachineError, match=r"^cuda:0.* cannot be selected"):
        # In a child, because threads and affinity of this process must stay as they are.
        _open_in_place("cuda:0")


def _open_in_place(name: str) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    open_device(name, cpus, torch.get_num_threads())


@pytest.mark.parametrize(("name", "interface"), [("MPS", torch.backends.mps), ("XPU", torch.xpu)])
def test_a_gpu_that_is_not_supported_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, interface: Any
) -> None:
    for other in (torch.backends.mps, torch.xpu):
        monkeypatch.setattr(other, "is_available", lambda other=other: other is interface)
    line = cuda_module.why_no_gpus("mac")
    assert line.startswith("mac has none: dpeval times GPUs with CUDA events")
    assert f"its {name} device is not supported" in line


def test_without_any_gpu_no_other_kind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for other in (torch.backends.mps, torch.xpu):
        monkeypatch.setattr(other, "is_available", lambda: False)
    assert cuda_module.why_no_gpus("host") == "host has none that this process can use"


@pytest.mark.parametrize(
    ("hip", "names"),
    [(None, {"cuda", "cudnn", "nccl"}), ("6.4.43482", {"hip", "miopen", "rccl"})],
)
def test_versions_carry_the_names_of_what_torch_was_built_with(
    monkeypatch: pytest.MonkeyPatch, hip: str | None, names: set[str]
) -> None:
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.version, "cuda", None if hip else "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 3_005_000)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 22, 3))
    assert set(cuda_module.library_versions()) == names


def test_no_gpu_is_an_empty_list() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert cuda_module.cuda_gpus() == []


def test_cpu_peak_follows_what_is_touched() -> None:
    device = CpuDevice()
    device.reset_peak()
    before = device.peak_bytes()
    block = np.ones(64 * 2**20, dtype=np.uint8)
    assert device.peak_bytes() - before >= 60 * 2**20
    assert block[0] == 1


@pytest.mark.parametrize(("precision", "enabled"), [("fp32", False), ("bf16", True)])
def test_autocast_only_where_asked(precision: str, enabled: bool) -> None:
    with numerics.autocast(CpuDevice(), precision):
        made = torch.ones(2, 2) @ torch.ones(2, 2)
    assert (made.dtype == torch.bfloat16) is enabled
    assert not numerics.grad_scaler(CpuDevice(), precision).is_enabled()
