"""Which fault is injected, where and when: drawn from a seed, so that each can be repeated."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Tier = Literal["ranks", "parent", "files"]
TIERS: tuple[Tier, ...] = ("ranks", "parent", "files")
Target = Literal["rank", "parent", "helper", "group", "files"]
_TARGETS: tuple[Target, ...] = ("parent", "parent", "group", "helper")
Phase = Literal["import", "starting", "measuring", "ending"]
_PHASES: tuple[Phase, ...] = ("import", "starting", "measuring", "ending")
_RANK_SIGNALS = ("SIGKILL", "SIGSEGV", "SIGBUS", "PAUSE")
_STOPS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGXCPU")
_PARENT_SIGNALS = (*_STOPS, "SIGKILL", "PAUSE")
_HELPER_SIGNALS = ("SIGKILL", "PAUSE")
_FILES = ("size_limit", "no_folder", "damaged_manifest", "damaged_record", "leftover", "twins")
PAUSE_S = 3.0


@dataclass(frozen=True)
class Fault:
    """One fault."""

    tier: Tier
    number: int
    seed: int
    kind: str
    """A signal, ``PAUSE`` (stopped, then continued), or what is done to files."""
    target: Target
    phase: Phase
    after_s: float
    """How long after the phase has begun."""

    @property
    def command(self) -> str:
        """What repeats it."""
        return (
            f"python -m benchmarks.faults --tier {self.tier} --only {self.number} "
            f"--seed {self.seed}"
        )

    @property
    def words(self) -> str:
        return f"{self.kind} on {self.target}, {self.after_s:.2f} s after '{self.phase}' began"

    @property
    def stops(self) -> bool:
        """Whether it asks the sweep to stop in order."""
        return self.target in ("parent", "group") and self.kind in _STOPS


def draw(tier: Tier, number: int, seed: int) -> Fault:
    """Fault `number` of `tier`; the same for the same `seed`."""
    chance = random.Random(f"{seed}-{tier}-{number}")
    after_s = chance.uniform(0.0, 1.5)
    if tier == "ranks":
        phase: Phase = chance.choice(("starting", "measuring"))
        return Fault(tier, number, seed, chance.choice(_RANK_SIGNALS), "rank", phase, after_s)
    if tier == "parent":
        target = chance.choice(_TARGETS)
        kinds = _HELPER_SIGNALS if target == "helper" else _PARENT_SIGNALS
        phase = chance.choice(_PHASES[1:3] if target == "helper" else _PHASES)
        return Fault(tier, number, seed, chance.choice(kinds), target, phase, after_s)
    return Fault(tier, number, seed, chance.choice(_FILES), "files", "measuring", after_s)
