"""Faults of the whole command: what surrounds it is missing, too small, or taken away at once."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.faults import victim as victims
from benchmarks.faults.drawing import Fault
from benchmarks.faults.findings import Finding, doubled, hang, lost, other
from benchmarks.faults.invariants import no_process, no_traceback, records, violations
from benchmarks.faults.programs import Zygote
from dpeval import record

_CGROUPS = Path("/sys/fs/cgroup")


def carry_out(fault: Fault, folder: Path, zygote: Zygote) -> Iterator[Finding]:
    """Let a sweep in `folder` suffer `fault`; yield what it leaves that it should not have."""
    if fault.kind in ("all_killed", "frozen"):
        victim = victims.start(zygote, folder, fault)
        hit = victims.inject(victim, fault)
        ended = victims.finish(victim)
        yield from violations(zygote, victim, fault, hit=hit, ended=ended)
    elif fault.kind.startswith("twins"):
        yield from _twins(fault, folder, zygote)
    else:
        yield from _SURROUNDINGS[fault.kind](fault, folder, zygote)


def _twins(fault: Fault, folder: Path, zygote: Zygote) -> Iterator[Finding]:
    """Two sweeps at once: of one named folder, one is refused; unnamed, each has its own."""
    names = ["a", "b"]
    is_named = fault.kind == "twins"
    own = [] if is_named else ["hydra.sweep.dir=out/${now:%Y-%m-%d}"]
    both = [
        victims.start(zygote, folder, fault, overrides=own, log=f"log-{name}") for name in names
    ]
    ended = [victims.finish(one) for one in both]
    if not all(ended):
        yield hang("it hung")
        return
    for one in both:
        yield from no_process(one.program)
        yield from no_traceback(one.program)
    statuses = sorted(one.program.status or 0 for one in both)
    if statuses != ([0, 2] if is_named else [0, 0]):
        yield other(f"exit statuses {statuses}")
    sweeps = [both[0].sweep] if is_named else sorted((folder / "out").iterdir())
    for sweep in sweeps:
        yield from records(sweep)
    count = sum(len(list(sweep.rglob(record.FILE_NAME))) for sweep in sweeps)
    wanted = victims.RUNS * (1 if is_named else 2)
    if count != wanted:
        words = f"{count} records of {wanted} runs"
        yield lost(words) if count < wanted else doubled(words)


def _started_anew(fault: Fault, folder: Path, zygote: Zygote) -> Iterator[Finding]:
    before = {
        "no_loopback": ["unshare", "--net"],
        "nofile": ["prlimit", f"--nofile={fault.size}"],
        "address_space": ["prlimit", f"--as={fault.size << 20}"],
        "cpu_limit": ["prlimit", f"--cpu={fault.size}:{fault.size + 60}"],
        "closed_output": ["bash", "-c", 'exec "$@" >&-', "bash"],
        "few_ports": [
            "unshare", "--net", "bash", "-c",
            f"ip link set lo up && echo 40000 {40000 + fault.size} "
            ">/proc/sys/net/ipv4/ip_local_port_range && exec \"$@\"", "bash",
        ],
        "no_home": ["env", "-u", "HOME", "-u", "USER", "-u", "LOGNAME"],
    }[fault.kind]  # fmt: skip
    victim = victims.start(None, folder, fault, before=before)
    ended = victims.finish(victim)
    yield from violations(zygote, victim, fault, hit=False, ended=ended)


def _in_small_cgroup(fault: Fault, folder: Path, zygote: Zygote) -> Iterator[Finding]:
    is_v1 = (_CGROUPS / "memory").is_dir()
    if not is_v1:
        (_CGROUPS / "cgroup.subtree_control").write_text("+memory")
    group = _CGROUPS / ("memory" if is_v1 else "") / f"dpeval-faults-{os.getpid()}-{fault.number}"
    group.mkdir()
    try:
        limit = group / ("memory.limit_in_bytes" if is_v1 else "memory.max")
        limit.write_text(f"{fault.size}M")
        enter = f'echo $$ > {group}/cgroup.procs && exec "$@"'
        victim = victims.start(None, folder, fault, before=["bash", "-c", enter, "bash"])
        ended = victims.finish(victim)
        found = violations(zygote, victim, fault, hit=False, ended=ended)
        # The kernel may choose the sweep's own process, which then can say nothing.
        yield from (one for one in found if "exit status -9" not in one.words)
    finally:
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            group.rmdir()


_SURROUNDINGS: dict[str, Callable[[Fault, Path, Zygote], Iterator[Finding]]] = {
    "no_loopback": _started_anew,
    "nofile": _started_anew,
    "address_space": _started_anew,
    "cpu_limit": _started_anew,
    "closed_output": _started_anew,
    "few_ports": _started_anew,
    "no_home": _started_anew,
    "small_cgroup": _in_small_cgroup,
}
