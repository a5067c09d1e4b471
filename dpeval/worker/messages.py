"""What a rank is told and what it returns; importing this does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from dpeval.config import Config
from dpeval.data import Source
from dpeval.record.codes import AblationKind, StopReason
from dpeval.record.plan import Plan
from dpeval.record.reference_times import ReferenceTimes


@dataclass(frozen=True)
class RankTask:
    """Everything that one rank needs to know; travels to its process."""

    config: Config
    plan: Plan
    rank: int
    source: Source
    store_host: str
    store_port: int
    env: dict[str, str]


@dataclass(frozen=True)
class RankResult:
    """What a rank that came to its end tells; the step series lie on the board."""

    rank: int
    host: str
    pid: int
    stopped_by: StopReason
    losses: list[float]
    peak_bytes: int | None
    baseline_bytes: int
    setup_s: dict[str, float]
    buckets: dict[int, tuple[int, list[float]]]
    ablation: list[AblationSeries]
    images_read: int
    measured_rows: int
    is_bound_to_synchronise: bool = False
    """An ablation was asked for, and the strategy cannot keep gradients on their rank."""
    reference_times: ReferenceTimes | None = None


@dataclass(frozen=True)
class RankFailure:
    """Why a rank could not go on."""

    rank: int
    at_s: float
    """Monotonic time, to tell the first failure from those it caused."""
    exception: str
    message: str
    log: str
    user_error: bool = False
    out_of_memory: bool = False
    peak_bytes: int | None = None


@dataclass(frozen=True)
class AblationSeries:
    """One block's step times on one rank, s; empty on a rank that only waited."""

    kind: AblationKind
    step_s: list[float]
