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
