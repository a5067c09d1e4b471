"""What a rank receives and returns. Importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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
    source: Source | None
    """The prepared data; None if the training supplies its own."""
    store_host: str
    store_port: int
    env: dict[str, str]
    log: str | None = None
    """File for the output of a script; None: the output of this process."""


@dataclass(frozen=True)
class Metered:
    """What the meter of a script reports besides the steps."""

    samples_per_step: float | None
    """Samples of all ranks in one step; None: the global batch."""
    unit: str
    """What a sample is: img, tokens, …"""
    phases: list[str]
    """The phases that it could distinguish."""
    missing: list[str]
    """What the meter could not measure, one line each."""
    doubts: list[str] = field(default_factory=list[str])
    """What may be wrong with the script's steps, one line each."""


@dataclass(frozen=True)
class RankResult:
    """What a finished rank returns; its step series are in the step buffer."""

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
    measured_rows: int
    cannot_ablate: bool = False
    """Whether ablation was requested but the strategy cannot skip synchronisation."""
    reference_times: ReferenceTimes | None = None
    unit: str = "img"
    """What a sample is: img, tokens, …"""
    samples_per_step: float | None = None
    """Samples of this rank in a step, as the mean over its steps; None: its part of the batch."""
    metered: Metered | None = None
    """None: the rank ran dpeval's loop."""


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
    script_error: bool = False
    """Whether the script misused the meter, or exited with an error status."""
    out_of_memory: bool = False
    peak_bytes: int | None = None


@dataclass(frozen=True)
class AblationSeries:
    """Times of the steps of one block on one rank, s; empty if the rank only waited."""

    kind: AblationKind
    round: int = 0
    """Blocks of all kinds with the same round belong together."""
    step_s: Sequence[float] = ()
    data_s: Sequence[float] = ()
    """Time of each step in which the rank waited for data, s."""
    compute_s: Sequence[float] = ()
    """Time of each step in which it waited for neither data nor other ranks, s."""
