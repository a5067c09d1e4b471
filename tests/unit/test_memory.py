"""Budget, policy, what a forecast learns, and how running out of memory is recognised."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpeval.commands.batch_search import Trial, expand, largest, search
from dpeval.config import HardwareConfig
from dpeval.planning.memory.budget import Decision, budget, decide, node_free
from dpeval.planning.memory.measured_peaks import Peak, learned
from dpeval.record.machine import Gpu, Machine
from dpeval.record.memory import Budget, Forecast
from dpeval.system.oom import KillCounter, is_out_of_memory, kill_counters, killed_for_memory
from dpeval.util.display.units import GIB
from tests.unit.trees import grow

MIB = 2**20
MACHINE = Machine(host="h", cpus=[], gpus=[], memory_bytes=64 * GIB)


def affine(images: int, parts: int) -> Forecast:
    """400 MiB and 100 MiB per image of a micro-batch."""
    size = 100 * MIB * math.ceil(images / parts)
    return Forecast(
        total_bytes=400 * MIB + size,
        parts={"activations": size, "process": 400 * MIB},
        source="model",
    )


def there(mib: int) -> Budget:
    return Budget(bytes=mib * MIB, source="test")


def decided(policy: str, shares: list[int], mib: int) -> Decision:
    return decide(policy, shares, affine, lambda _: there(mib))


def test_what_fits_runs_undivided() -> None:
    decision = decided("accumulate", [8], 1200)
    assert (decision.action, decision.micro_batches) == ("run", 1)


def test_a_skipped_run_names_the_devices_that_it_takes() -> None:
    decision = decided("skip", [128], 2000)
    assert decision.action == "skip"
    assert decision.devices_needed == 8  # 16 images and 400 MiB are 2000 MiB exactly
    assert "fits on 8 devices" in decision.line
    assert "12.89 GiB" in decision.line


def test_no_device_count_helps_where_one_image_is_too_much() -> None:
    assert decided("skip", [4], 450).devices_needed is None


@given(
    images=st.integers(2, 64),
    mib=st.integers(500, 7000),
)
def test_accumulation_takes_the_fewest_equal_parts_that_fit(images: int, mib: int) -> None:
    decision = decided("accumulate", [images], mib)
    fitting = [
        parts
        for parts in range(1, images + 1)
        if images % parts == 0 and affine(images, parts).total_bytes <= mib * MIB
    ]
    assert decision.action == ("run" if fitting[0] == 1 else "accumulate")
    assert decision.micro_batches == fitting[0]


def test_uneven_shares_are_cut_as_evenly_as_can_be() -> None:
    decision = decided("accumulate", [7, 6], 400 + 350)
    assert decision.micro_batches == 3  # 3+2+2 images of 7


def test_accumulation_is_given_up_where_one_image_is_too_much() -> None:
    decision = decided("accumulate", [8], 450)
    assert decision.action == "skip"
    assert "not even micro-batches of one image" in decision.line


def test_the_other_policies_say_what_they_do() -> None:
    assert decided("try", [128], 2000).action == "try"
    assert decided("error", [128], 2000).action == "error"


def test_a_stated_budget_is_taken_as_it_is() -> None:
    found = budget(HardwareConfig(memory_gib=1.5), MACHINE, 4)
    assert (found.bytes, found.source) == (int(1.5 * GIB), "hardware.memory_gib")


def test_a_gpu_rank_has_what_is_free_of_the_fullest_gpu() -> None:
    gpus = [Gpu(index=i, name="g", total_bytes=80 * GIB) for i in range(2)]
    machine = MACHINE.model_copy(update={"gpus": gpus})
    gpu = HardwareConfig(kind="gpu")
    assert budget(gpu, machine, 2).bytes == 80 * GIB
    assert budget(gpu, machine, 2, gpu_free_bytes=[79 * GIB, 11 * GIB]).bytes == 11 * GIB


def test_ranks_that_share_a_gpu_share_its_memory() -> None:
    gpus = [Gpu(index=i, name="g", total_bytes=80 * GIB) for i in range(2)]
    machine = MACHINE.model_copy(update={"gpus": gpus})
    shared = HardwareConfig(kind="gpu", oversubscribe=True)
    assert budget(shared, machine, 2).bytes == 80 * GIB
    assert budget(shared, machine, 3).bytes == 40 * GIB  # two ranks on the fuller GPU
    found = budget(shared, machine, 4, gpu_free_bytes=[79 * GIB, 10 * GIB])
    assert (found.bytes, found.source) == (5 * GIB, "free GPU memory, shared by 2 ranks")
    # A count of devices that this machine does not have is not forecast to share.
    assert budget(HardwareConfig(kind="gpu"), machine, 4).bytes == 80 * GIB


def _group(root: Path, version: int) -> Path:
    """The folder of a memory cgroup of this process in the file system below `root`."""
    kind, options = ("cgroup", "rw,memory") if version == 1 else ("cgroup2", "rw")
    mount = f"30 23 0:26 / /sys/fs/cgroup/memory rw - {kind} cgroup {options}\n"
    line = "3:memory:/mine\n" if version == 1 else "0::/mine\n"
    grow(root, {"proc/self/cgroup": line, "proc/self/mountinfo": mount})
    folder = root / "sys/fs/cgroup/memory/mine"
    folder.mkdir(parents=True)
    return folder


def _limited(root: Path, version: int, limit: int, usage: int, cache: int) -> None:
    """A cgroup of this process below `root` with a limit."""
    folder = _group(root, version)
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        2: ("memory.max", "memory.current"),
    }
    for name, value in zip(names[version], (limit, usage), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\nactive_file 0\n")


@pytest.mark.parametrize("version", [1, 2])
def test_a_cgroup_leaves_its_limit_less_what_is_held(tmp_path: Path, version: int) -> None:
    _limited(tmp_path, version, limit=900 * MIB, usage=500 * MIB, cache=100 * MIB)
    found = node_free({}, tmp_path)
    assert found.bytes == 500 * MIB
    assert "cgroup" in found.source


def test_ranks_share_a_cgroup_but_their_libraries_only_once(tmp_path: Path) -> None:
    _limited(tmp_path, 2, limit=1000 * MIB, usage=0, cache=0)
    found = budget(
        HardwareConfig(), MACHINE, 4, shared_bytes=200 * MIB, variables={}, root=tmp_path
    )
    assert found.bytes == 800 // 4 * MIB + 200 * MIB


def test_slurm_says_its_memory_per_node_or_per_cpu(tmp_path: Path) -> None:
    assert node_free({"SLURM_MEM_PER_NODE": "300"}, tmp_path).bytes == 300 * MIB
    per_cpu = {"SLURM_MEM_PER_CPU": "50", "SLURM_CPUS_ON_NODE": "4"}
    assert node_free(per_cpu, tmp_path).bytes == 200 * MIB
    assert node_free({"SLURM_MEM_PER_NODE": "0"}, tmp_path).source == "free memory of the host"


def test_a_line_through_measured_peaks_replaces_the_allowance() -> None:
    peaks = [Peak(images, (300 + 150 * images) * MIB, None) for images in (2, 4, 8)]
    found = learned(affine(16, 1), 16, peaks)
    assert found.source == "fit"
    assert found.total_bytes == pytest.approx((300 + 150 * 16) * MIB, rel=1e-6)
    assert sum(found.parts.values()) == found.total_bytes
    assert found.parts["activations"] == 1600 * MIB


def test_one_measured_batch_moves_the_forecast_and_keeps_its_slope() -> None:
    peaks = [Peak(8, 1300 * MIB, 800 * MIB)]
    found = learned(affine(16, 1), 16, peaks)
    assert found.total_bytes == (1600 + 500) * MIB


def resnet50_in_bf16(images: int) -> Forecast:
    """The forecast for an H200 at 224 px; a batch of 73 trained in 4 GiB, one of 75 did not."""
    mib = {
        "parameters": 90, "optimizer": 90, "buckets": 90, "input": 0.58 * images,
        "activations": 42.4 * images, "transient": 0.38 * images,
        "fragmentation": 560, "workspace": 96, "context": 512,
    }  # fmt: skip
    parts = {name: int(size * MIB) for name, size in mib.items()}
    return Forecast(total_bytes=sum(parts.values()), parts=parts, source="model")


@pytest.mark.parametrize(("images", "action"), [(73, "run"), (75, "skip")])
def test_what_cuda_s_allocator_would_give_back_does_not_stop_a_run(
    images: int, action: str
) -> None:
    found = decide("skip", [images], lambda size, _: resnet50_in_bf16(size), lambda _: there(4096))
    assert found.action == action
    assert found.forecast.total_bytes > 4096 * MIB  # with more room it takes more


def test_measured_peaks_of_a_gpu_replace_what_they_contain_and_no_more() -> None:
    counted = resnet50_in_bf16(64)
    found = learned(counted, 64, [Peak(62, 3054 * MIB, resnet50_in_bf16(62).counted_bytes)])
    assert found.source == "fit"
    assert {found.parts[name] for name in ("fragmentation", "context")} == {560 * MIB, 512 * MIB}
    beyond = 3054 * MIB - resnet50_in_bf16(62).counted_bytes
    assert found.parts["allowance"] == beyond
    assert found.needed_bytes == counted.counted_bytes + beyond + 512 * MIB


def test_nothing_measured_changes_nothing() -> None:
    assert learned(affine(16, 1), 16, []) == affine(16, 1)


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: "
                     "can't allocate memory: you tried to allocate 400 bytes."),
        OSError(12, "Cannot allocate memory"),
    ],
)  # fmt: skip
def test_every_allocator_is_understood(error: BaseException) -> None:
    assert is_out_of_memory(error)
    outer = ValueError("while building")
    outer.__cause__ = error
    assert is_out_of_memory(outer)


NCCL_ERROR = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled cuda error "
    "(run with NCCL_DEBUG=INFO for details), NCCL version 2.28.9\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\n"
)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA driver error: out of memory",
        "CUDA ran out of memory outside PyTorch's allocator.",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        NCCL_ERROR + "Cuda failure 2 'out of memory'",
        NCCL_ERROR + "Cuda failure 'out of memory'",
        "HIP out of memory. Tried to allocate 3.31 GiB. GPU 0 has a total capacity of 128.00 GiB",
        "HIP error: out of memory",
        "hipErrorOutOfMemory",
        "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
        "miopenStatusAllocFailed",
        "MIOpen Error: handlehip.cpp:70: Memory not available to allocate buffer: 655360000",
    ],
)
def test_a_device_that_names_its_lack_of_memory_is_believed(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))
    assert is_out_of_memory(RuntimeError(text), free_bytes=60 * GIB)


@pytest.mark.parametrize(
    "text",
    [
        "GET was unable to find an engine to execute this computation",
        "FIND was unable to find an engine to execute this computation",
        "[cudnn_frontend] Error: No valid execution plans built.",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
        NCCL_ERROR + "Failed to CUDA calloc 6291456 bytes",
        NCCL_ERROR + "Failed to CUDA calloc async 2432 bytes",
        "miopenStatusUnknownError",
    ],
)
def test_an_error_that_may_be_one_of_memory_is_one_where_little_is_free(text: str) -> None:
    error = RuntimeError(text)
    assert is_out_of_memory(error, free_bytes=200 * MIB)
    assert not is_out_of_memory(error, free_bytes=60 * GIB)
    assert not is_out_of_memory(error, free_bytes=None)


def test_another_error_is_none_of_memory_even_where_little_is_free() -> None:
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    assert not is_out_of_memory(error, free_bytes=0)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes"), ValueError("memory")])
def test_another_error_is_not_taken_for_lack_of_memory(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_a_raised_counter_tells_where() -> None:
    before = [KillCounter("/a", 2), KillCounter("host", 7)]
    assert killed_for_memory(before, before) is None
    assert killed_for_memory(before, [KillCounter("/a", 3), KillCounter("host", 8)]) == "/a"
    # Somebody else was killed, in another cgroup of this host.
    assert killed_for_memory(before, [KillCounter("/a", 2), KillCounter("host", 8)]) is None
    assert killed_for_memory(before[1:], [KillCounter("host", 8)]) == "host"
    assert killed_for_memory([], []) is None


def test_counters_of_both_cgroup_versions_are_read(tmp_path: Path) -> None:
    for version, name, text in (
        (2, "memory.events", "low 0\nmax 9\noom 1\noom_kill 4\n"),
        (1, "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"),
    ):
        root = tmp_path / str(version)
        (_group(root, version) / name).write_text(text)
        (root / "proc/vmstat").write_text("pgfault 5\noom_kill 6\n")
        assert [item.kills for item in kill_counters(root)] == [4, 6]


@given(truth=st.integers(0, 300), guess=st.integers(1, 400))
def test_the_largest_batch_is_found_from_any_guess(truth: int, guess: int) -> None:
    assert largest(lambda batch: batch <= truth, guess, limit=300) == truth


@given(truth=st.integers(0, 2000), first=st.integers(1, 2000), error=st.floats(0.7, 1.4))
def test_the_search_closes_in_on_the_largest_that_fits(
    truth: int, first: int, error: float
) -> None:
    def attempt(batch: int) -> Trial:
        return Trial(batch=batch, fits=batch <= truth, status="ok", peak_bytes=None,
                   forecast_bytes=None, img_per_s=None)  # fmt: skip

    tries, low, high = search(attempt, lambda: int(truth * error) or None, first)
    assert low <= truth
    assert high is None or high > truth
    assert low == max((item.batch for item in tries if item.fits), default=0)
    if len(tries) < 12:
        assert high is not None
        assert high - low <= max(1, low // 32)


def test_lists_of_values_become_every_combination() -> None:
    assert expand(["model=a,b", "num_devices=1,2", "study=x"]) == [
        ["model=a", "num_devices=1", "study=x"],
        ["model=a", "num_devices=2", "study=x"],
        ["model=b", "num_devices=1", "study=x"],
        ["model=b", "num_devices=2", "study=x"],
    ]
