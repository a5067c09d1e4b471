"""Records made by hand, for tests of whatever reads records."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dpeval.analysis.advice.advise import advise
from dpeval.analysis.frame import runs_frame
from dpeval.analysis.report import verdict
from dpeval.analysis.scaling.findings import Findings, find
from dpeval.config import MeasureConfig, split_evenly
from dpeval.record.codes import Status
from dpeval.record.machine import Environment
from dpeval.record.phases import PHASES
from dpeval.record.plan import Plan, RankPlan
from dpeval.record.schema import (
    Ablation,
    AblationBlock,
    Cause,
    DatasetUsed,
    PhaseStats,
    RankRecord,
    Record,
    SetupTimes,
)
from dpeval.stats import steady_state
from dpeval.stats import throughput as throughput_module
from dpeval.stats.throughput import throughput
from dpeval.worker.ablation_schedule import order

SHARES = {
    "data": 0.01,
    "h2d": 0.0,
    "forward": 0.35,
    "backward": 0.5,
    "comm_exposed": 0.08,
    "grad_copy": 0.02,
    "optimizer": 0.04,
    "other": 0.0,
}


def make_environment() -> Environment:
    return Environment(
        host="host",
        cpu_model="CPU",
        logical_cpus=8,
        physical_cores=8,
        sockets=1,
        numa_nodes=1,
        allowed_cpus=list(range(8)),
        gpus=[],
        memory_bytes=2**34,
        kernel="6",
        os="Linux",
        python="3.11",
        versions={"torch": "2.14.1"},
        git_commit=None,
        git_dirty=None,
    )


def make_record(
    num_devices: int = 1,
    batch: int = 32,
    step_s: float = 1.0,
    *,
    steps: int = 20,
    noise: float = 0.01,
    hardware: str = "cpu",
    scaling: str = "strong",
    status: Status = "ok",
    cause: Cause | None = None,
    repetition: int = 0,
    seed: int = 0,
    **changes: Any,
) -> Record:
    """A run of `steps` steps around `step_s` seconds, or one that did not come to measure."""
    global_batch_size = batch * num_devices if scaling == "weak" else batch
    shares = split_evenly(global_batch_size, num_devices)
    ranks = [
        RankPlan(
            rank=rank,
            node=0,
            local_rank=rank,
            device="cpu",
            cpus=[rank],
            threads=1,
            per_device_batch_size=share,
            weight=share / global_batch_size,
        )
        for rank, share in enumerate(shares)
    ]
    fields: dict[str, Any] = {
        "dpeval_version": "0",
        "run_id": uuid.uuid4().hex,
        "identity": f"{num_devices}-{batch}",
        "status": status,
        "cause": cause,
        "study": "test",
        "repetition": repetition,
        "started_at": f"2026-01-01T00:00:{repetition:02d}.000+00:00",
        "wall_s": 1.0,
        "command": "python -m dpeval.train",
        "config": {
            "hardware": {"kind": hardware, "cores_per_device": 1},
            "model": {"name": "densenet121"},
            "dataset": {"name": "imagenette", "loader": "cached", "image_px": 64},
            "scaling": {"kind": scaling},
            "strategy": {"name": "ddp"},
            "precision": "fp32",
            "memory_format": "channels_last",
            "num_devices": num_devices,
            "batch": batch,
        },
        "plan": Plan(
            world_size=num_devices, global_batch_size=global_batch_size, backend="gloo", ranks=ranks
        ),
        "dataset": DatasetUsed(
            requested="imagenette", used="imagenette", root="", train_images=9469, num_classes=10
        ),
        "environment": make_environment(),
    }
    if status == "ok":
        fields |= _measured(ranks, global_batch_size, step_s, steps, noise, seed)
    return Record(**(fields | changes))


def _measured(
    ranks: list[RankPlan],
    global_batch_size: int,
    step_s: float,
    steps: int,
    noise: float,
    seed: int,
) -> dict[str, Any]:
    generator = np.random.default_rng([seed, len(ranks)])
    series = step_s * (1 + noise * generator.standard_normal(steps + 3))
    config = MeasureConfig(min_warmup_steps=3, min_steps=2)
    window = steady_state.window([series], "precision", config)
    main = series[window.first :]
    made = [
        RankRecord(
            rank=rank.rank,
            host="host",
            pid=1,
            cpus=rank.cpus,
            device="cpu",
            per_device_batch_size=rank.per_device_batch_size,
            step_s=list(series),
            phase_s={phase: list(series * SHARES[phase]) for phase in PHASES},
            comm_s=list(series * 0.15),
            comm_hidden_s=list(series * 0.05),
            stats={
                name: PhaseStats(
                    median_s=float(np.median(main)) * SHARES.get(name, 1.0),
                    mean_s=float(main.mean()) * SHARES.get(name, 1.0),
                    p05_s=float(np.quantile(main, 0.05)) * SHARES.get(name, 1.0),
                    p95_s=float(np.quantile(main, 0.95)) * SHARES.get(name, 1.0),
                )
                for name in (*PHASES, "step")
            },
            peak_bytes=2**30,
        )
        for rank in ranks
    ]
    return {
        "window": window,
        "throughput": throughput(global_batch_size, [main for _ in ranks], window.step_s),
        "ranks": made,
        "setup": SetupTimes(total_s=0.5, first_step_s=2 * step_s),
        "balance": throughput_module.load_balance([main for _ in ranks]),
    }


def perfect(devices: int, batch: int = 32, step_s: float = 1.0, **changes: Any) -> Record:
    """A run of constant steps."""
    return make_record(devices, batch, step_s, noise=0.0, **changes)


def ablation(
    normal_s: float,
    no_sync_s: list[float],
    alone_s: float,
    *,
    rounds: int = 2,
    drift: float = 0.0,
    noise: float = 0.0,
    seed: int = 0,
) -> Ablation:
    """Windows of steps with known means, as earlier releases recorded them: without waits.

    Args:
        normal_s: a usual step, s.
        no_sync_s: a step without synchronisation of each rank, s.
        alone_s: a step of the first rank alone, s.
        rounds: of three blocks, in the order in which ranks run them.
        drift: change from one block to the next, over the mean.
        noise: standard deviation of a block's logarithm, the same for all ranks.
        seed: of the noise.
    """
    times_s = {"normal": [normal_s] * len(no_sync_s), "no_sync": no_sync_s, "alone": [alone_s]}
    kinds = order(rounds)
    factors = np.exp(np.random.default_rng(seed).normal(0, noise, len(kinds)))
    factors = factors * (1 + drift * (np.arange(len(kinds)) - (len(kinds) - 1) / 2))
    blocks = [
        AblationBlock(kind=kind, step_s=[[one * factor] * 4 for one in times_s[kind]])
        for kind, factor in zip(kinds, factors.tolist(), strict=True)
    ]
    slowest = max(no_sync_s)
    return Ablation(
        blocks=blocks, normal_s=normal_s, no_sync_s=slowest, alone_s=alone_s,
        comm_cost_s=normal_s - slowest, sharing_cost_s=slowest - alone_s,
    )  # fmt: skip


def findings(runs: Iterable[Record]) -> Findings:
    """What the analysis finds in `runs`."""
    return find(runs_frame.of_records((run, Path(str(i))) for i, run in enumerate(runs)))


def verdict_of(found: Findings) -> list[str]:
    """What the report says of `found`, sentence by sentence."""
    return verdict.sentences(found, advise(found))
