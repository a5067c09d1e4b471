"""File systems of other machines: the parts of /proc and /sys that dpeval reads."""

from __future__ import annotations

from pathlib import Path


def grow(root: Path, files: dict[str, str]) -> Path:
    """Write `files` (path below `root` to text) and return `root`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def topology(root: Path, *, sockets: int, cores: int, smt: int, dies: int = 1) -> Path:
    """A host with one NUMA node a socket, numbered as Linux does: siblings last.

    `cores` is that of one socket; core numbers start anew on every die, as on some processors.
    """
    half = sockets * cores
    files = {"sys/devices/system/cpu/online": f"0-{half * smt - 1}\n"}
    nodes: dict[int, list[int]] = {}
    for cpu in range(half * smt):
        core, socket = cpu % half, cpu % half // cores
        siblings = ",".join(str(core + half * turn) for turn in range(smt))
        folder = f"sys/devices/system/cpu/cpu{cpu}/topology"
        files[f"{folder}/core_cpus_list"] = siblings + "\n"
        files[f"{folder}/thread_siblings_list"] = siblings + "\n"
        files[f"{folder}/physical_package_id"] = f"{socket}\n"
        files[f"{folder}/core_id"] = f"{core % (cores // dies)}\n"
        nodes.setdefault(socket, []).append(cpu)
    for node, cpus in nodes.items():
        files[f"sys/devices/system/node/node{node}/cpulist"] = ",".join(map(str, cpus)) + "\n"
    return grow(root, files)


def stat_of_cpus(**busy_s: float) -> dict[str, str]:
    """``/proc/stat`` of CPUs (``cpu0=1.5``) that have worked so long."""
    lines = [f"{name} {round(100 * time_s)} 0 0 900 0 0 0 0 0 0" for name, time_s in busy_s.items()]
    return {
        "proc/stat": "\n".join(["cpu  1 1 1 1 1 1 1 1 0 0", *lines, "intr 5 0 3", "ctxt 9", ""])
    }


def process(
    pid: int,
    spent_s: float,
    *,
    cpu: int = 0,
    parent: int = 1,
    group: int = 0,
    name: str = "job",
    faults: int = 0,
    touched: int = 7,
    switches: int = 0,
    allowed: str | None = None,
) -> dict[str, str]:
    """A process of one thread: half of its time in the kernel, half not."""
    half = round(50 * spent_s)
    words = ["S", parent, group, 0, 0, 0, 0, touched, 7, faults, 7]
    words += [half, round(100 * spent_s) - half] + [0] * 23 + [cpu] + [0] * 13
    stat = f"{pid} ({name}) {' '.join(map(str, words))}\n"
    status = (
        f"Name:\t{name}\nCpus_allowed_list:\t{allowed or cpu}\n"
        f"voluntary_ctxt_switches:\t{switches}\nnonvoluntary_ctxt_switches:\t0\n"
    )
    folder = f"proc/{pid}"
    return {
        f"{folder}/stat": stat,
        f"{folder}/status": status,
        f"{folder}/task/{pid}/stat": stat,
        f"{folder}/task/{pid}/status": status,
    }
