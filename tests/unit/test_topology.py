"""What is found out about a machine: this one, and others from their /proc and /sys."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dpeval.system.topology
from dpeval.record.machine import Gpu, Machine
from dpeval.system import cgroups
from dpeval.system.environment import environment, git_state
from dpeval.system.topology import detect, gpu_shares, memory_limit, parse_cpu_list, read_cpus
from tests.unit.trees import grow, topology

GIB = 2**30


@pytest.mark.skipif(not Path("/sys/devices/system/cpu").exists(), reason="needs Linux")
def test_this_machine_is_what_other_tools_say() -> None:
    here = detect()
    assert {cpu.cpu for cpu in here.cpus} == os.sched_getaffinity(0)
    host = environment(here)
    assert host.logical_cpus == psutil.cpu_count()
    assert host.physical_cores == psutil.cpu_count(logical=False)
    assert 0 < here.memory_bytes <= psutil.virtual_memory().total


def test_a_narrower_affinity_is_respected() -> None:
    keep = max(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, [{keep}]); "
        "from dpeval.system.topology import detect; print([cpu.cpu for cpu in detect().cpus])"
    )
    package = str(Path(dpeval.system.topology.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": package},
    )
    assert done.stdout.strip() == str([keep])


def test_nothing_here_imports_torch() -> None:
    code = (
        "import sys, dpeval.planning.cpu_affinity, dpeval.system.conditions; "
        "print('torch' in sys.modules)"
    )
    package = str(Path(dpeval.system.topology.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": package},
    )
    assert done.stdout.strip() == "False"


def test_siblings_sockets_and_nodes_are_told_apart(tmp_path: Path) -> None:
    # Core numbers repeat on the two dies of each socket: they alone would halve the cores.
    cpus = read_cpus(range(32), topology(tmp_path, sockets=2, cores=8, smt=2, dies=2))
    assert len({cpu.core for cpu in cpus}) == 16
    assert cpus[0].core == cpus[16].core != cpus[4].core
    assert [cpu.socket for cpu in cpus[:16]] == [0] * 8 + [1] * 8
    assert [cpu.numa for cpu in cpus[16:]] == [0] * 8 + [1] * 8


def test_a_cpuset_that_holds_only_siblings_has_cores_of_its_own(tmp_path: Path) -> None:
    cpus = read_cpus([4, 5, 6], topology(tmp_path, sockets=1, cores=4, smt=2))
    assert [cpu.cpu for cpu in cpus] == [4, 5, 6]
    assert len({cpu.core for cpu in cpus}) == 3


def test_without_sys_every_cpu_is_a_core_of_one_node(tmp_path: Path) -> None:
    cpus = read_cpus(range(3), tmp_path)
    assert len({cpu.core for cpu in cpus}) == 3
    assert {(cpu.socket, cpu.numa, cpu.efficiency) for cpu in cpus} == {(0, 0, False)}
    host = environment(detect(root=tmp_path), root=tmp_path)
    assert host.logical_cpus == len(os.sched_getaffinity(0))
    assert host.cpu_model


@pytest.mark.parametrize(
    "files",
    [
        {"sys/devices/cpu_atom/cpus": "2-3\n", "sys/devices/cpu_core/cpus": "0-1\n"},
        {
            f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity": f"{capacity}\n"
            for cpu, capacity in enumerate((1024, 1009, 512, 512))
        },
    ],
    ids=["intel", "capacity"],
)
def test_efficiency_cores_are_told(tmp_path: Path, files: dict[str, str]) -> None:
    grow(topology(tmp_path, sockets=1, cores=4, smt=1), files)
    assert [cpu.efficiency for cpu in read_cpus(range(4), tmp_path)] == [False, False, True, True]


@given(numbers=st.sets(st.integers(0, 300), min_size=1))
def test_a_cpu_list_is_read_as_the_kernel_writes_it(numbers: set[int]) -> None:
    parts, start = [], None
    for number in range(302):
        if number in numbers and start is None:
            start = number
        elif number not in numbers and start is not None:
            parts.append(str(start) if start == number - 1 else f"{start}-{number - 1}")
            start = None
    assert parse_cpu_list(",".join(parts) + "\n") == sorted(numbers)


def test_an_absent_or_foreign_cpu_list_is_empty() -> None:
    assert parse_cpu_list("") == parse_cpu_list("\n") == parse_cpu_list("(null)") == []


def test_a_gpu_is_placed_by_its_pci_slot(tmp_path: Path) -> None:
    grow(
        tmp_path,
        {
            "proc/driver/nvidia/gpus/0000:3b:00.0/information": "Model: X\nGPU UUID: \t GPU-aa-1\n",
            "proc/driver/nvidia/gpus/0000:d8:00.0/information": "Model: X\nGPU UUID: \t GPU-bb-2\n",
            "sys/bus/pci/devices/0000:3b:00.0/numa_node": "1\n",
            "sys/bus/pci/devices/0000:d8:00.0/numa_node": "-1\n",
        },
    )
    # Torch leaves the prefix out; the order is CUDA's, not that of the bus.
    gpus = [
        Gpu(index=index, name="X", total_bytes=GIB, uuid=uuid)
        for index, uuid in enumerate(("bb-2", "AA-1", "cc-3"))
    ]
    assert [gpu.numa for gpu in detect(gpus, root=tmp_path).gpus] == [None, 1, None]


@pytest.mark.parametrize(("allowed", "shares"), [(24, 3), (8, 1), (16, 2), (1, 0)])
def test_cpus_are_shares_of_all_gpus_of_the_host(tmp_path: Path, allowed: int, shares: int) -> None:
    folder = "proc/driver/nvidia/gpus"
    grow(
        tmp_path,
        {f"{folder}/0000:{bus}:00.0/information": "Model: X\n" for bus in ("3b", "5e", "d8")}
        | {"sys/devices/system/cpu/online": "0-23\n"},
    )
    assert gpu_shares(allowed, tmp_path) == shares


def test_a_host_without_gpus_or_without_sys_has_no_shares(tmp_path: Path) -> None:
    assert gpu_shares(8, tmp_path) == 0
    grow(tmp_path, {"sys/devices/system/cpu/online": "0-23\n"})
    assert gpu_shares(8, tmp_path) == 0
    node = "sys/class/kfd/kfd/topology/nodes"
    grow(
        tmp_path,
        {f"{node}/0/properties": "simd_count 0\n", f"{node}/1/properties": "simd_count 304\n"},
    )
    assert gpu_shares(24, tmp_path) == 1


def test_an_amd_gpu_is_placed_by_its_serial_number(tmp_path: Path) -> None:
    serial = 0x2D2F1A6F3C8E9B01
    nodes = "sys/class/kfd/kfd/topology/nodes"
    grow(
        tmp_path,
        {
            f"{nodes}/0/properties": "cpu_cores_count 64\nlocation_id 0\nunique_id 0\n",
            f"{nodes}/1/properties": f"location_id 9985\ndomain 1\nunique_id {serial}\n",
            f"{nodes}/2/properties": "location_id 768\ndomain 0\nunique_id 5\n",
            "sys/bus/pci/devices/0000:00:00.0/numa_node": "0\n",
            "sys/bus/pci/devices/0001:27:00.1/numa_node": "3\n",
            "sys/bus/pci/devices/0000:03:00.0/numa_node": "-1\n",
        },
    )
    # HIP gives the digits of the serial number as bytes, which torch prints in hexadecimal.
    as_torch_says = str(UUID(bytes=f"{serial:016x}".encode()))
    gpus = [
        Gpu(index=index, name="X", total_bytes=GIB, uuid=uuid)
        for index, uuid in enumerate(("ffc79498-8ff3-c2dc-3b0d-fafd804516ae", as_torch_says))
    ]
    assert [gpu.numa for gpu in detect(gpus, root=tmp_path).gpus] == [None, 3]


# Memory and processor time that cgroups allow.

V2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "35 31 0:32 {group} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


def test_the_least_limit_on_the_path_counts_under_version_2(tmp_path: Path) -> None:
    job = "sys/fs/cgroup/system.slice/slurmstepd.scope/job_7"
    grow(
        tmp_path,
        {
            "proc/self/mountinfo": V2,
            "proc/self/cgroup": "0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n",
            f"{job}/memory.max": f"{3 * GIB}\n",
            f"{job}/step_0/memory.max": f"{2 * GIB}\n",
            f"{job}/step_0/user/memory.max": "max\n",
            f"{job}/step_0/cpu.max": "max 100000\n",
            f"{job}/cpu.max": "150000 100000\n",
            f"{job}/cpu.stat": "usage_usec 9\nthrottled_usec 2500000\n",
            "sys/fs/cgroup/system.slice/slurmstepd.scope/job_8/memory.max": f"{GIB}\n",
        },
    )
    assert memory_limit(tmp_path) == 2 * GIB
    assert cgroups.cpu_quota(tmp_path) == 1.5
    stats = [(folder / "cpu.stat") for folder in cgroups.folders("cpu", tmp_path)]
    assert cgroups.throttled_s(path.read_text() for path in stats if path.exists()) == 2.5
    assert cgroups.throttled_s(["nr_throttled 1\nthrottled_time 3000000000\n"]) == 3.0
    assert cgroups.throttled_s(["", "nr_periods 0\n"]) is None


def test_version_1_knows_the_limits_above_the_container(tmp_path: Path) -> None:
    grow(
        tmp_path,
        {
            # The group is named as on the host; its folder alone is mounted.
            "proc/self/mountinfo": V1.format(group="/docker/abc")
            + "32 31 0:29 /docker/abc /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n",
            "proc/self/cgroup": "5:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.stat": f"cache 1\nhierarchical_memory_limit {GIB}\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert cgroups.memory_limits(tmp_path) == [GIB]
    assert cgroups.cpu_quota(tmp_path) is None


def test_a_group_outside_of_the_namespace_is_read_at_the_mount(tmp_path: Path) -> None:
    grow(
        tmp_path,
        {
            "proc/self/mountinfo": V2,
            "proc/self/cgroup": "0::/../../other\n",
            "sys/fs/cgroup/memory.max": f"{GIB}\n",
            "sys/other/memory.max": "1\n",
        },
    )
    assert memory_limit(tmp_path) == GIB


def test_both_versions_at_once(tmp_path: Path) -> None:
    grow(
        tmp_path,
        {
            "proc/self/mountinfo": V1.format(group="/")
            + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            "proc/self/cgroup": "4:memory:/a/b\n0::/c\n",
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{5 * GIB}\n",
            "sys/fs/cgroup/unified/c/memory.high": f"{4 * GIB}\n",
        },
    )
    assert sorted(cgroups.memory_limits(tmp_path)) == [4 * GIB, 5 * GIB]


def test_a_limit_above_the_host_or_none_leaves_the_host(tmp_path: Path) -> None:
    assert memory_limit(tmp_path) == psutil.virtual_memory().total
    grow(
        tmp_path,
        {
            "proc/self/mountinfo": V2,
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{2**50}\n",
        },
    )
    assert memory_limit(tmp_path) == psutil.virtual_memory().total


# The environment in the record.


def test_an_environment_names_what_changes_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "OMP_NUM_THREADS": "3",
        "NCCL_ALGO": "Ring",
        "LD_PRELOAD": "",
        "OMPI_TOKEN": "x",
        "CUDA_VISIBLE_DEVICES": "1",
        "AWS_SECRET_ACCESS_KEY": "x",
        "HIP_VISIBLE_DEVICES": "1",
        "ROCR_VISIBLE_DEVICES": "1",
        "RCCL_MSCCL_ENABLE": "0",
        "MIOPEN_FIND_MODE": "2",
        "HSA_XNACK": "1",
    }.items():
        monkeypatch.setenv(name, value)
    machine = Machine(host="h", cpus=[], gpus=[], memory_bytes=1, cpu_quota=2.0)
    made = environment(machine, {"cuda": "12.8"})
    assert made.variables["OMP_NUM_THREADS"] == "3"
    assert {"NCCL_ALGO", "LD_PRELOAD", "CUDA_VISIBLE_DEVICES"} <= set(made.variables)
    assert {"HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "RCCL_MSCCL_ENABLE"} <= set(
        made.variables
    )
    assert {"MIOPEN_FIND_MODE", "HSA_XNACK"} <= set(made.variables)
    assert not {"OMPI_TOKEN", "AWS_SECRET_ACCESS_KEY"} & set(made.variables)
    assert made.versions["cuda"] == "12.8"
    assert {"torch", "numpy", "hydra-core"} <= set(made.versions)
    assert made.cpu_quota == 2.0


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("processor: 0\nmodel name\t: Xeon(R) 6 \nmodel\t: 3\n", "Xeon(R) 6"),
        ("processor\t: 0\ncpu\t\t: POWER9 (raw)\n", "POWER9 (raw)"),
        ("CPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0c\n", "0xd0c"),
    ],
    ids=["x86", "power", "arm"],
)
def test_the_processor_is_named(tmp_path: Path, text: str, model: str) -> None:
    grow(tmp_path, {"proc/cpuinfo": text})
    assert model in environment(detect(), root=tmp_path).cpu_model


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("flags\t\t: fpu sse2 smep fma avx avx2 avx512_bf16 amx_bf16\nbugs\t\t: \n",
         ["amx_bf16", "avx", "avx2", "avx512_bf16", "fma"]),
        ("Features\t: fp asimd crc32 sve bf16\nCPU part\t: 0xd0c\n", ["asimd", "bf16", "sve"]),
        ("processor\t: 0\ncpu\t\t: POWER9 (raw)\n", []),
    ],
    ids=["x86", "arm", "power"],
)  # fmt: skip
def test_instruction_sets_that_speed_up_arithmetic_are_listed(
    tmp_path: Path, text: str, features: list[str]
) -> None:
    grow(tmp_path, {"proc/cpuinfo": text})
    assert environment(detect(), root=tmp_path).cpu_features == features


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    grow(tmp_path, {"pkg/code.py": "1\n", "other/code.py": "1\n", ".gitignore": ".venv\n"})
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_the_commit_and_whether_the_checkout_differs(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert git_state(checkout / "pkg") == (head, False)
    grow(checkout, {"outputs/new.txt": "1\n"})
    assert git_state(checkout / "pkg") == (head, False)
    grow(checkout, {"other/code.py": "2\n"})
    assert git_state(checkout / "pkg") == (head, True)


def test_a_checkout_around_an_installed_package_says_nothing_of_it(checkout: Path) -> None:
    grow(checkout, {".venv/site-packages/pkg/code.py": "1\n"})
    assert git_state(checkout / ".venv/site-packages/pkg") == (None, None)


def test_a_hook_of_another_repository_does_not_mislead(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path_factory.mktemp("other")
    git(other, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / "index"))
    assert git_state(checkout / "pkg")[1] is False


def test_no_commit_no_checkout_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_state(tmp_path) == (None, None)
    git(tmp_path, "init", "-q")
    grow(tmp_path, {"code.py": "1\n"})
    git(tmp_path, "add", ".")
    assert git_state(tmp_path) == (None, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) == (None, None)
    assert git_state(tmp_path / "absent") == (None, None)
