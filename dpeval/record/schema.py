"""The record of one run: the schema of ``metrics.json``.

Times are in seconds, sizes in bytes, throughput in samples per second; a sample is an image unless
``unit`` says otherwise. Every series of steps
starts with the first step of the run; ``window.first`` is where the steady state begins.
"""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import AliasChoices, Field, PositiveFloat

from dpeval.record.codes import AblationKind, CauseCode, MemoryAction, Status, WarningCode
from dpeval.record.conditions import Conditions
from dpeval.record.machine import UNKNOWN_ENVIRONMENT, Environment
from dpeval.record.measurement import Balance, Interval, Reentry, Window
from dpeval.record.memory import Budget, Forecast
from dpeval.record.plan import Plan
from dpeval.record.reference_times import ReferenceTimes
from dpeval.util.frozen import Frozen
from dpeval.util.version import __version__

UNKNOWN_FIELDS = ("environment", "started_at", "wall_s", "plan", "ranks", "dataset")
"""Fields that are unknown for a run that never reached a machine."""


class Cause(Frozen):
    """Why a run is not ``ok``."""

    kind: CauseCode
    message: str
    rank: int | None = None
    exception: str | None = None
    signal: str | None = None
    log: str = ""
    """The last lines of the rank's traceback or log."""


class Warning(Frozen):
    """Something that makes a figure less trustworthy."""

    code: WarningCode
    text: str
    """One sentence for people."""
    ranks: list[int] = []
    """The ranks it applies to; empty: the whole run."""


class DatasetUsed(Frozen):
    """The requested dataset and the one used."""

    requested: str
    used: str
    root: str
    train_images: int
    val_images: int = 0
    num_classes: int
    note: str = ""
    """Why `used` differs from `requested`; empty if they are the same."""
    loader: str = "jpeg"
    augment: str = "random_resized_crop"
    left_out: dict[str, int] = {}
    """Counts of files and folders that were left out, by kind."""

    @property
    def is_stand_in(self) -> bool:
        return self.requested != self.used


class PhaseStats(Frozen):
    """One phase of the steps in the main window, in seconds."""

    median_s: float
    mean_s: float
    p05_s: float
    p95_s: float


class Bucket(Frozen):
    """One DDP gradient bucket over the main window."""

    bytes: int
    allreduce_median_s: float
    """From the time its gradients are ready to the end of its all-reduce."""
    allreduce_s: list[float] = []
    """The same for every step of the window."""


class RankRecord(Frozen):
    """One rank: where it ran, its step times and its memory."""

    rank: int
    host: str
    pid: int
    cpus: list[int]
    device: str
    per_device_batch_size: int = Field(
        validation_alias=AliasChoices("per_device_batch_size", "batch")  # its first name
    )
    begin_s: list[float] = []
    """Start of every step, on the host's monotonic clock (comparable within a host)."""
    step_s: list[float]
    """Time of every step, warm-up included."""
    phase_s: dict[str, list[float]]
    """Per phase of :data:`PHASES`, one value per step of `step_s`. `comm_exposed` is communication
    that no computation hides: the wait for the last all-reduce, and DDP's broadcasts of buffers
    before the forward pass, which earlier releases counted as `forward`. `comm_exposed` and
    `grad_copy` are absent if the strategy does not time its communication; both are then part of
    `backward`. If only `grad_copy` is absent, as in records of earlier releases, `comm_exposed`
    includes it."""
    comm_s: list[float] = []
    """Per step: the time with at least one all-reduce or broadcast of buffers in progress; empty if
    the strategy does not time it."""
    comm_hidden_s: list[float] = []
    """Per step: the part of `comm_s` that overlapped with the backward pass."""
    stats: dict[str, PhaseStats] = {}
    """Per phase and ``step``, over the main window."""
    buckets: list[Bucket] = []
    peak_bytes: int | None = None
    """Peak memory, bytes. On a GPU: what the allocator reserved after the first step, without the
    CUDA context. If `tuning_peak_bytes` is absent, the first step is included."""
    peak_allocated_bytes: int | None = None
    """GPU: peak of the memory allocated to tensors after the first step, bytes."""
    tuning_peak_bytes: int | None = None
    """GPU: what the allocator reserved until the end of the first step, in which cuDNN tries
    algorithms, bytes. It does not limit the batch: cuDNN skips algorithms whose workspace does not
    fit."""
    baseline_bytes: int | None = None
    """Memory of the rank before the model was built (interpreter, libraries, CUDA context)."""
    threads: int = 1
    reference_times: ReferenceTimes | None = Field(
        default=None,
        validation_alias=AliasChoices("reference_times", "yardstick"),  # its first name
    )
    """Reference work between steps of CPU ranks: the speed of the machine itself."""


class Throughput(Frozen):
    """Samples processed by all ranks over the time of the slowest rank, in the record's unit per
    second. The names of the fields date from when a sample was always an image."""

    img_per_s: PositiveFloat
    low: PositiveFloat
    high: PositiveFloat
    """The 95 % interval."""
    median_img_per_s: PositiveFloat
    """Global batch over the median step time of the slowest rank."""
    slowest_rank: int
    sequences_per_s: PositiveFloat | None = None
    """For a language model, whose samples are tokens: the same in sequences per second."""


class SetupTimes(Frozen):
    """Times before the first step, s; never part of a mean."""

    total_s: float
    first_step_s: float | None = None
    parts_s: dict[str, float] = {}


class AblationBlock(Frozen):
    """One short block of steps of one kind."""

    kind: AblationKind
    round: int | None = None
    """Blocks of all kinds with the same round belong together. If the run took turns, it is the
    round of its sitting, and blocks of kind ``normal`` are steps of its main window."""
    step_s: list[list[float]]
    """Step times per rank (for ``alone``: of the one rank that ran)."""
    data_s: list[list[float]] = []
    """Likewise, the part in which the rank waited for data; empty in records of earlier releases,
    as `compute_s` is."""
    compute_s: list[list[float]] = []
    """Likewise, the part in which the rank waited for neither data nor other ranks."""


class Ablation(Frozen):
    """Blocks of steps that show the cost of communication and of sharing: after the main window, or
    between its turns."""

    blocks: list[AblationBlock]
    """In the order in which they ran; the n-th blocks of all kinds form one round."""
    normal_s: float
    no_sync_s: float | None
    alone_s: float
    """Mean step time for each of the three kinds of blocks, of the slowest rank (earlier releases:
    the median)."""
    comm_cost_s: float | None
    """normal - no_sync."""
    sharing_cost_s: float | None
    """no_sync - alone."""


class Loss(Frozen):
    """Mean loss of the first and the last measured steps."""

    start: float | None
    end: float | None


class MemoryRecord(Frozen):
    """Forecast and budget of a rank's memory, and the decision."""

    forecast: Forecast | None = None
    budget: Budget | None = None
    action: MemoryAction = "run"
    decision: str = ""
    """The line that was printed before the run."""
    devices_needed: int | None = None
    """The smallest device count at which the batch is forecast to fit, if it does not fit on
    these."""


class Sitting(Frozen):
    """The turns of a run that shared the machine with others, one of them stepping at a time."""

    id: str
    """Shared by the runs that took turns with each other: their steps can be paired by round."""
    rounds: list[int]
    """Round of every step, warm-up included, from 0; the same on all ranks. In each round, every
    run that is still being measured has one turn, in changing order."""
    runs: int
    """Number of runs that took turns."""
    reentry: Reentry = Reentry()
    """Number of steps at the start of every turn that are left out of all series because they take
    longer than the rest."""
    left_out: int = 0
    """Total number of these steps."""
    energy_j_per_step: float | None = None
    """From energy counters, read at the beginning and end of each turn."""
    energy_j_by_round: dict[int, float] = {}
    """The same of each turn after the first; empty if there are no counters."""
    base_devices: int | None = None
    """Device count of the run on the fewest devices that is otherwise configured like this one,
    unless it is this one …"""
    base_strategy: str = ""
    """… and its strategy."""
    speedup: Interval | None = None
    """Throughput relative to that run, from the rounds that both took part in; None: too few
    rounds."""
    alone: Interval | None = None
    """If that run has a single rank: its step time over that of this run's first rank alone, both
    without waits for data, from the rounds that have both."""


class Scheduler(Frozen):
    """The scheduler job in which the run was executed."""

    kind: str
    job_id: str
    array_id: str | None = None
    nodes: list[str] = []
    nodes_asked: str | None = None
    """The kind of node that was requested, see :func:`dpeval.config.nodes_asked`; None: recorded by
    an earlier version."""
    details: dict[str, str] = {}


class Record(Frozen):
    """Everything known about one run; ``metrics.json`` is its JSON."""

    schema_version: Literal[1, 2] = 2
    """2: a sample need not be an image (`unit`)."""
    dpeval_version: str
    run_id: str
    identity: str
    """Hash of the resolved configuration without output keys (:func:`dpeval.config.identity`)."""
    status: Status
    cause: Cause | None = None
    study: str
    repetition: int = 0
    started_at: str
    """ISO 8601 with offset."""
    wall_s: float
    command: str
    """The command that reproduces this run."""
    overrides: list[str] = []
    config: dict[str, Any]
    plan: Plan | None = None
    dataset: DatasetUsed | None = None
    environment: Environment
    scheduler: Scheduler | None = None
    conditions: Conditions | None = None
    """The state of the machine while the run was measured; if the run took turns, during the whole
    sitting."""
    sitting: Sitting | None = None
    setup: SetupTimes | None = None
    window: Window | None = None
    unit: str = Field(default="img", max_length=20)
    """What a sample is: img, tokens, …"""
    samples_per_step: PositiveFloat | None = None
    """Samples of all ranks in one step, as the script reported to its meter; None: the global
    batch."""
    throughput: Throughput | None = None
    """In samples per second."""
    ranks: list[RankRecord] = []
    ablation: Ablation | None = None
    balance: Balance | None = None
    loss: Loss | None = None
    energy_j_per_img: float | None = None
    memory: MemoryRecord = Field(default_factory=MemoryRecord)
    warnings: list[Warning] = []
    missing: list[str] = []
    """What this record lacks, one line each."""

    @property
    def slowest(self) -> RankRecord | None:
        """The rank whose steps the figures of this run are: the slowest, for which all others
        wait. Of a run without throughput, the first."""
        rank = self.throughput.slowest_rank if self.throughput is not None else 0
        return next((one for one in self.ranks if one.rank == rank), None)


def readings(ranks: Sequence[RankRecord], window: Window | None) -> list[ReferenceTimes]:
    """Times of each CPU rank's reference work within the main window."""
    if window is None:
        return []
    last = window.first + window.steps
    return [
        rank.reference_times.within(window.first, last) for rank in ranks if rank.reference_times
    ]


def now() -> str:
    """The current time as ISO 8601 with offset."""
    return datetime.now().astimezone().isoformat(timespec="milliseconds")


def blank(
    config: dict[str, Any],
    identity: str,
    overrides: Sequence[str],
    status: Status,
    cause: Cause | None,
    *,
    environment: Environment | None = None,
    started_at: str | None = None,
    plan: Plan | None = None,
    dataset: DatasetUsed | None = None,
    memory: MemoryRecord | None = None,
    scheduler: Scheduler | None = None,
) -> Record:
    """The record of a run before its first step, or of one that never took a step.

    Args:
        config: the resolved configuration, as plain values.
        identity: its hash (:func:`dpeval.config.identity`).
        overrides: the user's overrides of the defaults, which the command repeats.
        status: how the run ends if nothing more is recorded.
        cause: why it is not ``ok``.
        environment: where it ran; None if unknown, and then listed in ``missing``.
        started_at: ISO 8601 with offset; now by default.
        plan: what every rank would do.
        dataset: the data used.
        memory: forecast, budget and decision.
        scheduler: its job, if any.
    """
    is_known = environment is not None
    return Record(
        dpeval_version=__version__,
        run_id=uuid.uuid4().hex,
        identity=identity,
        status=status,
        cause=cause,
        study=str(config["study"]),
        repetition=int(config["repetition"]),
        started_at=started_at or now(),
        wall_s=0.0,
        command=shlex.join(["python", "-m", "dpeval.train", *overrides]),
        overrides=list(overrides),
        config=config,
        plan=plan,
        dataset=dataset,
        environment=environment or UNKNOWN_ENVIRONMENT,
        scheduler=scheduler,
        memory=memory or MemoryRecord(),
        missing=[] if is_known else list(UNKNOWN_FIELDS),
    )
