"""What a rank receives and returns. Importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dpeval.config import Config
from dpeval.data import Source
from dpeval.record.codes import AblationKind, StopReason
from dpeval.record.plan import Plan
from dpeval.record.reference_times import ReferenceTimes


@dataclass(frozen=True)
class RankTask:
    """Everything one rank needs; sent to its process."""

    config: Config
    plan: Plan
    rank: int
    source: Source
    store_host: str
    store_port: int
    env: dict[str, str]


@dataclass(frozen=True)
class RankResult:
    """What a rank that finished returns; its step series are in the step buffer."""

    rank: int
    host: str
    pid: int
    stopped_by: StopReason
    losses: list[float]
    peak_bytes: int | None
    peak_allocated_bytes: int | None
    tuning_peak_bytes: int | None
    baseline_bytes: int
    setup_s: dict[str, float]
    buckets: dict[int, tuple[int, list[float]]]
    ablation: list[AblationSeries]
    images_read: int
    measured_rows: int
    cannot_ablate: bool = False
    """Whether ablation was requested but the strategy cannot skip synchronisation."""
    reference_times: ReferenceTimes | None = None


@dataclass(frozen=True)
class RankFailure:
    """Why a rank failed."""

    rank: int
    at_s: float
    """Monotonic time; distinguishes the first failure from those it caused."""
    exception: str
    message: str
    log: str
    user_error: bool = False
    out_of_memory: bool = False
    peak_bytes: int | None = None


@dataclass(frozen=True)
class AblationSeries:
    """Times of the steps of one block on one rank, s; empty if the rank only waited."""

    kind: AblationKind
    round: int = 0
    """The blocks of one round of all kinds belong together."""
    step_s: Sequence[float] = ()
    data_s: Sequence[float] = ()
    """The part in which it waited for data."""
    compute_s: Sequence[float] = ()
    """The part in which it waited for neither data nor other ranks."""
