"""One run of a sitting and the turns it has taken."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from dpeval.config import MeasureConfig
from dpeval.instruments.step_buffer import Stage
from dpeval.record.codes import AblationKind, StopReason
from dpeval.record.conditions import Conditions
from dpeval.record.measurement import Interval, Reentry
from dpeval.run.execute import LiveRun, samples_per_step, unit_of
from dpeval.run.job import Snapshot
from dpeval.sitting import rounds
from dpeval.stats import paired, reentry, steady_state
from dpeval.util.arrays import Floats
from dpeval.worker.ablation_schedule import KINDS

PROBED = reentry.MIN_TURNS
"""This many single-step turns are given a second step, since a single step cannot show the cost of
re-entry. No more, because short turns are what makes drift cancel."""
MIN_ABLATED = 6
"""The minimum number of rounds with ablation blocks, unless a limit ends the run."""


@dataclass(eq=False)
class Seat:
    """One run of the sitting, and the turns that it has had."""

    run: LiveRun
    base: Seat | None = None
    """The run its speedup is relative to; None: it has none, or is itself a base."""
    rounds: list[int] = field(default_factory=list[int])
    """The round of every step granted so far."""
    elapsed_s: float = 0.0
    """Time on turn since its first step finished, which ``measure.time_limit_s`` limits."""
    looked_s: float = 0.0
    worked_s: float = 0.0
    idle_since_s: float = math.inf
    """When its last turn ended, on the monotonic clock."""
    addressed: list[int] = field(default_factory=list[int])
    """The ranks that the last order was sent to; empty: all."""
    can_ablate: bool = False
    ablated: int = 0
    """Rounds with ablation blocks so far."""
    ablated_s: float = 0.0
    """Time taken by these blocks."""
    probed: int = 0
    """Single-step turns that were given a second step."""
    reentry: Reentry = field(default_factory=Reentry)
    energy_j: dict[int, tuple[float, int]] = field(default_factory=dict[int, tuple[float, int]])
    """Energy of the host and the run's GPUs in the turns after the first, and the steps of each, by
    round."""
    has_no_energy: bool = False
    """Whether this machine has no energy counters."""
    reason: StopReason | None = None
    """Why it needs no further turn."""
    is_kept: bool = False
    """Whether its provisional record says why it needs no further turn."""
    is_narrow: bool = False
    """Whether the last evaluation found the requested quantity precise enough."""
    mean: Interval | None = None
    speedup: Interval | None = None
    _look: tuple[int, tuple[Floats, list[int], int]] | None = field(default=None, repr=False)
    """The result of the last :meth:`look` and the number of steps it is based on."""
    waves: int = 1
    """How many waves of runs it takes turns with …"""
    wave: int = 1
    """… and the one that it is in, from 1."""
    conditions: Conditions | None = None
    """The state of the machine in the last of them."""

    @property
    def measure(self) -> MeasureConfig:
        return self.run.job.config.measure

    @property
    def is_running(self) -> bool:
        return self.run.ranks.is_running

    @property
    def is_measuring(self) -> bool:
        return self.reason is None and self.is_running

    @property
    def steps(self) -> int:
        return len(self.rounds)

    @property
    def limits(self) -> MeasureConfig:
        """How it is measured until the end of this wave; the waves to come need their share."""
        return replace(
            self.measure,
            max_steps=self.measure.max_steps * self.wave // self.waves,
            time_limit_s=self.measure.time_limit_s * self.wave,
        )

    @property
    def is_at_limit(self) -> bool:
        limits = self.limits
        return self.steps >= limits.max_steps or self.elapsed_s >= limits.time_limit_s

    @property
    def kinds(self) -> tuple[AblationKind, ...]:
        """The kinds of turns it may take."""
        has_several = self.measure.ablation and self.run.job.plan.world_size > 1
        return KINDS if has_several else ("normal",)

    @property
    def energy_j_per_step(self) -> float | None:
        steps = sum(steps for _, steps in self.energy_j.values())
        return sum(joules for joules, _ in self.energy_j.values()) / steps if steps else None

    @property
    def gpus(self) -> list[str]:
        """The GPUs that it uses, by CUDA index."""
        devices = {rank.device for rank in self.run.job.plan.ranks}
        return sorted(name.removeprefix("cuda:") for name in devices if name != "cpu")

    @property
    def has_ablated(self) -> bool:
        """Whether it has had its minimum of ablation blocks."""
        return not self.can_ablate or self.ablated >= MIN_ABLATED

    @property
    def is_ablation_due(self) -> bool:
        """Whether to ablate in the next round: always up to the minimum, then as the share
        allows."""
        is_warm = self.steps >= self.measure.min_warmup_steps
        share = self.measure.ablation_share * self.elapsed_s
        return is_warm and (not self.has_ablated or (self.can_ablate and self.ablated_s <= share))

    def stay(self) -> None:
        """Take turns with the runs of another wave, too."""
        self.wave += 1
        self.reason, self.is_narrow, self.is_kept = None, False, False

    def step_s(self) -> Floats:
        """All step times so far, s, as rank 0 measured them; the all-reduce keeps ranks in step."""
        return self.run.step_buffer.column(0, "step")

    def turn_steps(self) -> int:
        """Steps of its next turn, plus those that will be left out at its start."""
        step_s = self.step_s()
        steps = rounds.turn_steps(float(np.median(step_s[-20:])) if len(step_s) else None)
        is_warm = self.steps >= self.measure.min_warmup_steps
        if steps == 1 and is_warm and self.probed < PROBED:
            steps += 1
            self.probed += 1
        return min(steps + self.reentry.steps, self.limits.max_steps - self.steps)

    def block_steps(self) -> int:
        """Steps of an ablation block in this round: as many as in its last turn."""
        return self.rounds.count(self.rounds[-1])

    def look(self) -> tuple[Floats, list[int], int]:
        """The steps that count, their rounds, and the first of them that is steady.

        Updates how many steps at the start of a turn do not count.
        """
        step_s, least = self.step_s(), self.measure.min_warmup_steps
        if self._look is not None and self._look[0] == len(step_s):
            return self._look[1]  # runs compared with this one ask several times between its turns
        numbers = self.rounds[: len(step_s)]
        self.reentry = reentry.reentry(step_s, numbers, least)
        kept = reentry.kept(numbers, self.reentry.steps)
        left = step_s[kept]
        first = steady_state.first_steady(left, least)
        found = (left, np.asarray(numbers)[kept].tolist(), first)
        self._look = (len(step_s), found)
        return found

    def by_round(self) -> dict[int, float]:
        """Mean step of every round after the warm-up, s."""
        return paired.by_round(*self.look())

    def turns(self) -> paired.Turns:
        """Its rounds so far, which end as soon as enough is known of them."""
        samples = self.run.job.plan.global_batch_size
        return paired.Turns("", samples, self.by_round(), "best")

    def snapshot(self) -> Snapshot:
        """Its progress."""
        mean, job, buffer = self.mean, self.run.job, self.run.step_buffer
        return Snapshot(
            stage=Stage.FINISHED if self.reason is not None else Stage.MEASURING,
            steps=self.steps,
            elapsed_s=self.elapsed_s,
            img_per_s=samples_per_step(job, buffer) / mean.mean if mean is not None else 0.0,
            rel_half_width=mean.rel_half_width if mean is not None else 0.0,
            unit=unit_of(job, buffer),
            speedup=self.speedup,
            stopped_by=self.reason,
        )
