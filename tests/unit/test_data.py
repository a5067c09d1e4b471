"""Sources, shares, crops, caches and what happens when images or disks are bad."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dpeval.config import DatasetConfig
from dpeval.data import Source, cache, imagenette, make_feed, prepare, stand_in
from dpeval.data.decode import random_crop, read_image
from dpeval.data.imagenette import Archive, download, extract, obtain
from dpeval.data.sampler import ShardedSampler
from dpeval.devices import CpuDevice
from dpeval.errors import DataError
from dpeval.plan import deal

CONFIG = DatasetConfig(
    name="imagenette_like",
    _target_="dpeval.data.imagenette_like",
    image_px=32,
    size="160px",
    train_images=40,
    loader="cached",
)


def silent(_: str) -> None:
    pass


# --- shares ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_no_image_is_read_twice_and_only_the_ragged_batch_is_dropped(ranks: int) -> None:
    shares = deal(16, ranks)
    for epoch in (0, 1):
        read = [
            index
            for rank in range(ranks)
            for step in ShardedSampler(105, shares, rank, seed=3).epoch(epoch)
            for index in step
        ]
        assert len(read) == len(set(read)) == 105 // 16 * 16


@given(
    images=st.integers(8, 300),
    batch=st.integers(5, 40),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 3),
)
def test_the_global_batches_are_the_same_at_every_rank_count(
    images: int, batch: int, seed: int, epoch: int
) -> None:
    if images < batch:
        with pytest.raises(DataError, match=f"needs {batch}"):
            ShardedSampler(images, [batch], 0, seed)
        return
    orders = []
    for ranks in (1, 2, 3, 5):
        shares = deal(batch, ranks)
        parts = [ShardedSampler(images, shares, rank, seed).epoch(epoch) for rank in range(ranks)]
        orders.append([list(np.concatenate(step)) for step in zip(*parts, strict=True)])
    assert all(order == orders[0] for order in orders)


def test_every_epoch_has_an_order_of_its_own() -> None:
    sampler = ShardedSampler(64, [8], 0, seed=0)
    first, second = ([list(step) for step in sampler.epoch(epoch)] for epoch in (0, 1))
    assert first != second
    for steps in (first, second):
        assert sorted(index for step in steps for index in step) == list(range(64))


# --- the stand-in ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    root = tmp_path_factory.mktemp("data")
    return prepare(dataclasses.replace(CONFIG, root=str(root)), silent)


def test_the_stand_in_has_imagenettes_layout(source: Source) -> None:
    assert len(source.train_files) == 40
    assert sorted({name.split("/")[1] for name in source.train_files}) == list(imagenette_classes())
    sizes = [Image.open(Path(source.root) / name).size for name in source.train_files]
    assert {min(size) for size in sizes} == {160}


def imagenette_classes() -> tuple[str, ...]:
    from dpeval.data.imagenette import CLASSES

    return CLASSES


def test_the_stand_in_is_the_same_everywhere() -> None:
    pixels = stand_in.make_image(3, 160, np.random.default_rng([1, 160, False, 3]))
    again = stand_in.make_image(3, 160, np.random.default_rng([1, 160, False, 3]))
    other = stand_in.make_image(3, 160, np.random.default_rng([1, 160, False, 13]))
    assert (pixels == again).all()
    assert pixels.shape != other.shape or (pixels != other).any()


def test_stand_in_images_have_the_spectra_of_photographs() -> None:
    """Amplitude falls as about 1/f: a slope of -1 in the logarithms (Field 1987)."""
    slopes = []
    for number in range(10):
        pixels = stand_in.make_image(number, 160, np.random.default_rng(number))[:160, :160]
        grey = pixels.mean(axis=-1)
        amplitude = np.abs(np.fft.fft2(grey - grey.mean()))
        rows, columns = np.meshgrid(
            *[np.fft.fftfreq(side) * 160 for side in grey.shape], indexing="ij"
        )
        radius = np.hypot(rows, columns)
        bands = [(low, low * 2) for low in (2, 4, 8, 16)]
        means = [amplitude[(radius >= low) & (radius < high)].mean() for low, high in bands]
        slopes.append(np.polyfit(np.log([low for low, _ in bands]), np.log(means), 1)[0])
    assert -1.4 < float(np.mean(slopes)) < -0.7


def test_a_second_preparation_reads_no_image(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(source.root).parent
    monkeypatch.setattr(stand_in, "generate", None)
    monkeypatch.setattr(cache, "build", None)
    assert prepare(dataclasses.replace(CONFIG, root=str(root)), silent) == source


# --- feeds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loader", ["jpeg", "cached", "resident", "constant"])
@pytest.mark.parametrize("augment", ["random_resized_crop", "none"])
def test_every_feed_gives_normalised_images_and_their_labels(
    source: Source, loader: str, augment: str
) -> None:
    config = dataclasses.replace(CONFIG, loader=loader, augment=augment)
    feed = make_feed(
        source,
        config,
        shares=[5, 4],
        rank=1,
        seed=0,
        device=CpuDevice(),
        channels_last=True,
        spare_cpus=[],
    )
    images, labels = feed.put(feed.next())
    assert images.shape == (4, 3, 32, 32)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert -2.2 < float(images.min()) < float(images.max()) < 2.7
    expected = next(iter(ShardedSampler(40, [5, 4], 1, 0)))
    assert labels.tolist() == [source.train_labels[index] for index in expected]
    assert feed.images_read == 4
    feed.close()


def test_feeds_agree_on_what_they_show(source: Source) -> None:
    """Without augmentation, decoding each time, the cache and the resident copy are one."""
    shown = []
    for loader in ("jpeg", "cached", "resident"):
        config = dataclasses.replace(CONFIG, loader=loader, augment="none")
        feed = make_feed(
            source,
            config,
            shares=[8],
            rank=0,
            seed=0,
            device=CpuDevice(),
            channels_last=False,
            spare_cpus=[],
        )
        shown.append(feed.put(feed.next())[0])
        feed.close()
    assert torch.equal(shown[1], shown[2])
    # The cache holds the middle at 8/7 of the size, so it shows a little less around the edge.
    assert float((shown[0] - shown[1]).abs().mean()) < 0.6


def test_batches_made_ahead_are_the_same_batches(source: Source) -> None:
    orders = []
    for workers in (0, 2):
        config = dataclasses.replace(CONFIG, loader="cached", augment="none", workers=workers)
        feed = make_feed(
            source,
            config,
            shares=[8],
            rank=0,
            seed=0,
            device=CpuDevice(),
            channels_last=False,
            spare_cpus=[],
        )
        orders.append([feed.next()[1].tolist() for _ in range(12)])
        feed.close()
    assert orders[0] == orders[1]


@given(width=st.integers(1, 500), height=st.integers(1, 500), seed=st.integers(0, 99))
def test_a_crop_lies_inside_its_image(width: int, height: int, seed: int) -> None:
    crop = random_crop(width, height, np.random.default_rng(seed))
    assert crop.left >= 0
    assert crop.top >= 0
    assert crop.left + crop.width <= width
    assert crop.top + crop.height <= height


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "size"), [("L", (50, 40)), ("CMYK", (50, 40)), ("RGB", (1, 1)), ("RGB", (3000, 2))]
)
def test_unusual_images_are_read(tmp_path: Path, mode: str, size: tuple[int, int]) -> None:
    path = tmp_path / "ünüsual image.jpg"
    Image.new(mode, size, 100 if mode == "L" else None).save(path, "JPEG")
    assert read_image(path, 32, np.random.default_rng(0)).shape == (32, 32, 3)


@pytest.mark.parametrize("damage", ["empty", "truncated", "text"])
def test_a_damaged_image_is_named(tmp_path: Path, damage: str) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((200, 200), 50).convert("RGB").save(buffer, "JPEG")
    path = tmp_path / "bad.jpg"
    path.write_bytes(
        {"empty": b"", "truncated": buffer.getvalue()[:2000], "text": b"hello"}[damage]
    )
    with pytest.raises(DataError, match=r"bad\.jpg is not a readable image"):
        read_image(path, 32, None)


def test_an_image_too_large_to_be_true_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(path)
    with pytest.raises(DataError, match=r"bomb\.png"):
        read_image(path, 32, None)


def folder_of(root: Path, **classes: int) -> DatasetConfig:
    for split in ("train", "val"):
        for name, count in classes.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (40, 40), (number, 0, 0)).save(
                    root / split / name / f"{number}.jpg"
                )
    return dataclasses.replace(
        CONFIG,
        name="image_folder",
        _target_="dpeval.data.image_folder",
        root=str(root),
        num_classes=2,
    )


def test_a_users_own_folder_with_spaces_and_other_letters(tmp_path: Path) -> None:
    config = folder_of(tmp_path / "meine Bilder ✓", **{"größe eins": 3, "zwei": 2})
    made = prepare(config, silent)
    assert made.train_labels == [0, 0, 0, 1, 1]
    assert cache.verify(Path(str(made.cache)))


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    config = folder_of(tmp_path / "d", full=2, hollow=0)
    with pytest.raises(DataError, match=r"hollow holds no images"):
        prepare(config, silent)


def test_a_wrong_number_of_classes_says_the_right_one(tmp_path: Path) -> None:
    config = folder_of(tmp_path / "d", a=2, b=2, c=2)
    with pytest.raises(DataError, match=r"set dataset\.num_classes=3"):
        prepare(config, silent)


def test_a_cache_cut_off_anywhere_is_never_trusted(tmp_path: Path) -> None:
    config = folder_of(tmp_path / "d", a=4, b=4)
    path = Path(str(prepare(config, silent).cache))
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert Path(str(prepare(config, silent).cache)).read_bytes() == whole


def test_a_cache_is_built_anew_when_its_images_change(tmp_path: Path) -> None:
    config = folder_of(tmp_path / "d", a=4, b=4)
    path = Path(str(prepare(config, silent).cache))
    before = path.read_bytes()
    Image.new("RGB", (40, 40), (0, 255, 0)).save(tmp_path / "d/train/a/0.jpg")
    os.utime(tmp_path / "d/train/a/0.jpg", (1, 1))
    prepare(config, silent)
    assert path.read_bytes() != before


def test_a_build_that_was_cut_off_goes_on_where_it_stood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = folder_of(tmp_path / "d", a=4, b=4)
    reads: list[Path] = []

    def reading(path: Path, px: int, generator: np.random.Generator | None) -> np.ndarray[Any, Any]:
        reads.append(path)
        if len(reads) == 6:
            raise OSError(28, "No space left on device", str(path))
        return read_image(path, px, generator)

    monkeypatch.setattr(cache, "read_image", reading)
    monkeypatch.setattr(cache, "CHUNK", 1)
    with pytest.raises(DataError, match="No space left on device"):
        prepare(config, silent)
    assert list((tmp_path / "d/cache").glob("*.json")) == []
    prepare(config, silent)
    assert len(reads) == 6 + 3  # five were kept
    assert cache.verify(next((tmp_path / "d/cache").glob("*.u8")))


# --- downloads ---------------------------------------------------------------------------------


def packed(folder: str, *, evil: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for split in ("train", "val"):
            for wnid in imagenette_classes():
                image = io.BytesIO()
                Image.new("RGB", (40, 40), (9, 9, 9)).save(image, "JPEG")
                member = tarfile.TarInfo(evil or f"{folder}/{split}/{wnid}/{wnid}_0.JPEG")
                member.size = len(image.getvalue())
                tar.addfile(member, io.BytesIO(image.getvalue()))
    return buffer.getvalue()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder served on loopback, and its address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def archive_of(content: bytes, address: str) -> Archive:
    return Archive(f"{address}/imagenette2-160.tgz", len(content), hashlib.md5(content).hexdigest())


def test_an_archive_is_fetched_verified_and_extracted_once(
    served: tuple[Path, str], tmp_path: Path
) -> None:
    folder, address = served
    content = packed("imagenette2-160")
    (folder / "imagenette2-160.tgz").write_bytes(content)
    archive, root = archive_of(content, address), tmp_path / "root"
    root.mkdir()
    said: list[str] = []
    obtain(archive, root, said.append, 5)
    assert any("downloading" in line for line in said)
    said.clear()
    obtain(archive, root, said.append, 5)
    assert said == []


def test_a_broken_archive_and_a_half_extracted_folder_are_mended(
    served: tuple[Path, str], tmp_path: Path
) -> None:
    folder, address = served
    content = packed("imagenette2-160")
    (folder / "imagenette2-160.tgz").write_bytes(content)
    archive, root = archive_of(content, address), tmp_path / "root"
    root.mkdir()
    (root / "imagenette2-160.tgz").write_bytes(content[:-7])
    (root / "imagenette2-160" / "train").mkdir(parents=True)
    said: list[str] = []
    made = obtain(archive, root, said.append, 5)
    assert any("damaged" in line for line in said)
    assert any("not completely extracted" in line for line in said)
    assert len(list(made.glob("train/*/*.JPEG"))) == 10


def test_what_is_not_the_published_archive_is_refused(
    served: tuple[Path, str], tmp_path: Path
) -> None:
    folder, address = served
    (folder / "imagenette2-160.tgz").write_bytes(b"<html>please log in</html>")
    archive = archive_of(packed("imagenette2-160"), address)
    with pytest.raises(DataError, match="not the published archive"):
        download(archive, tmp_path / "imagenette2-160.tgz", silent, 5)
    assert list(tmp_path.glob("imagenette2*")) == []


def test_no_member_leaves_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "imagenette2-160.tgz"
    path.write_bytes(packed("imagenette2-160", evil="../../outside.txt"))
    with pytest.raises(DataError, match="cannot be extracted"):
        extract(path, archive_of(b"", ""), tmp_path / "imagenette2-160", silent)
    assert not (tmp_path.parent / "outside.txt").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["imagenette2-160.tgz"]


def test_without_a_network_the_stand_in_is_used_or_the_run_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable = Archive("http://127.0.0.1:9/imagenette2-160.tgz", 1, "")
    monkeypatch.setitem(imagenette_archives(), "160px", unreachable)
    config = dataclasses.replace(
        CONFIG, name="imagenette_160", _target_="dpeval.data.imagenette", root=str(tmp_path)
    )
    said: list[str] = []
    made = prepare(config, said.append)
    assert (made.requested, made.used) == ("imagenette_160", "imagenette_like")
    assert any("USING THE STAND-IN" in line for line in said)
    assert made.note
    with pytest.raises(DataError, match="could not be reached less than 10 minutes ago"):
        prepare(dataclasses.replace(config, on_missing="error"), silent)


def imagenette_archives() -> dict[str, Archive]:
    import sys

    return sys.modules[imagenette.__module__].ARCHIVES  # type: ignore[no-any-return]
