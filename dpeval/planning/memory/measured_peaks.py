"""Replaces a forecast's allowances by a line through the measured peaks of earlier runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpeval.record.memory import ALLOWANCES, Forecast
from dpeval.record.schema import RankRecord, Record

SAME = ("model", "optimizer", "precision", "memory_format", "compile")
SAME_DATASET = ("image_px", "loader", "seq_len")
SAME_RESIDENT = ("name", "root", "size", "train_images")
"""Size of the dataset, which ``dataset.loader=resident`` keeps on every GPU."""
SAME_STRATEGY = ("name", "bucket_cap_mb", "gradient_as_bucket_view", "static_graph")
SAME_HARDWARE = ("kind", "cores_per_device", "keep_memory")
UNMEASURED = ("fragmentation", "context")
"""Parts of a GPU's forecast that the measured peaks leave out."""
MIN_SPREAD = 1.5
"""A line is fitted only if the largest batch is this many times the smallest: peaks of
neighbouring batches differ as much by chance as by their images."""


@dataclass(frozen=True)
class Peak:
    """One rank's measured peak."""

    images: int
    """Images per step of that rank."""
    bytes: int
    counted_bytes: int | None
    """The forecast for that rank, without allowances."""


def work_key(config: dict[str, Any]) -> tuple[str, ...]:
    """Everything except the batch that determines a rank's memory; peaks apply to runs with equal
    keys.

    Args:
        config: as in a record, or as :func:`dpeval.config.to_plain` gives it.
    """
    values = [config.get(name) for name in SAME]
    is_resident = config.get("dataset", {}).get("loader") == "resident"
    for group, names in (
        ("dataset", SAME_DATASET + SAME_RESIDENT if is_resident else SAME_DATASET),
        ("strategy", SAME_STRATEGY),
        ("hardware", SAME_HARDWARE),
    ):
        values += [config.get(group, {}).get(name) for name in names]
    return tuple(str(value) for value in values)


def peak_of(record: Record) -> Peak | None:
    """The peak of the rank with the largest batch; None if the record has no usable one."""
    if record.status != "ok" or record.plan is None or record.plan.micro_batches != 1:
        return None
    ranks = [rank for rank in record.ranks if rank.peak_bytes is not None]
    if not ranks:
        return None
    images = max(rank.per_device_batch_size for rank in ranks)
    earlier = record.memory.forecast
    return Peak(
        images=images,
        bytes=max(_taken(rank) for rank in ranks if rank.per_device_batch_size == images),
        counted_bytes=earlier.counted_bytes if earlier is not None else None,
    )


def _taken(rank: RankRecord) -> int:
    """Memory that the rank really needed: on a GPU, without what its allocator held unused."""
    return rank.peak_allocated_bytes or rank.peak_bytes or 0


def learned(forecast: Forecast, images: int, peaks: Sequence[Peak]) -> Forecast:
    """`forecast` with its allowances replaced by measurements; unchanged if `peaks` show nothing.

    If the batches are far enough apart, the total is the least-squares line through the peaks;
    otherwise it is the counted bytes plus the largest excess over them in those runs. No measured
    peak contains a GPU's context and fragmentation, so these are kept.

    Args:
        forecast: counted, for `images` images.
        images: per-device batch.
        peaks: measured in earlier runs that did the same work (:func:`work_key`).
    """
    is_gpu = "context" in forecast.parts
    kept = {name: forecast.parts[name] for name in UNMEASURED if is_gpu}
    total = _line_at(images, peaks)
    if total is None:
        beyond = [peak.bytes - peak.counted_bytes for peak in peaks if peak.counted_bytes]
        if not beyond:
            return forecast
        total = forecast.counted_bytes + max(beyond)
    counted = {name: size for name, size in forecast.parts.items() if name not in ALLOWANCES}
    parts = counted | {"allowance": total - sum(counted.values())} | kept
    return Forecast(total_bytes=sum(parts.values()), parts=parts, source="fit")


def _line_at(images: int, peaks: Sequence[Peak]) -> int | None:
    """The line through the peaks; None if it does not rise or the batches are too close."""
    batches = [peak.images for peak in peaks]
    if not batches or max(batches) < MIN_SPREAD * min(batches):
        return None
    slope, offset = np.polyfit(batches, [peak.bytes for peak in peaks], 1)
    return int(offset + slope * images) if slope > 0 else None
