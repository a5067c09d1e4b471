"""What the loaders hand to a rank."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpeval.config import DatasetConfig, split_evenly
from dpeval.data import Source, prepare, used
from dpeval.data.images.decode import resize
from dpeval.data.images.device_transforms import MEAN, STD, Normaliser, crop_batch
from dpeval.data.loading.loaders import (
    DeviceCroppedLoader,
    Loader,
    ResidentLoader,
    Shard,
    cached,
    make_loader,
)
from dpeval.data.loading.sampler import ShardedSampler
from dpeval.devices.cpu import CpuDevice
from dpeval.devices.cuda import CopyPrefetcher
from dpeval.errors import ConfigError, DataError
from tests.unit.data.conftest import CONFIG
from tests.unit.data.parts import Grey

LoaderOf = Callable[..., Loader]
LOADERS = ("jpeg", "cached", "resident")


@pytest.mark.parametrize("loader", [*LOADERS, "constant"])
@pytest.mark.parametrize("augment", ["random_resized_crop", "none"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_every_loader_gives_normalised_images_and_their_labels(
    loader_of: LoaderOf, source: Source, loader: str, augment: str, channels_last: bool
) -> None:
    made = loader_of(loader, shares=(5, 4), rank=1, augment=augment, channels_last=channels_last)
    images, labels = made.put(made.next())
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert images.shape == (4, 3, 32, 32)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=layout)
    assert -2.2 < float(images.min()) < float(images.max()) < 2.7
    expected = next(iter(ShardedSampler(40, [5, 4], 1, 7))).indices
    assert labels.tolist() == [source.train_labels[index] for index in expected]
    assert labels.dtype == torch.int64
    assert made.images_read == 4


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("loader", LOADERS)
def test_equal_seeds_give_equal_images_at_every_rank_count(
    loader_of: LoaderOf, loader: str, ranks: int
) -> None:
    alone = loader_of(loader, shares=(16,))
    together = [
        loader_of(loader, shares=tuple(split_evenly(16, ranks)), rank=rank) for rank in range(ranks)
    ]
    for _ in range(4):  # beyond the first epoch of 40 images
        images, labels = alone.put(alone.next())
        parts = [one.put(one.next()) for one in together]
        assert torch.equal(images, torch.cat([part for part, _ in parts]))
        assert torch.equal(labels, torch.cat([part for _, part in parts]))


def test_equal_seeds_show_the_same_crops_on_every_loader(loader_of: LoaderOf) -> None:
    """The cache is smaller than the files, so pixels differ a little; crops and order do not."""
    loaders = [loader_of(name, image_px=96) for name in LOADERS]
    for _ in range(3):
        (jpeg, labels), (cached, cached_labels), (resident, resident_labels) = (
            loader.put(loader.next()) for loader in loaders
        )
        assert torch.equal(cached, resident)
        assert torch.equal(labels, cached_labels)
        assert torch.equal(labels, resident_labels)
        for one, other in zip(jpeg, cached, strict=True):
            alike = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]
            assert alike > 0.8
        # That is much: another crop of the same image is hardly alike at all.
        shifted = torch.corrcoef(torch.stack([jpeg[0].flatten(), jpeg[0].flip(2).flatten()]))[0, 1]
        assert shifted < 0.8


def test_without_augmentation_the_loaders_agree_to_the_bit(loader_of: LoaderOf) -> None:
    loaders = [loader_of(name, augment="none") for name in LOADERS]
    for _ in range(3):
        jpeg, cached, resident = (loader.put(loader.next())[0].clone() for loader in loaders)
        assert torch.equal(jpeg, cached)
        assert torch.equal(jpeg, resident)


@pytest.mark.parametrize("loader", ["jpeg", "cached"])
def test_batches_that_workers_prefetch_are_the_same_batches(
    loader_of: LoaderOf, loader: str
) -> None:
    alone, prefetching = loader_of(loader, workers=0), loader_of(loader, workers=2)
    for _ in range(12):
        images, labels = alone.put(alone.next())
        prefetched_images, prefetched_labels = prefetching.put(prefetching.next())
        assert torch.equal(images, prefetched_images)
        assert torch.equal(labels, prefetched_labels)


def test_prefetching_leaves_the_models_random_numbers_alone(loader_of: LoaderOf) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    loader = loader_of("jpeg", workers=1)
    loader.next()
    assert torch.equal(torch.rand(3), expected)


def test_closing_a_loader_ends_its_workers(loader_of: LoaderOf) -> None:
    before = set(psutil.Process().children())
    loader = loader_of("jpeg", workers=2)
    loader.next()
    workers = set(psutil.Process().children()) - before
    assert len(workers) == 2
    loader.close()
    assert all(not worker.is_running() for worker in workers)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_workers_stay_on_the_spare_cpus(source: Source) -> None:
    spare = max(os.sched_getaffinity(0))
    before = set(psutil.Process().children())
    made = make_loader(
        source,
        dataclasses.replace(CONFIG, loader="jpeg", workers=2),
        shares=[4],
        rank=0,
        seed=0,
        device=CpuDevice(),
        channels_last=True,
        spare_cpus=[spare],
    )
    for _ in range(2):  # one batch from each worker: both have begun
        made.next()
    workers = set(psutil.Process().children()) - before
    assert [worker.cpu_affinity() for worker in workers] == [[spare], [spare]]
    made.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_damaged_later_is_named_in_one_line(
    folder_of: Callable[..., DatasetConfig], workers: int
) -> None:
    config = dataclasses.replace(folder_of(a=4, b=4), loader="jpeg", workers=workers)
    source = prepare(config)
    bad = Path(source.root) / source.train_files[3]
    bad.write_bytes(bad.read_bytes()[:300])
    loader = make_loader(
        source,
        config,
        shares=[8],
        rank=0,
        seed=0,
        device=CpuDevice(),
        channels_last=True,
        spare_cpus=[],
    )
    with pytest.raises(DataError, match=r"3\.jpg is not a readable image \(.*\); repair") as caught:
        loader.next()
    assert "\n" not in str(caught.value)
    loader.close()


def test_fewer_images_than_a_global_batch_is_one_clear_error(loader_of: LoaderOf) -> None:
    with pytest.raises(DataError, match=r"has 40 training samples, but one global batch needs 48"):
        loader_of("cached", shares=(24, 24))


def test_the_constant_loader_says_that_it_is_no_training(source: Source) -> None:
    said = used(source, dataclasses.replace(CONFIG, loader="constant"))
    assert said.loader == "constant"
    assert "not real training" in said.note


def test_a_loader_of_ones_own_is_named_by_its_path(loader_of: LoaderOf) -> None:
    loader = loader_of("tests.unit.data.parts.Grey", loader_args={"brightness": 0.25})
    assert isinstance(loader, Grey)
    images, _ = loader.put(loader.next())
    assert torch.equal(images, torch.full((8, 3, 32, 32), 0.25))
    assert Path(str(loader.cache)).is_file()


@pytest.mark.parametrize(
    ("loader", "args", "message"),
    [
        ("jpeg", {"brightness": 1}, "takes no dataset.loader_args"),
        ("tests.unit.data.parts.Grey", {"bright": 1}, "Grey does not accept dataset.loader_args="),
        (
            "tests.unit.data.parts.no_loader",
            {},
            "returned a dict; it must have images_read, next()",
        ),
    ],
)
def test_a_wrong_loader_is_one_line(
    loader_of: LoaderOf, loader: str, args: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        loader_of(loader, loader_args=args)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# --- what runs on CUDA, driven on CPU tensors --------------------------------------------------


def shard_of(source: Source, **keys: object) -> Shard:
    config = dataclasses.replace(
        CONFIG,
        root=str(Path(source.root).parent),
        image_px=96,
        **keys,  # type: ignore[arg-type]
    )
    return Shard(prepare(config), config, (8,), 0, 7, CpuDevice(), True, ())


@pytest.mark.parametrize("kind", [ResidentLoader, DeviceCroppedLoader])
@pytest.mark.parametrize("augment", ["random_resized_crop", "none"])
def test_crops_made_on_the_device_are_those_made_on_the_host(
    source: Source, kind: Callable[[Shard], Loader], augment: str
) -> None:
    shard = shard_of(source, augment=augment)
    on_device, on_host = kind(shard), cached(shard)
    for _ in range(6):
        images, labels = on_device.put(on_device.next())
        expected, expected_labels = on_host.put(on_host.next())
        assert torch.equal(labels, expected_labels)
        assert images.is_contiguous(memory_format=torch.channels_last)
        # The host's kernel smooths where it shrinks, by up to 8/7.
        assert float((images - expected).abs().mean()) < (0.05 if augment != "none" else 1e-5)
    for loader in (on_device, on_host):
        loader.close()


class RecordedCuda:
    """Stands in for ``torch.cuda`` and records the order of calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._events = 0

    def Stream(self, device: object, priority: int = 0) -> str:  # noqa: N802
        return "side"

    @contextlib.contextmanager
    def stream(self, stream: str) -> Iterator[None]:
        self.calls.append(f"on {stream}")
        yield
        self.calls.append(f"off {stream}")

    def Event(self) -> object:  # noqa: N802
        cuda, number = self, self._events
        self._events += 1

        class Event:
            def record(self) -> None:
                cuda.calls.append(f"record {number}")

            def __repr__(self) -> str:
                return str(number)

        return Event()

    def current_stream(self, device: object) -> object:
        cuda = self

        class Current:
            def wait_event(self, event: object) -> None:
                cuda.calls.append(f"wait {event}")

        return Current()


def test_the_next_batch_is_sent_before_this_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = RecordedCuda()
    monkeypatch.setattr(torch, "cuda", cuda)
    kept: list[int] = []

    class Batch(torch.Tensor):
        def record_stream(self, stream: object) -> None:
            kept.append(int(self[0]))

    prefetcher = CopyPrefetcher(torch.device("cpu"))
    batches = ((torch.tensor([number]).as_subclass(Batch),) for number in range(3))
    sent = prefetcher.ahead(iter(batches))
    first = next(sent)
    assert cuda.calls == [
        "on side", "record 0", "off side", "on side", "record 1", "off side",
    ]  # fmt: skip
    (tensor,) = prefetcher.receive(first)
    assert cuda.calls[-1] == "wait 0"
    assert int(tensor[0]) == 0
    assert kept == [0]


# --- arithmetic on pixels ----------------------------------------------------------------------


@given(px=st.sampled_from([1, 7, 32, 300]), count=st.integers(1, 3), channels_last=st.booleans())
def test_normalising_in_chunks_is_normalising(px: int, count: int, channels_last: bool) -> None:
    pixels = torch.randint(0, 256, (count, px, px, 3), dtype=torch.uint8)
    images = Normaliser(torch.device("cpu"), channels_last=channels_last)(pixels)
    shape = (1, 3, 1, 1)
    expected = (pixels.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(shape)) / torch.tensor(
        STD
    ).view(shape)
    assert torch.allclose(images, expected, atol=1e-5)


@given(
    top=st.integers(0, 30),
    left=st.integers(0, 30),
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    flip=st.booleans(),
)
def test_the_devices_batched_crop_is_the_crop_of_interpolate(
    top: int, left: int, height: int, width: int, flip: bool
) -> None:
    squares = torch.randint(0, 256, (1, 60, 60, 3), dtype=torch.uint8)
    where = torch.tensor([[top, left, height, width, flip]])
    cropped = crop_batch(squares, where, 32)[0]
    crop = squares[:, top : top + height, left : left + width].permute(0, 3, 1, 2).float()
    expected = torch.nn.functional.interpolate(crop, size=(32, 32), mode="bilinear")[0]
    expected = expected.flip(2) if flip else expected
    assert torch.allclose(cropped.permute(2, 0, 1), expected, atol=0.05)


def test_resizing_is_torchvisions() -> None:
    from torchvision.transforms.v2.functional import resized_crop

    image = torch.randint(0, 256, (90, 70, 3), dtype=torch.uint8)
    out = torch.empty(32, 32, 3, dtype=torch.uint8)
    resize(image, [5, 7, 60, 50], True, out)
    theirs = resized_crop(image.permute(2, 0, 1), 5, 7, 60, 50, [32, 32])
    # The kernel of torch 2.6 rounds a mirrored image otherwise here and there.
    difference = out.permute(2, 0, 1).int() - theirs.flip(2).int()
    assert difference.abs().max() <= 1
    resize(image, [5, 7, 32, 32], False, out)
    assert torch.equal(out, image[5:37, 7:39])
