"""A run as asked for, and where it is among nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dpeval.config import Config
from dpeval.instruments.step_buffer import Stage
from dpeval.record.plan import Plan
from dpeval.record.schema import MemoryRecord


@dataclass(frozen=True)
class Job:
    """One run as asked for: its configuration, plan and the folder of its record."""

    config: Config
    plan: Plan
    folder: Path
    overrides: tuple[str, ...]
    node: Node | None = None
    """This process's place where the run has several nodes."""
    memory: MemoryRecord = field(default_factory=MemoryRecord)
    """Forecast, budget and what was decided from them."""


@dataclass(frozen=True)
class Snapshot:
    """Where a run is, for a progress display."""

    stage: Stage
    steps: int
    elapsed_s: float
    img_per_s: float
    rel_half_width: float


class ProgressListener(Protocol):
    """Something that shows a run's progress to a person."""

    def progress(self, job: Job, snapshot: Snapshot) -> None: ...


@dataclass(frozen=True)
class Node:
    """This process's place among the nodes of a run."""

    index: int
    count: int
    folder: Path
    """The run's folder, seen by all nodes."""
    attempt: str
    """Tells this start of the run from an earlier one, whose files may still lie there."""


@dataclass(frozen=True)
class StoreAddress:
    """Where the ranks of a run find each other."""

    host: str
    port: int
    interface: str
