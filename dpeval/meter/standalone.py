"""Measures a script under plain ``torchrun`` or ``srun``; rank 0 writes the record.

There is no supervisor. The ranks agree through the store of torch's process group, and send their
results through it too. If a rank is killed from outside, there is no record.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from torch.distributed import PrefixStore, Store

from dpeval import record
from dpeval.config import Config, MeasureConfig, TaskConfig, check_bounds, with_content
from dpeval.devices import cuda
from dpeval.devices.base import Device
from dpeval.devices.cpu import CpuDevice
from dpeval.devices.cuda import CudaDevice
from dpeval.errors import ConfigError
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.instruments.reference_work import ReferenceWork
from dpeval.instruments.step_buffer import COLUMNS, StepBuffer
from dpeval.instruments.stop_sync import StopSync
from dpeval.record.plan import Plan, RankPlan
from dpeval.record.schema import now
from dpeval.run.job import Job, Span
from dpeval.run.recording import record_builder
from dpeval.run.recording.outcome import Failure, Outcome, disagreement
from dpeval.system.environment import environment
from dpeval.system.topology import detect
from dpeval.util.arrays import Floats
from dpeval.worker.messages import Metered, RankResult

MEASURE = "DPEVAL_MEASURE"
"""Environment variable: keys of ``measure``, as in ``rel_precision=0.05 time_limit_s=20``."""
PART_BYTES = 4 * 2**20
"""Chunk size: a value in torch's store is limited to 8 MiB."""
PART_TIMEOUT_S = 60.0
"""How long rank 0 waits for the results of other ranks after its loop has ended."""


def open_rank(folder: str) -> StandaloneRank:
    """The rank of this process, with its record below `folder`.

    Raises:
        ConfigError: the environment or :data:`MEASURE` is wrong.
    """
    return StandaloneRank(Path(folder), measure_of(os.environ.get(MEASURE, "")))


def measure_of(text: str) -> MeasureConfig:
    """The configuration of the measurement in `text`, ``key=value`` separated by spaces.

    Raises:
        ConfigError: a key or a value is wrong.
    """
    measure = MeasureConfig(name="standalone", ablation=False)
    known = asdict(measure)
    for item in text.split():
        key, is_pair, value = item.partition("=")
        if not is_pair or key not in known:
            raise ConfigError(f"{MEASURE}: '{item}' is not of the form key=value with a key of "
                              f"measure: {', '.join(known)}")  # fmt: skip
        try:
            kind = type(known[key])
            measure = replace(measure, **{key: kind(value)})
        except ValueError as error:
            raise ConfigError(f"{MEASURE}: {item}: {error}") from error
    check_bounds(Config(measure=measure))
    return measure


_OF_SLURM = {
    "RANK": "SLURM_PROCID",
    "WORLD_SIZE": "SLURM_NTASKS",
    "LOCAL_RANK": "SLURM_LOCALID",
    "GROUP_RANK": "SLURM_NODEID",
}


def _number(name: str, default: int) -> int:
    """An environment variable of torchrun, or its SLURM counterpart."""
    text = os.environ.get(name) or os.environ.get(_OF_SLURM[name], "")
    return int(text) if text.isdigit() else default


class StandaloneRank:
    """What a meter needs to know about a rank that dpeval did not start."""

    def __init__(self, folder: Path, measure: MeasureConfig) -> None:
        """Start to measure for the record.

        Args:
            folder: where rank 0 writes the record, in a new folder.
            measure: precision and limits.
        """
        self.at_end: Callable[[], None] | None = None
        self._folder, self._measure = folder, measure
        self._began_s, self._started_at = time.monotonic(), now()
        self._rank, self._ranks = _number("RANK", 0), _number("WORLD_SIZE", 1)
        self._step_buffer = StepBuffer(multiprocessing.get_context(), 1, measure.max_steps)
        self._device: Device | None = None
        self._store: Store | None = None
        self._reference_work: ReferenceWork | None = None
        self._has_failed = self._has_reported = False
        self._baseline_bytes = 0
        self._watch_for_errors()
        atexit.register(self._at_exit)

    @property
    def device(self) -> Device:
        if self._device is None:
            is_cuda = torch.cuda.is_available()
            self._device = CudaDevice(torch.cuda.current_device(), None) if is_cuda else CpuDevice()
            self._baseline_bytes = self._device.memory_bytes()
        return self._device

    @property
    def rows(self) -> Floats:
        return self._step_buffer.rows(0)

    def describe(self, samples_per_step: float | None, unit: str) -> None:
        """Do nothing: there is no progress display.

        Args:
            samples_per_step: unused.
            unit: unused.
        """

    def open_gate(self, clock: PhaseClock) -> StopSync:
        """The gate that decides whether the script takes another step.

        Raises:
            ConfigError: there are several ranks but no process group.
        """
        if dist.is_initialized():
            self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        elif self._ranks > 1:
            raise ConfigError(
                f"DPEVAL_RECORD with {self._ranks} ranks needs torch.distributed; call "
                "init_process_group before the loop over meter.steps"
            )
        if self._ranks > 1:
            store = dist.distributed_c10d._get_default_store()
            self._store = PrefixStore("dpeval", store)
        if self._measure.conditions and not self.device.is_cuda:
            self._reference_work = ReferenceWork()
        return StopSync(
            self._rank, 0, self._store, self._step_buffer, clock, self._measure,
            self._reference_work,
        )  # fmt: skip

    def report(self, result: RankResult) -> None:
        """Send this rank's part to rank 0, which writes the record."""
        if self._has_reported:
            return
        self._has_reported = True
        completed = replace(
            result,
            rank=self._rank,
            baseline_bytes=self._baseline_bytes,
            reference_times=self._reference_work.readings if self._reference_work else None,
        )
        rows = self.rows[: result.measured_rows]
        if self._rank != 0:
            assert self._store is not None  # there are several ranks
            _send(self._store, self._plan(), completed, rows)
            return
        self._write(completed, rows)

    def _plan(self) -> RankPlan:
        """The resources of this rank, as far as a process can see them."""
        device = self.device
        cpus = sorted(os.sched_getaffinity(0))
        return RankPlan(
            rank=self._rank,
            node=_number("GROUP_RANK", 0),
            local_rank=_number("LOCAL_RANK", self._rank),
            device=f"cuda:{device.torch_device.index}" if device.is_cuda else "cpu",
            cpus=cpus,
            threads=torch.get_num_threads(),
            per_device_batch_size=1,
            weight=1 / self._ranks,
        )

    def _write(self, result: RankResult, rows: Floats) -> None:
        plans, results, tables = [self._plan()], {0: result}, [rows]
        outcome = Outcome(results=results)
        for rank in range(1, self._ranks):
            assert self._store is not None  # there are several ranks
            try:
                plan, results[rank], table = _receive(self._store, rank)
            except (dist.DistStoreError, dist.DistNetworkError):
                silent = f"rank {rank} sent no result within {PART_TIMEOUT_S:g} s"
                outcome.failure = outcome.failure or Failure("exit", rank, silent)
                plan, table = plans[0].model_copy(update={"rank": rank}), rows[:0]
            plans.append(plan)
            tables.append(table)
        steps = {rank: len(table) for rank, table in enumerate(tables)}
        outcome.failure = disagreement(results, steps) or outcome.failure
        buffer = StepBuffer(multiprocessing.get_context(), self._ranks, self._measure.max_steps)
        for rank, table in enumerate(tables):
            buffer.fill(rank, table)
        assert result.metered is not None  # this is a meter's result
        job = self._job(plans, result.metered)
        here = environment(detect(cuda.cuda_gpus()), extra_versions=cuda.library_versions())
        made = record_builder.finish(
            record_builder.blank(job, here, self._started_at),
            job,
            buffer,
            outcome,
            None,
            Span(self._began_s),
            {rank: one.pid for rank, one in results.items()},
        )
        path = job.folder / record.FILE_NAME
        record.write(made, path)
        print(f"dpeval: {made.status}; record: {path}", file=sys.stderr)

    def _job(self, plans: list[RankPlan], metered: Metered) -> Job:
        """The configuration that would have requested this run from dpeval."""
        samples = max(1, round(metered.samples_per_step or self._ranks))
        share, rest = divmod(samples, self._ranks)
        shares = [share + (rank < rest) for rank in range(self._ranks)]
        ranks = [
            plan.model_copy(update={"per_device_batch_size": own, "weight": own / samples})
            for plan, own in zip(plans, shares, strict=True)
        ]
        script, *args = sys.argv
        config = Config(
            task=TaskConfig(kind="script", script=script, args=args),
            hardware=replace(
                Config().hardware,
                kind="cpu" if plans[0].device == "cpu" else "gpu",
                cores_per_device=plans[0].threads if plans[0].device == "cpu" else None,
            ),
            measure=self._measure,
            num_devices=self._ranks,
            num_nodes=len({plan.node for plan in plans}),
            batch=samples,
            study="standalone",
        )
        backend = dist.get_backend() if dist.is_initialized() else "gloo"
        plan = Plan(
            world_size=self._ranks, global_batch_size=samples, backend=str(backend), ranks=ranks
        )
        name = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{os.getpid()}"
        overrides = ["task=script", f"task.script={script}", f"task.args=[{','.join(args)}]"]
        return Job(with_content(config), plan, self._folder / name, tuple(overrides))

    def _watch_for_errors(self) -> None:
        """Note that the script ends with an exception, which atexit cannot see."""
        before = sys.excepthook

        def note(*error: object) -> None:
            self._has_failed = True
            before(*error)  # type: ignore[arg-type]

        sys.excepthook = note

    def _at_exit(self) -> None:
        if self.at_end is not None and not self._has_failed:
            self.at_end()


def _send(store: Store, plan: RankPlan, result: RankResult, rows: Floats) -> None:
    key = f"part/{plan.rank}"
    data = np.ascontiguousarray(rows).tobytes()
    parts = [data[at : at + PART_BYTES] for at in range(0, len(data), PART_BYTES)]
    for number, part in enumerate(parts):
        store.set(f"{key}/rows/{number}", part)  # type: ignore[arg-type]  # bytes work, too
    store.set(f"{key}/plan", plan.model_dump_json())
    # Last: once it can be read, everything else is there.
    store.set(f"{key}/result", TypeAdapter(RankResult).dump_json(result).decode())
    store.set(f"{key}/parts", str(len(parts)))


def _receive(store: Store, rank: int) -> tuple[RankPlan, RankResult, Floats]:
    key = f"part/{rank}"
    store.wait([f"{key}/parts"], timedelta(seconds=PART_TIMEOUT_S))
    count = int(store.get(f"{key}/parts"))
    data = b"".join(store.get(f"{key}/rows/{number}") for number in range(count))
    table = np.frombuffer(data).reshape(-1, len(COLUMNS))
    plan = RankPlan.model_validate_json(store.get(f"{key}/plan"))
    return plan, TypeAdapter(RankResult).validate_json(store.get(f"{key}/result")), table
