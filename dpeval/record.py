"""The record of one run: the schema of ``metrics.json``, its atomic write, its reading.

Times are in seconds, sizes in bytes, throughput in images per second. Every series of steps
counts from the first step of the run; ``window.first`` says where the steady state begins.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from dpeval.conditions import Conditions
from dpeval.errors import RecordError
from dpeval.machine import Environment
from dpeval.measure import Balance, Window
from dpeval.memory import Budget, Forecast
from dpeval.plan import Plan
from dpeval.schema import Frozen
from dpeval.yardstick import Yardstick

SCHEMA_VERSION = 1
FILE_NAME = "metrics.json"

PHASES = ("data", "h2d", "forward", "backward", "comm_exposed", "optimizer", "other")
"""The parts of a step, in order; they add up to it. `other` is the remainder."""
OWN_PHASES = tuple(phase for phase in PHASES if phase != "comm_exposed")
"""The parts in which a rank works on its own; in the rest of a step it waits for others."""

Status = Literal["ok", "skipped", "oom", "failed", "interrupted"]


class Cause(Frozen):
    """Why a run is not ``ok``."""

    kind: str
    """One word: devices, memory, exception, signal, hang, interrupt, time_limit, lost, …"""
    message: str
    rank: int | None = None
    exception: str | None = None
    signal: str | None = None
    log: str = ""
    """The end of the rank's traceback or log."""


class Warning(Frozen):
    """Something that makes a figure less trustworthy, in words."""

    code: str
    """Stable, for programs: unsteady, imprecise, input_bound, straggler, jitter, stand_in, …"""
    text: str
    ranks: list[int] = []


class DatasetUsed(Frozen):
    """What was asked for and what was fed."""

    requested: str
    used: str
    root: str
    train_images: int
    val_images: int = 0
    num_classes: int
    note: str = ""
    """Why `used` differs from `requested`; empty where it does not."""
    loader: str = "jpeg"
    augment: str = "random_resized_crop"

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
    """From the moment the bucket's gradients are ready to the end of its all-reduce."""
    allreduce_s: list[float] = []
    """The same for every step of the window."""


class RankRecord(Frozen):
    """What one rank did."""

    rank: int
    host: str
    pid: int
    cpus: list[int]
    device: str
    batch: int
    begin_s: list[float] = []
    """When every step began, on the host's monotonic clock (comparable within a host)."""
    step_s: list[float]
    """Time of every step, warm-up included."""
    phase_s: dict[str, list[float]]
    """Per phase of :data:`PHASES`, one value per step of `step_s`."""
    comm_s: list[float] = []
    """Per step: the time during which at least one all-reduce was under way."""
    comm_hidden_s: list[float] = []
    """Per step: the part of `comm_s` that ran while the backward pass still computed."""
    stats: dict[str, PhaseStats] = {}
    """Per phase and ``step``, over the main window."""
    buckets: list[Bucket] = []
    peak_bytes: int | None = None
    baseline_bytes: int | None = None
    """Memory of the rank before the model was built (interpreter, libraries, CUDA context)."""
    threads: int = 1
    yardstick: Yardstick | None = None
    """Fixed work between steps, on CPU ranks: how fast the machine itself was."""


class Throughput(Frozen):
    """Images really processed by all ranks over the time of the slowest, img/s."""

    img_per_s: float
    low: float
    high: float
    """The 95 % interval."""
    median_img_per_s: float
    """Global batch over the median step of the slowest rank."""
    slowest_rank: int


class SetupTimes(Frozen):
    """What came before the first step, s; never part of a mean."""

    total_s: float
    first_step_s: float | None = None
    parts_s: dict[str, float] = {}


class AblationBlock(Frozen):
    """One short block of steps of one kind."""

    kind: Literal["normal", "no_sync", "alone"]
    step_s: list[list[float]]
    """Per rank (for ``alone``: the one rank that ran), the steps' times."""


class Ablation(Frozen):
    """Interleaved windows after the main one: what communication and sharing really cost."""

    blocks: list[AblationBlock]
    normal_s: float
    no_sync_s: float | None
    alone_s: float
    """Median step times: all ranks as ever, without gradient synchronisation, one rank alone."""
    comm_cost_s: float | None
    """normal - no_sync."""
    sharing_cost_s: float | None
    """no_sync - alone."""


class Loss(Frozen):
    """Mean loss of the first and of the last steps of the measured training."""

    start: float | None
    end: float | None


class MemoryRecord(Frozen):
    """Forecast, budget and what was measured."""

    forecast: Forecast | None = None
    budget: Budget | None = None
    action: str = "run"
    """run, accumulate, try, skip or error."""
    decision: str = ""
    """The one line said before the run."""
    devices_needed: int | None = None
    """The smallest device count at which the batch is forecast to fit, where it does not here."""


class Scheduler(Frozen):
    """The job that carried the run, where a scheduler did."""

    kind: str
    job_id: str
    array_id: str | None = None
    nodes: list[str] = []
    details: dict[str, str] = {}


class Record(Frozen):
    """Everything one run leaves; ``metrics.json`` is its JSON."""

    schema_version: Literal[1] = 1
    dpeval_version: str
    run_id: str
    identity: str
    """Hash of the resolved, output-free configuration (:func:`dpeval.config.identity`)."""
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
    setup: SetupTimes | None = None
    window: Window | None = None
    throughput: Throughput | None = None
    ranks: list[RankRecord] = []
    ablation: Ablation | None = None
    balance: Balance | None = None
    loss: Loss | None = None
    energy_j_per_img: float | None = None
    memory: MemoryRecord = Field(default_factory=MemoryRecord)
    warnings: list[Warning] = []
    missing: list[str] = []
    """What this record cannot say (for records made from foreign files)."""


def readings(ranks: Sequence[RankRecord], window: Window | None) -> list[Yardstick]:
    """What each CPU rank's fixed work took within the main window."""
    if window is None:
        return []
    last = window.first + window.steps
    return [rank.yardstick.within(window.first, last) for rank in ranks if rank.yardstick]


def write(record: Record, path: Path) -> None:
    """Write `record` to `path` so that a reader finds the old file, the new one, or none.

    Raises:
        OSError: the folder cannot be written (no space, no permission).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".metrics-", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(record.model_dump_json(indent=None))
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read(path: Path) -> Record:
    """Read a record of any version that dpeval ever wrote.

    Raises:
        RecordError: not JSON, not a dpeval record, cut off, or of a later version.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror})") from error
    return parse(text, str(path))


def below(folder: Path) -> Iterator[Path]:
    """Every record's file below `folder`, in no order; none where there is no such folder."""
    # Path.rglob takes four times as long on a tree of 100,000 folders.
    for base, _, names in os.walk(folder):
        if FILE_NAME in names:
            yield Path(base) / FILE_NAME


def parse(text: bytes, name: str) -> Record:
    """Parse the bytes of a ``metrics.json``; `name` is for messages.

    Raises:
        RecordError: see :func:`read`.
    """
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        raise RecordError(f"{name}: {_why(text, error)}") from error


def _why(text: bytes, error: ValidationError) -> str:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return "is not complete JSON"
    if not isinstance(content, dict) or "schema_version" not in content:
        return "is not a dpeval record (no schema_version)"
    version = content["schema_version"]
    if version != SCHEMA_VERSION:
        return f"has schema version {str(version)[:20]}; this dpeval reads up to {SCHEMA_VERSION}"
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part)[:40] for part in first["loc"])
    return f"is not a valid record: {where}: {first['msg']}"


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``metrics.json``."""
    return Record.model_json_schema()
