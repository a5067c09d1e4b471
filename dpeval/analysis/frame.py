"""Records to one tidy frame, a row per run, and its pooling over repetitions.

:data:`COLUMNS` documents every column with its unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpeval import record
from dpeval.errors import RecordError
from dpeval.record import PHASES, Record

COLUMNS: dict[str, str] = {
    "path": "folder of the record",
    "run_id": "this attempt",
    "identity": "hash of the configuration",
    "study": "name of the study",
    "status": "ok, skipped, oom, failed, interrupted",
    "cause": "why it is not ok",
    "cause_kind": "the same in one word",
    "repetition": "which repetition, from 0",
    "series": "runs that may be compared: same machine, software, task",
    "hardware": "cpu or gpu",
    "model": "model",
    "dataset_requested": "data that was asked for",
    "dataset_used": "data that was fed",
    "stand_in": "whether they differ",
    "loader": "how it was fed",
    "image_px": "side of the images, px",
    "scaling": "strong or weak",
    "strategy": "how ranks agree",
    "precision": "arithmetic",
    "memory_format": "layout of tensors",
    "num_devices": "world size",
    "threads": "compute threads per rank",
    "batch": "the batch that was asked for",
    "global_batch": "images per step of all ranks",
    "per_device_batch": "images per step of the fullest rank",
    "micro_batches": "parts of a rank's batch",
    "oversubscribed": "more compute threads than CPUs",
    "steps": "measured steps",
    "steady": "whether a steady state was reached",
    "stopped_by": "why measuring ended",
    "step_s": "mean step of the slowest rank, s",
    "step_low_s": "lower end of its 95 % interval, s",
    "step_high_s": "upper end, s",
    "step_median_s": "median step of the slowest rank, s",
    "img_per_s": "images of all ranks over the time of the slowest, img/s",
    "img_per_s_low": "lower end of its 95 % interval, img/s",
    "img_per_s_high": "upper end, img/s",
    **{f"{phase}_s": f"mean of phase {phase} on the slowest rank, s" for phase in PHASES},
    "comm_s": "mean time per step with an all-reduce under way, s",
    "comm_hidden_s": "the part of it behind backward, s",
    "first_step_s": "first step, s",
    "setup_s": "run start to first step, s",
    "wall_s": "whole run, s",
    "balance": "mean over max compute time of the ranks",
    "slowest_rank": "rank with the largest total time",
    "normal_s": "ablation: median step as ever, s",
    "no_sync_s": "ablation: without gradient synchronisation, s",
    "alone_s": "ablation: one rank alone, s",
    "peak_bytes": "peak memory of the fullest rank, bytes",
    "forecast_bytes": "its forecast, bytes",
    "budget_bytes": "memory a rank may use, bytes",
    "energy_j_per_img": "energy, J/img",
    "loss_start": "mean loss of the first steps",
    "loss_end": "mean loss of the last steps",
    "warnings": "what makes the figures less trustworthy, one per line",
    "host": "machine",
    "cpu_model": "its CPU",
    "gpu_name": "its first GPU",
    "torch": "version of torch",
    "git_commit": "commit of dpeval",
    "command": "reproduces the run",
    "started_at": "ISO 8601",
}

CONFIGURATION = ["series", "hardware", "scaling", "num_devices", "batch"]
"""What two runs must share to be repetitions of one another, within a series."""


@dataclass(frozen=True)
class Loaded:
    """All readable runs and what could not be read."""

    runs: pd.DataFrame
    problems: list[str]


def load(paths: Iterable[Path]) -> Loaded:
    """Read every ``metrics.json`` at or below `paths` into one frame with :data:`COLUMNS`."""
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for file in find(paths):
        try:
            rows.append(row(record.read(file), file.parent))
        except RecordError as error:
            problems.append(str(error).replace("\n", " ")[:300])
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return Loaded(frame.sort_values(["started_at", "path"], ignore_index=True), problems)


def find(paths: Iterable[Path]) -> list[Path]:
    """Every record at or below `paths`, each once, in a fixed order."""
    found: dict[Path, None] = {}
    for path in paths:
        files = [path] if path.is_file() else sorted(path.rglob(record.FILE_NAME))
        found.update(dict.fromkeys(files))
    return list(found)


def row(run: Record, folder: Path) -> dict[str, Any]:
    """One run as a row; what it does not tell is None."""
    return {**_asked(run, folder), **_measured(run), **_phases(run), **_around(run)}


def _asked(run: Record, folder: Path) -> dict[str, Any]:
    config = run.config
    hardware = config.get("hardware", {})
    plan = run.plan
    batches = [rank.batch for rank in plan.ranks] if plan is not None else []
    asked: dict[str, Any] = {
        "path": str(folder),
        "run_id": run.run_id,
        "identity": run.identity,
        "study": run.study,
        "status": run.status,
        "cause": run.cause.message if run.cause is not None else "",
        "cause_kind": run.cause.kind if run.cause is not None else "",
        "repetition": run.repetition,
        "hardware": hardware.get("kind", ""),
        "model": config.get("model", {}).get("name", ""),
        "dataset_requested": config.get("dataset", {}).get("name", ""),
        "dataset_used": run.dataset.used if run.dataset is not None else "",
        "stand_in": run.dataset is not None and run.dataset.is_stand_in,
        "loader": config.get("dataset", {}).get("loader", ""),
        "image_px": config.get("dataset", {}).get("image_px"),
        "scaling": config.get("scaling", {}).get("kind", ""),
        "strategy": config.get("strategy", {}).get("name", ""),
        "precision": config.get("precision", ""),
        "memory_format": config.get("memory_format", ""),
        "num_devices": config.get("num_devices"),
        "threads": hardware.get("cores_per_device"),
        "batch": config.get("batch"),
        "global_batch": plan.global_batch if plan is not None else None,
        "per_device_batch": max(batches, default=None),
        "micro_batches": plan.micro_batches if plan is not None else 1,
        "oversubscribed": any("oversubscribed" in note for note in plan.notes) if plan else False,
    }
    return asked | {"series": _series(run, asked)}


def _series(run: Record, asked: dict[str, Any]) -> str:
    """What must be equal for two runs to be comparable, as readable text."""
    environment = run.environment
    gpu = environment.gpus[0].name if environment.gpus and asked["hardware"] == "gpu" else ""
    parts = [
        asked["model"],
        asked["dataset_requested"],
        f"{asked['image_px']} px",
        asked["precision"],
        asked["loader"],
        f"{asked['threads']} thread" if asked["hardware"] == "cpu" else "",
        environment.host,
        gpu or environment.cpu_model,
        f"torch {environment.versions.get('torch', '?')}",
    ]
    return ", ".join(str(part) for part in parts if part)


def _measured(run: Record) -> dict[str, Any]:
    window, found, ablation = run.window, run.throughput, run.ablation
    return {
        "steps": window.steps if window is not None else None,
        "steady": window.steady if window is not None else None,
        "stopped_by": window.stopped_by if window is not None else "",
        "step_s": window.step_s.mean if window is not None else None,
        "step_low_s": window.step_s.low if window is not None else None,
        "step_high_s": window.step_s.high if window is not None else None,
        "img_per_s": found.img_per_s if found is not None else None,
        "img_per_s_low": found.low if found is not None else None,
        "img_per_s_high": found.high if found is not None else None,
        "slowest_rank": found.slowest_rank if found is not None else None,
        "balance": run.balance.value if run.balance is not None else None,
        "normal_s": ablation.normal_s if ablation is not None else None,
        "no_sync_s": ablation.no_sync_s if ablation is not None else None,
        "alone_s": ablation.alone_s if ablation is not None else None,
        "energy_j_per_img": run.energy_j_per_img,
        "loss_start": run.loss.start if run.loss is not None else None,
        "loss_end": run.loss.end if run.loss is not None else None,
    }


def _phases(run: Record) -> dict[str, Any]:
    slowest = run.throughput.slowest_rank if run.throughput is not None else None
    if slowest is None or run.window is None or slowest >= len(run.ranks):
        return {}
    rank = run.ranks[slowest]
    main = slice(run.window.first, run.window.first + run.window.steps)
    means = {f"{phase}_s": rank.stats[phase].mean_s for phase in PHASES if phase in rank.stats}
    return means | {
        "step_median_s": rank.stats["step"].median_s if "step" in rank.stats else None,
        "comm_s": _mean(rank.comm_s[main]),
        "comm_hidden_s": _mean(rank.comm_hidden_s[main]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _around(run: Record) -> dict[str, Any]:
    environment, memory = run.environment, run.memory
    peaks = [rank.peak_bytes for rank in run.ranks if rank.peak_bytes is not None]
    return {
        "first_step_s": run.setup.first_step_s if run.setup is not None else None,
        "setup_s": run.setup.total_s if run.setup is not None else None,
        "wall_s": run.wall_s,
        "peak_bytes": max(peaks, default=None),
        "forecast_bytes": memory.forecast.total_bytes if memory.forecast is not None else None,
        "budget_bytes": memory.budget.bytes if memory.budget is not None else None,
        "warnings": "\n".join(warning.text for warning in run.warnings),
        "host": environment.host,
        "cpu_model": environment.cpu_model,
        "gpu_name": environment.gpus[0].name if environment.gpus else "",
        "torch": environment.versions.get("torch", ""),
        "git_commit": environment.git_commit or "",
        "command": run.command,
        "started_at": run.started_at,
    }


def pool(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration: its repetitions pooled, its failures kept.

    Columns: :data:`CONFIGURATION`, ``runs``, ``ok``, ``img_per_s``, ``low``, ``high`` (95 %),
    ``steady``, ``status`` (``ok`` if any run is), ``cause``, and the means of the phases.

    With one run the interval is the run's own. With several, the runs' means are the sample:
    steps of one process share its memory layout, page placement and clock, so only whole
    repetitions show that variance (Kalibera & Jones 2013, "Rigorous Benchmarking in Reasonable
    Time", ISMM, section 6). The wider of both intervals is taken, as few repetitions can agree
    by chance.
    """
    rows = [
        {**dict(zip(CONFIGURATION, key, strict=True)), **_pooled(group)}
        for key, group in runs.groupby(CONFIGURATION, dropna=False, sort=True)
    ]
    return pd.DataFrame(rows)


def _pooled(group: pd.DataFrame) -> dict[str, Any]:
    good = group[(group["status"] == "ok") & group["img_per_s"].notna()]
    pooled: dict[str, Any] = {
        "runs": len(group),
        "ok": len(good),
        "status": "ok" if len(good) else str(group["status"].iloc[-1]),
        "cause": "" if len(good) else str(group["cause"].iloc[-1]),
        "cause_kind": "" if len(good) else str(group["cause_kind"].iloc[-1]),
        "model": group["model"].iloc[0],
        "stand_in": bool(group["stand_in"].any()),
        "oversubscribed": bool(group["oversubscribed"].any()),
        "steady": bool(good["steady"].astype(bool).all()) if len(good) else False,
    }
    for column in ("step_s", *(f"{phase}_s" for phase in PHASES), "peak_bytes", "forecast_bytes"):
        pooled[column] = float(good[column].astype(float).mean()) if len(good) else np.nan
    mean, low, high = _between(good)
    return pooled | {"img_per_s": mean, "low": low, "high": high}


def _between(good: pd.DataFrame) -> tuple[float, float, float]:
    """Mean throughput over runs with the wider of the within- and between-run intervals."""
    from scipy.special import stdtrit

    if good.empty:
        return np.nan, np.nan, np.nan
    means = good["img_per_s"].to_numpy(dtype=float)
    within = (good["img_per_s_high"] - good["img_per_s_low"]).to_numpy(dtype=float) / 2
    half = float(np.sqrt((within**2).sum())) / len(means)
    if len(means) > 1:
        error = float(means.std(ddof=1)) / np.sqrt(len(means))
        half = max(half, float(stdtrit(len(means) - 1, 0.975)) * error)
    mean = float(means.mean())
    return mean, max(0.0, mean - half), mean + half
