"""What every rank was planned to do."""

from __future__ import annotations

from dpeval.record.codes import SkipCode
from dpeval.util.frozen import Frozen


class RankPlan(Frozen):
    """One rank's share."""

    rank: int
    node: int
    local_rank: int
    device: str
    """``cpu`` or ``cuda:<index>``."""
    gpu_uuid: str = ""
    """The GPU itself, whatever ``CUDA_VISIBLE_DEVICES`` makes of its index."""
    cpus: list[int]
    """Logical CPUs it is pinned to."""
    spare_cpus: list[int] = []
    """Logical CPUs that no rank computes on and that this rank's data workers may use."""
    threads: int
    batch: int
    """Images per step of this rank."""
    weight: float
    """Factor on this rank's mean loss in that of the global batch: batch / global_batch."""


OVERSUBSCRIBED = "oversubscribed"
"""How the note of a plan begins that gives ranks more compute threads than there are CPUs."""


class Plan(Frozen):
    """What will be run."""

    world_size: int
    global_batch: int
    micro_batches: int = 1
    backend: str
    ranks: list[RankPlan]
    notes: list[str] = []
    """What a reader of the figures should know (oversubscribed, SMT siblings shared, …)."""
    skip: str | None = None
    """Why this run is not started; None where it is."""
    skip_kind: SkipCode = "devices"
    """What it lacks, as in a record's cause."""

    @property
    def is_oversubscribed(self) -> bool:
        """Whether more compute threads than CPUs were planned."""
        return any(OVERSUBSCRIBED in note for note in self.notes)
