"""The plan of a run: what each rank does, and on which CPUs or GPU."""

from __future__ import annotations

from pydantic import AliasChoices, Field

from dpeval.record.codes import SkipCode
from dpeval.util.frozen import Frozen


class RankPlan(Frozen):
    """What one rank does, and where."""

    rank: int
    node: int
    local_rank: int
    device: str
    """``cpu`` or ``cuda:<index>``."""
    gpu_uuid: str = ""
    """Identifies the GPU regardless of ``CUDA_VISIBLE_DEVICES``."""
    cpus: list[int]
    """Logical CPUs that the rank is pinned to; a GPU rank launches its kernels there."""
    spare_cpus: list[int] = []
    """Logical CPUs for the loader workers of this rank, none of which computes."""
    threads: int
    per_device_batch_size: int = Field(
        validation_alias=AliasChoices("per_device_batch_size", "batch")  # its first name
    )
    """Images per step of this rank."""
    weight: float
    """Weight of this rank's mean loss in the mean over the global batch: its share of the
    images."""


OVERSUBSCRIBED = "oversubscribed"
"""Start of the note that marks more compute threads than CPUs, or more ranks than GPUs."""


class Plan(Frozen):
    """What every rank will do, or why the run cannot start."""

    world_size: int
    global_batch_size: int = Field(
        validation_alias=AliasChoices("global_batch_size", "global_batch")  # its first name
    )
    micro_batches: int = 1
    backend: str
    ranks: list[RankPlan]
    notes: list[str] = []
    """What readers of the figures must know (oversubscribed, SMT siblings shared, …)."""
    skip: str | None = None
    """Why this run is not started; None if it is started."""
    skip_kind: SkipCode = "devices"
    """The code of the record's cause if it is skipped."""

    @property
    def is_oversubscribed(self) -> bool:
        """Whether there are more compute threads than CPUs, or more ranks than GPUs."""
        return any(OVERSUBSCRIBED in note for note in self.notes)
