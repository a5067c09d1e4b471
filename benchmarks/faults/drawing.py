"""Which fault is injected, where and when: drawn from a seed, so that each can be repeated."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Tier = Literal["ranks", "parent", "files", "schedulers", "command"]
COUNTS: Mapping[Tier, int] = {
    "ranks": 500, "parent": 160, "files": 180, "schedulers": 120, "command": 40,
}  # fmt: skip
"""Faults of each tier in a campaign of a thousand."""
Target = Literal["rank", "parent", "group", "helper", "call", "files", "scheduler", "command"]
Phase = Literal["import", "starting", "measuring", "ending", ""]
STOPS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGXCPU")
_RANK_SIGNALS = ("SIGKILL", "SIGSEGV", "SIGBUS", "PAUSE")
_CALLS = ("fsync", "rename", "link")
_ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EFBIG")
_FILES = (
    "tmpfs", "inodes", "tmpdir", "size_limit", "refused", "strace", "no_links", "chmod",
    "strace_kill", "damaged_manifest", "damaged_record", "damaged_job", "leftover", "tmpfs",
    "refused", "strace",
)  # fmt: skip
SchedulerName = Literal["slurm", "oar"]
_SCHEDULERS: tuple[tuple[SchedulerName, str], ...] = (
    ("slurm", "fail"), ("oar", "accept_then_fail"), ("slurm", "job_signal"), ("oar", "fail"),
    ("slurm", "accept_then_fail"), ("oar", "empty"), ("slurm", "killed"), ("slurm", "requeued"),
    ("oar", "job_killed"), ("slurm", "restart"), ("slurm", "skewed"), ("slurm", "empty_squeue"),
    ("oar", "stopped"), ("slurm", "accounting_restart"), ("slurm", "garbage"), ("oar", "killed"),
    ("slurm", "no_accounting"), ("slurm", "stopped"), ("oar", "job_signal"),
    ("slurm", "job_killed"), ("oar", "restart"), ("slurm", "suspended"), ("slurm", "changed_job"),
    ("oar", "garbage"), ("slurm", "late_accounting"), ("slurm", "fail"), ("oar", "skewed"),
    ("slurm", "empty"), ("slurm", "accept_then_fail"), ("slurm", "job_signal"),
)  # fmt: skip
_SUBMITS: Mapping[SchedulerName, str] = {"slurm": "sbatch", "oar": "oarsub"}
_ASKS: Mapping[SchedulerName, tuple[str, ...]] = {
    "slurm": ("sbatch", "sbatch", "squeue", "sacct", "scontrol", "sinfo"),
    "oar": ("oarsub", "oarsub", "oarstat", "oarstat"),
}
_COMMANDS = (
    "all_killed", "frozen", "no_loopback", "nofile", "address_space", "cpu_limit", "twins",
    "twins_of_a_second", "closed_output", "few_ports", "small_cgroup", "no_home",
)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One fault."""

    tier: Tier
    number: int
    seed: int
    kind: str
    """A signal, ``PAUSE`` (stopped, then continued), or what else is done."""
    target: Target
    phase: Phase = ""
    after_s: float = 0.0
    """How long after the phase has begun."""
    pause_s: float = 0.0
    call: str = ""
    """The call of the parent, or the command of the scheduler, that is hit."""
    at: int = 1
    """Which of these calls, from 1."""
    size: int = 0
    """Of a disk or a limit; its unit depends on the kind."""
    error: str = ""
    """What a refused call returns."""
    scheduler: SchedulerName = "slurm"
    skew_s: float = 0.0
    """How far a clock is ahead."""
    sequential: bool = False
    """Whether the sweep's runs follow each other; else they take turns."""

    @property
    def command(self) -> str:
        """What repeats it."""
        return (
            f"python -m benchmarks.faults --tier {self.tier} --only {self.number} "
            f"--seed {self.seed}"
        )

    @property
    def words(self) -> str:
        if self.tier == "schedulers":
            return f"{self.scheduler}: {self._what}"
        return self._what

    @property
    def _what(self) -> str:
        if self.skew_s:
            where = "nodes" if self.hits_nodes else "submitting machine"
            return f"clock of the {where} {self.skew_s:+.0f} s"
        if self.call:
            with_error = f" ({self.error})" if self.error else ""
            return f"{self.kind}{with_error} at {self.call} number {self.at}"
        if self.phase:
            paused = f" for {self.pause_s:.1f} s" if self.kind == "PAUSE" else ""
            return (
                f"{self.kind}{paused} on {self.target}, {self.after_s:.2f} s after "
                f"'{self.phase}' began"
            )
        return self.kind + (f" {self.size}" if self.size else "")

    @property
    def hits_nodes(self) -> bool:
        """Whether it hits the machines of the jobs, not the one that submits."""
        return self.number % 2 == 0

    @property
    def stops(self) -> bool:
        """Whether it asks the sweep to stop in order."""
        return self.target in ("parent", "group", "call") and self.kind in STOPS

    @property
    def kills(self) -> bool:
        """Whether it ends the sweep's own process, or that of a job, at once."""
        if self.kind in ("leftover", "killed", "strace_kill", "job_killed", "requeued"):
            return True
        return self.kind in ("SIGKILL", "all_killed") and self.target not in ("rank", "helper")


def draw(tier: Tier, number: int, seed: int) -> Fault:
    """Fault `number` of `tier`; the same for the same `seed`.

    Where, when and how hard is drawn; the kinds of files, schedulers and commands follow each
    other, so that a few faults already cover them.
    """
    chance = random.Random(f"{seed}-{tier}-{number}")
    return _DRAWS[tier](number, seed, chance)


def _ranks(number: int, seed: int, chance: random.Random) -> Fault:
    return Fault(
        "ranks",
        number,
        seed,
        chance.choice(_RANK_SIGNALS),
        "rank",
        phase=chance.choice(("starting", "measuring", "measuring", "measuring")),
        after_s=chance.uniform(0.0, 1.2),
        pause_s=chance.uniform(0.1, 4.0),
        sequential=chance.random() < 0.5,
    )


def _parent(number: int, seed: int, chance: random.Random) -> Fault:
    targets: tuple[Target, ...] = ("parent", "parent", "group", "call", "call", "call", "helper")
    target = chance.choice(targets)
    kinds: tuple[str, ...] = (
        ("SIGKILL", "PAUSE") if target == "helper" else (*STOPS, "SIGKILL", "PAUSE")
    )
    if target == "call":
        kinds = (*STOPS, "SIGKILL")
    phases: tuple[Phase, ...] = ("starting", "measuring", "ending", "import")
    in_call = target == "call"
    phase = chance.choice(phases[:2] if target == "helper" else phases)
    return Fault(
        "parent",
        number,
        seed,
        chance.choice(kinds),
        target,
        phase="" if in_call else phase,
        after_s=chance.uniform(0.0, 0.8),
        pause_s=chance.uniform(0.1, 4.0),
        call=chance.choice(_CALLS) if in_call else "",
        at=chance.randint(1, 6) if in_call else 1,
        sequential=chance.random() < 0.5,
    )


def _files(number: int, seed: int, chance: random.Random) -> Fault:
    kind = _FILES[number % len(_FILES)]
    sizes = {"tmpfs": (64, 700), "inodes": (3, 40), "tmpdir": (4, 64), "size_limit": (2, 40)}
    call = {"refused": chance.choice(_CALLS), "strace": chance.choice((*_CALLS, "openat"))}
    call |= {"no_links": "link", "chmod": "chmod", "leftover": chance.choice(_CALLS)}
    call["strace_kill"] = chance.choice((*_CALLS, "openat"))
    error = {"no_links": "EPERM", "chmod": "EPERM", "leftover": "", "strace_kill": ""}
    most = 400 if call.get(kind) == "openat" else 8
    return Fault(
        "files",
        number,
        seed,
        kind,
        "files",
        size=chance.randint(*sizes[kind]) if kind in sizes else 0,
        call=call.get(kind, ""),
        at=1 if kind in ("no_links", "chmod") else chance.randint(1, most),
        error=error.get(kind, chance.choice(_ERRORS)) if kind in call else "",
        sequential=chance.random() < 0.5,
    )


def _schedulers(number: int, seed: int, chance: random.Random) -> Fault:
    scheduler, kind = _SCHEDULERS[number % len(_SCHEDULERS)]
    submits = _SUBMITS[scheduler]
    fixed = dict.fromkeys(("accept_then_fail", "stopped", "killed"), submits)
    fixed |= {"empty_squeue": "squeue", "no_accounting": "sacct"}
    calls = kind in ("fail", "garbage", "empty", *fixed)
    call = fixed.get(kind, chance.choice(_ASKS[scheduler])) if calls else ""
    return Fault(
        "schedulers",
        number,
        seed,
        kind,
        "scheduler",
        after_s=chance.uniform(0.0, 2.0),
        pause_s=chance.uniform(0.1, 4.0),
        call=call,
        at=chance.randint(1, 2 if call == submits else 3) if calls else 1,
        error=chance.choice(("SIGUSR2", "SIGTERM")) if kind == "job_signal" else "",
        scheduler=scheduler,
        skew_s=chance.choice((-1, 1)) * chance.uniform(30, 5000) if kind == "skewed" else 0.0,
    )


def _command(number: int, seed: int, chance: random.Random) -> Fault:
    kind = _COMMANDS[number % len(_COMMANDS)]
    sizes = {"nofile": (16, 120), "address_space": (300, 6000), "small_cgroup": (30, 400)}
    sizes |= {"cpu_limit": (1, 3), "few_ports": (1, 8)}
    return Fault(
        "command",
        number,
        seed,
        kind,
        "command",
        phase="measuring" if kind in ("all_killed", "frozen") else "",
        after_s=chance.uniform(0.0, 1.0),
        pause_s=chance.uniform(1.0, 6.0),
        size=chance.randint(*sizes[kind]) if kind in sizes else 0,
        sequential=chance.random() < 0.5,
    )


_DRAWS: Mapping[Tier, Callable[[int, int, random.Random], Fault]] = {
    "ranks": _ranks,
    "parent": _parent,
    "files": _files,
    "schedulers": _schedulers,
    "command": _command,
}
