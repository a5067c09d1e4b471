"""What the loaders' code makes on a GPU, against what is forecast of it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dpeval.config import DatasetConfig, HardwareConfig
from dpeval.data.images.device_transforms import Normaliser, crop_batch
from dpeval.data.loading.cache_table import split_rows
from dpeval.data.loading.device_memory import InputMemory, on_cpu, on_gpu
from dpeval.data.sources.pixel_cache import layout, record_type
from dpeval.planning.memory.forecast import forecast
from dpeval.planning.memory.storage_tracker import StorageTracker
from tests.unit.test_memory_forecast import Small
from tests.unit.test_memory_forecast import config as small

META = torch.device("meta")
"""Not the CPU, so the code takes its path for GPUs; nothing is computed."""
BATCH, IMAGES = 16, 9_469


def dataset(loader: str, target: str = "dpeval.data.imagenette") -> DatasetConfig:
    return DatasetConfig(image_px=56, name="x", _target_=target, loader=loader)


def most_at_once(batches: InputMemory) -> int:
    """The most bytes that live while the images are made, and they."""
    sizes = [size for size, _ in batches.passing]
    most = batches.images
    for place in range(len(sizes) + 1):
        live = [
            size
            for begin, (size, following) in enumerate(batches.passing)
            if begin <= place <= begin + following
        ]
        most = max(most, sum(live) + (batches.images if place == len(sizes) else 0))
    return most


def made_by(loader: str, *, channels_last: bool) -> int:
    """The most bytes that live while the loaders' own code makes the images of a batch."""
    config = dataset(loader)
    side_px, px = layout(config).side_px, config.image_px
    normalised = Normaliser(META, channels_last=channels_last)
    rows = torch.empty(IMAGES, record_type(side_px).itemsize, dtype=torch.uint8, device=META)
    sent = torch.empty(BATCH, px, px, 3, dtype=torch.uint8, device=META)
    index, where = torch.empty(BATCH, dtype=torch.int64, device=META), torch.empty(BATCH, 5)
    whole = rows[:BATCH].clone()
    with StorageTracker([rows, sent, index, whole]) as tracker:
        if loader == "jpeg":
            images = normalised(sent)
        elif loader == "cached":
            images = normalised(crop_batch(split_rows(whole, side_px), where.to(META), px))
        else:
            squares = split_rows(rows.index_select(0, index), side_px)
            images = normalised(crop_batch(squares, where.to(META), px))
    assert images.shape == (BATCH, 3, px, px)
    most: int = tracker.peak.total
    return most


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("loader", ["jpeg", "cached", "resident"])
def test_what_a_step_makes_is_what_the_loaders_make(loader: str, channels_last: bool) -> None:
    batches = on_gpu(BATCH, dataset(loader), channels_last=channels_last)
    made = made_by(loader, channels_last=channels_last)
    assert most_at_once(batches) == pytest.approx(made, rel=0.02)


def test_batches_in_flight_have_the_size_of_what_is_sent() -> None:
    jpeg, cached, resident = (
        on_gpu(BATCH, dataset(name), channels_last=True) for name in ("jpeg", "cached", "resident")
    )
    assert jpeg.in_flight == (BATCH * 3 * 56**2,) * 3
    assert cached.in_flight == (BATCH * (3 * 64**2 + 8),) * 3
    assert resident.in_flight == ()


def test_a_resident_dataset_is_held_whole() -> None:
    record = 3 * 64**2 + 8
    resident, like = dataset("resident"), dataset("resident", "dpeval.data.imagenette_like")
    assert on_gpu(BATCH, resident, channels_last=True).resident == IMAGES * record
    assert on_gpu(BATCH, like, channels_last=True).resident == like.train_images * record
    prepared = on_gpu(BATCH, resident, channels_last=True, train_images=100)
    assert prepared.resident == 100 * record
    for other in ("jpeg", "cached", "constant"):
        assert on_gpu(BATCH, dataset(other), channels_last=True).resident == 0


def test_the_forecast_of_a_gpu_counts_what_is_resident() -> None:
    gpu = small(dataset=dataset("cached"), hardware=HardwareConfig(kind="gpu"))
    resident = dataclasses.replace(gpu, dataset=dataset("resident"))
    one, other = (forecast(each, BATCH, Small).total_bytes for each in (gpu, resident))
    assert other - one == pytest.approx(IMAGES * (3 * 64**2 + 8), rel=0.05)


def test_on_a_cpu_the_loader_changes_nothing() -> None:
    """What is resident is the mapped cache, whose pages are not the rank's own."""
    found = {on_cpu(BATCH, dataset(name)) for name in ("jpeg", "cached", "resident")}
    assert [one.held for one in found] == [BATCH * 3 * 56**2 * 5]
