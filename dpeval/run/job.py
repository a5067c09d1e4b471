"""A run to execute, and its place among nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dpeval.config import Config
from dpeval.errors import DpevalError
from dpeval.instruments.step_buffer import Stage
from dpeval.record.codes import StopReason
from dpeval.record.measurement import Interval
from dpeval.record.plan import Plan
from dpeval.record.schema import MemoryRecord


@dataclass(frozen=True)
class Job:
    """One run to execute: its configuration, plan and record folder."""

    config: Config
    plan: Plan
    folder: Path
    overrides: tuple[str, ...]
    node: Node | None = None
    """This process's node, if the run has several."""
    memory: MemoryRecord = field(default_factory=MemoryRecord)
    """The forecast, the budget and the resulting decision."""
    fault: DpevalError | None = None
    """Why this run of a sweep fails before it starts: a fault of its model or of its data."""


def take_turns(jobs: Sequence[Job]) -> bool:
    """Whether the runs of a sweep on this machine take turns."""
    startable = [job for job in jobs if job.plan.skip is None]
    if len(startable) < 2:
        return False
    config = startable[0].config
    # Whether several scripts fit into memory is not known, so the user must ask for turns.
    wanted = "sequential" if config.task.is_script else "interleaved"
    return (wanted if config.sweep.order == "auto" else config.sweep.order) == "interleaved"


@dataclass
class Span:
    """The time a run took, on the monotonic clock."""

    begun_s: float
    waited_s: float = 0.0
    """Time during which only other runs were on turn, s."""
    waited_before_s: float = 0.0
    """The part of `waited_s` before the first step, s."""


@dataclass(frozen=True)
class Snapshot:
    """Progress of a run at one moment."""

    stage: Stage
    steps: int
    elapsed_s: float
    """Time since the first step finished, which ``measure.time_limit_s`` limits; 0 before."""
    img_per_s: float
    rel_half_width: float
    unit: str = "img"
    """What a sample is, as far as it is known already."""
    speedup: Interval | None = None
    """Over the run it takes turns with and is compared with."""
    stopped_by: StopReason | None = None
    """Why it has left the rounds of its sitting; None: it has not."""


class ProgressListener(Protocol):
    """Shows the progress of a run to the user."""

    def progress(self, job: Job, snapshot: Snapshot) -> None: ...


@dataclass(frozen=True)
class Node:
    """This process's place among the nodes of a run."""

    index: int
    count: int
    folder: Path
    """The run's folder, on a file system that all nodes share."""
    attempt: str
    """Distinguishes this start of the run from earlier ones, whose files may still be there."""


@dataclass(frozen=True)
class StoreAddress:
    """Where the ranks of a run rendezvous."""

    host: str
    port: int
    interface: str
