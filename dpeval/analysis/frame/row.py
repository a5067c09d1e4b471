"""From a record to its row of the frame of runs.

Records may come from anywhere, so this is the one place that shortens text, removes control
characters, and refuses records that contradict themselves."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpeval.analysis.frame import cohorts, step_losses
from dpeval.errors import RecordError
from dpeval.record.measurement import Window
from dpeval.record.phases import PHASES
from dpeval.record.reference_times import PAGES, ReferenceTimes
from dpeval.record.schema import Record, Sitting, readings
from dpeval.stats import machine_speed, paired

MOST_TEXT = 400
MOST_COMMAND = 4_000
MOST_COUNT = 10**9
LARGEST = 2**60
TOLERANCE = 0.02
"""A throughput that differs this much from images over time is wrong: rounding errors are far
smaller."""

_PRINTABLE = dict.fromkeys((*range(32), *range(127, 160), 8232, 8233), " ") | dict.fromkeys(
    (*range(8234, 8239), *range(8294, 8298), *range(55296, 57344))
)


def text(value: Any, most: int = MOST_TEXT) -> str:
    """`value` as one line without control characters or direction marks, cut to `most`."""
    if value is None:
        return ""
    shown = str(value)[: most + 1].translate(_PRINTABLE)
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def row(run: Record, folder: Path) -> dict[str, Any]:
    """One run as a row of :data:`COLUMNS` except `series`; unknown values are None.

    Raises:
        RecordError: it lacks a device count or batch, or contradicts itself.
    """
    made = {**_asked(run), **_measured(run), **_phases(run), **_around(run), **_told(run, folder)}
    _check(made, folder)
    return made


def _check(made: dict[str, Any], folder: Path) -> None:
    for name in ("num_devices", "batch"):
        if made[name] is None:
            raise RecordError(f"{folder}: has no usable {name}")
    for name, value in made.items():
        if isinstance(value, int | float) and not abs(value) < LARGEST:
            raise RecordError(f"{folder}: {name} is out of any range ({text(value, 20)})")
    rate, step_s, images = made["img_per_s"], made["step_s"], made["images_per_step"]
    if rate is None:
        return
    if rate <= 0 or (step_s is not None and step_s <= 0):
        raise RecordError(f"{folder}: has a throughput or a step time that is not positive")
    if step_s and images and abs(rate * step_s / images - 1) > TOLERANCE:
        raise RecordError(
            f"{folder}: contradicts itself: {rate:.4g} {made['unit']}/s is not "
            f"{images:g} {made['unit']} in {step_s:.4g} s"
        )


def _count(value: Any) -> int | None:
    """`value` if it is a count that a run can have, else None."""
    is_count = isinstance(value, int) and not isinstance(value, bool)
    return value if is_count and 1 <= value <= MOST_COUNT else None


def _group(run: Record, name: str) -> dict[str, Any]:
    found = run.config.get(name)
    return found if isinstance(found, dict) else {}


def _asked(run: Record) -> dict[str, Any]:
    hardware, dataset = _group(run, "hardware"), _group(run, "dataset")
    plan, config = run.plan, run.config
    planned = [rank.per_device_batch_size for rank in plan.ranks] if plan is not None else []
    batches = [rank.per_device_batch_size for rank in run.ranks]
    if len(batches) < len(planned):
        batches = planned  # another program's table may not have a row per rank
    planned_threads = [rank.threads for rank in plan.ranks] if plan is not None else []
    threads = [rank.threads for rank in run.ranks] or planned_threads
    if "threads" in run.missing:
        threads = []
    used = run.dataset.used if run.dataset is not None else ""
    share = _samples_per_batch(run, sum(batches))
    return {
        "hardware": text(hardware.get("kind")),
        "model": text(_group(run, "model").get("name")),
        "dataset_requested": text(dataset.get("name")),
        "dataset_used": text(used),
        "train_images": run.dataset.train_images if run.dataset is not None else None,
        "stand_in": run.dataset is not None and run.dataset.is_stand_in,
        "loader": text(dataset.get("loader")),
        "image_px": _count(dataset.get("image_px")),
        "scaling": text(_group(run, "scaling").get("kind")),
        "strategy": text(_group(run, "strategy").get("name")),
        "precision": text(config.get("precision")),
        "memory_format": text(config.get("memory_format")),
        "num_devices": _count(config.get("num_devices")),
        "num_nodes": _count(config.get("num_nodes")) or 1,
        "threads": max(threads, default=_count(hardware.get("cores_per_device"))),
        "batch": _count(config.get("batch")),
        "unit": _unit(run),
        "global_batch": plan.global_batch_size * share if plan is not None else None,
        "images_per_step": sum(batches) * share or None,
        "per_device_batch_max": max(batches) * share if batches else None,
        "micro_batches": plan.micro_batches if plan is not None else 1,
        "oversubscribed": plan.is_oversubscribed if plan else False,
        "task": sys.intern(cohorts.task(run)),
        "configuration": sys.intern(cohorts.configuration(run)),
        "place": sys.intern(cohorts.place(run)),
    }


def _unit(run: Record) -> str:
    """What a sample is; empty for a script that was not measured, because only its meter knows."""
    is_known = run.throughput is not None or not _group(run, "task")
    return text(run.unit, 20) if is_known else ""


def _samples_per_batch(run: Record, batch: int) -> float:
    """Samples per unit of the batch: 1 for images, tokens per sequence for tokens."""
    return run.samples_per_step / batch if run.samples_per_step and batch else 1


def _measured(run: Record) -> dict[str, Any]:
    window, found = run.window, run.throughput
    return {
        "steps": window.steps if window is not None else None,
        "effective_steps": window.step_s.effective_samples if window is not None else None,
        "steady": _steady(run),
        "stopped_by": window.stopped_by if window is not None else "",
        "step_s": window.step_s.mean if window is not None else None,
        **_interval(run),
        **_paired(run.sitting),
        **_rounds(run),
        "img_per_s": found.img_per_s if found is not None else None,
        "slowest_rank": found.slowest_rank if found is not None else None,
        "balance": run.balance.value if run.balance is not None else None,
        "energy_j_per_img": run.energy_j_per_img,
        "loss_start": run.loss.start if run.loss is not None else None,
        "loss_end": run.loss.end if run.loss is not None else None,
        # Only dpeval's own loop has ablation blocks, and its samples are images.
        "alone_batch": _first_batch(run) if run.ablation is not None else None,
        "waits_assumed": step_losses.waits_are_assumed(run),
        **step_losses.columns(run),
    }


def _interval(run: Record) -> dict[str, float]:
    """The intervals of throughput and step time; a single step has none."""
    window, found = run.window, run.throughput
    if window is None or found is None or window.steps < 2 or not found.low > 0 < found.high:
        return {}
    seconds = window.step_s.mean * found.img_per_s
    return {
        "step_low_s": seconds / found.high,
        "step_high_s": seconds / found.low,
        "img_per_s_low": found.low,
        "img_per_s_high": found.high,
    }


def _paired(sitting: Sitting | None) -> dict[str, Any]:
    """The ratio to another run of the same sitting."""
    made: dict[str, Any] = {"sitting": text(sitting.id if sitting else ""), "paired_strategy": ""}
    if sitting is None or sitting.speedup is None or not sitting.speedup.low > 0:
        return made
    if sitting.alone is not None and sitting.alone.low > 0:
        half = math.log(sitting.alone.high / sitting.alone.low) / 2
        made |= {"alone_ratio": sitting.alone.mean, "granularity_half": half}
    return made | {
        "paired_devices": _count(sitting.base_devices),
        "paired_strategy": text(sitting.base_strategy),
        "paired_speedup": sitting.speedup.mean,
        "paired_low": sitting.speedup.low,
        "paired_high": sitting.speedup.high,
    }


def _rounds(run: Record) -> dict[str, list[int] | list[float]]:
    """The run in the rounds of its sitting, where its steps are times."""
    found = paired.rounds_of(run)
    if not all(math.isfinite(step_s) and step_s > 0 for step_s in found.values()):
        return {}
    energy_j = run.sitting.energy_j_by_round if run.sitting is not None else {}
    return {
        "rounds": list(found),
        "round_step_s": list(found.values()),
        "round_energy_j": [energy_j.get(number, math.nan) for number in found] if energy_j else [],
    }


def _steady(run: Record) -> bool | None:
    if run.window is None or "steady" in run.missing or run.window.steadiness == "unknown":
        return None
    return run.window.steadiness == "steady"


def _first_batch(run: Record) -> int | None:
    """Images per step of rank 0, the one that runs alone."""
    return next((rank.per_device_batch_size for rank in run.ranks if rank.rank == 0), None)


def _positive(value: float | None) -> float | None:
    return value if value is not None and value > 0 else None


def _phases(run: Record) -> dict[str, Any]:
    rank = run.slowest
    if run.window is None or rank is None:
        return {}
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
    memory, conditions = run.memory, run.conditions
    peaks = [rank.peak_bytes for rank in run.ranks if rank.peak_bytes is not None]
    bad = conditions.bad if conditions is not None else []
    return {
        "first_step_s": run.setup.first_step_s if run.setup is not None else None,
        "setup_s": run.setup.total_s if run.setup is not None else None,
        "wall_s": run.wall_s,
        "peak_bytes": max(peaks, default=None),
        "forecast_bytes": memory.forecast.total_bytes if memory.forecast is not None else None,
        "budget_bytes": memory.budget.bytes if memory.budget is not None else None,
        "warnings": "\n".join(text(warning.text) for warning in run.warnings[:50]),
        "warning_codes": " ".join(dict.fromkeys(text(w.code, 40) for w in run.warnings[:50])),
        "conditions_bad": "; ".join(text(words) for words in bad[:20]),
        "major_faults": conditions.major_faults if conditions is not None else None,
        **_reference_work(run),
        "lacks": "; ".join(text(words) for words in [*run.missing[:50], *_absent_ranks(run)]),
    }


def _absent_ranks(run: Record) -> list[str]:
    """That ranks of the plan are not in the record, unless it says so itself."""
    if run.plan is None or run.throughput is None or run.missing:
        return []
    absent = run.plan.world_size - len(run.ranks)
    return [f"{absent} of {run.plan.world_size} ranks: the slowest may be one"] * (absent > 0)


def _reference_work(run: Record) -> dict[str, float | None]:
    """What the reference work shows: the machine's speed and the cost of page faults."""
    seen = readings(run.ranks, run.window)
    found = {"machine_s": _positive(machine_speed.typical_s(seen))}
    if run.window is None or run.conditions is None or run.conditions.minor_faults_per_s is None:
        return found
    # Faults are counted for ranks on the host that writes the record.
    here = sum(rank.host in ("", run.environment.host) for rank in run.ranks)
    faults_per_s = max(
        0.0, run.conditions.minor_faults_per_s / max(1, here) - _own_faults_per_s(seen, run.window)
    )
    page_s = machine_speed.page_s(seen)
    return found | {
        "page_faults": faults_per_s * run.window.step_s.mean,
        "page_fault_share": faults_per_s * page_s if page_s is not None else None,
    }


def _own_faults_per_s(seen: Sequence[ReferenceTimes], window: Window) -> float:
    """Page faults per second and rank of the reference work itself.

    Conditions are sampled from some step of the window on, so the count may be off by the pages of
    one reading."""
    window_s = window.steps * window.step_s.mean
    if not seen or window_s <= 0:
        return 0.0
    return PAGES * sum(len(one.step) for one in seen) / len(seen) / window_s


def _told(run: Record, folder: Path) -> dict[str, Any]:
    environment = run.environment
    return {
        "path": str(folder),
        "run_id": text(run.run_id),
        "identity": text(run.identity),
        "study": text(run.study),
        "status": run.status,
        "cause": text(run.cause.message) if run.cause is not None else "",
        "cause_kind": text(run.cause.kind, 40) if run.cause is not None else "",
        "repetition": max(0, min(run.repetition, MOST_COUNT)),
        "host": text(environment.host),
        "cpu_model": text(environment.cpu_model),
        "gpu_name": text(environment.gpus[0].name) if environment.gpus else "",
        "torch": text(environment.versions.get("torch", "")),
        "git_commit": text(environment.git_commit),
        "command": text(run.command, MOST_COMMAND),
        "started_at": text(run.started_at, 40),
    }
