"""From a configuration and a machine to what every rank will do; starts nothing."""

from __future__ import annotations

from dpeval.schema import Frozen


class RankPlan(Frozen):
    """One rank's share."""

    rank: int
    node: int
    local_rank: int
    device: str
    """``cpu`` or ``cuda:<index>``."""
    cpus: list[int]
    """Logical CPUs it is pinned to."""
    threads: int
    batch: int
    """Images per step of this rank."""
    weight: float
    """Factor on this rank's mean loss, so that DDP's mean of gradients equals the gradient of
    the mean loss over the global batch: world_size * batch / global_batch."""


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
