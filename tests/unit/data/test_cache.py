"""The cache of decoded images is never incomplete, never stale, and never built twice."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpeval.config import DatasetConfig
from dpeval.data import prepare
from dpeval.data.images import decode
from dpeval.data.loading.cache_table import CacheTable
from dpeval.data.sources import pixel_cache
from dpeval.errors import DataError
from tests.unit.data.conftest import silent

FolderOf = Callable[..., DatasetConfig]


def cache_of(config: DatasetConfig) -> Path:
    return Path(str(prepare(config, silent).cache))


def test_a_cache_holds_every_image_in_order(folder_of: FolderOf) -> None:
    config = folder_of(a=3, b=4)
    source = prepare(config, silent)
    table = CacheTable(source, config)
    assert table.squares.shape == (7, 37, 37, 3)
    for place, name in enumerate(source.train_files):
        with Image.open(Path(source.root) / name) as image:
            whole = np.asarray(image.convert("RGB").resize((37, 37), Image.Resampling.BILINEAR))
        difference = np.abs(table.squares[place].numpy().astype(int) - whole)
        assert difference.mean() < 12  # chroma of noise differs from decoder to decoder
    assert pixel_cache.verify(Path(str(source.cache)))


@pytest.mark.parametrize("cut", range(9))
def test_a_cache_cut_off_anywhere_is_never_trusted(folder_of: FolderOf, cut: int) -> None:
    config = folder_of(a=4, b=4)
    path = cache_of(config)
    whole = path.read_bytes()
    length = [0, 1, 4106, 4107, 4108, len(whole) // 2, len(whole) - 8, len(whole) - 1][cut % 8]
    if cut == 8:
        path.with_suffix(".json").write_bytes(path.with_suffix(".json").read_bytes()[:-5])
    else:
        path.write_bytes(whole[:length])
    assert cache_of(config).read_bytes() == whole
    assert pixel_cache.verify(path)


def test_a_flipped_bit_is_found_by_verify(folder_of: FolderOf) -> None:
    path = cache_of(folder_of(a=4, b=4))
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    assert not pixel_cache.verify(path)


def test_a_cache_is_rebuilt_when_its_images_change(folder_of: FolderOf) -> None:
    config = folder_of(a=4, b=4)
    before = cache_of(config).read_bytes()
    image = Path(str(config.root)) / "train/a/0.jpg"
    Image.new("RGB", (40, 40), (0, 255, 0)).save(image)
    os.utime(image, (1, 1))
    assert cache_of(config).read_bytes() != before


def test_pixels_of_another_version_of_the_decoder_are_not_kept(
    folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = folder_of(a=2, b=2)
    root = Path(str(config.root))
    files = [*root.rglob("*.jpg")]
    before = pixel_cache.fingerprint(files)
    (other := root / "train/a/0.png").write_bytes(files[0].read_bytes())
    both = pixel_cache.fingerprint([*files, other])
    monkeypatch.setattr(pixel_cache, "DECODER", pixel_cache.DECODER + 1)
    assert pixel_cache.fingerprint(files) == before
    assert pixel_cache.fingerprint([*files, other]) != both


def test_a_second_preparation_decodes_nothing(
    folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = folder_of(a=4, b=4)
    source = prepare(config, silent)
    monkeypatch.setattr(pixel_cache, "build", None)
    assert prepare(config, silent) == source


def test_configurations_that_need_other_pixels_have_caches_of_their_own(
    folder_of: FolderOf,
) -> None:
    config = folder_of(a=4, b=4)
    paths = {
        cache_of(dataclasses.replace(config, **keys))
        for keys in ({}, {"augment": "none"}, {"image_px": 48})
    }
    assert len(paths) == 3
    assert all(path.exists() for path in paths)


def test_an_interrupted_build_continues_where_it_stopped(
    folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    config = folder_of(a=4, b=4)
    root = Path(str(config.root))
    damaged = root / "train/b/1.jpg"
    good = damaged.read_bytes()
    times = damaged.stat()
    damaged.write_bytes(b"x" * len(good))
    os.utime(damaged, ns=(times.st_atime_ns, times.st_mtime_ns))
    monkeypatch.setattr(pixel_cache, "CHUNK", 1)
    with pytest.raises(DataError, match=r"b/1\.jpg is not a readable image"):
        prepare(config, silent)
    assert list(store.glob("cache/*.json")) == []
    damaged.write_bytes(good)
    os.utime(damaged, ns=(times.st_atime_ns, times.st_mtime_ns))
    opened: list[Path] = []
    open_file = decode.open_file

    def opening(path: Path) -> decode.Encoded:
        opened.append(path)
        return open_file(path)

    monkeypatch.setattr(decode, "open_file", opening)
    path = cache_of(config)
    assert len(opened) == 3  # five of eight were kept
    assert pixel_cache.verify(path)


def test_a_full_disk_is_reported_before_anything_is_written(
    folder_of: FolderOf, store: Path
) -> None:
    config = dataclasses.replace(folder_of(a=4, b=4), image_px=20_000)
    (store / "cache").mkdir(parents=True)
    with pytest.raises(DataError, match=r"GiB more, but .* GiB free; free space there"):
        # 157 TB.
        pixel_cache.build(
            store / "cache" / "huge.u8",
            [Path("a.jpg")] * 100_000,
            pixel_cache.layout(config),
            "wanted",
            "source",
            silent,
        )
    assert list((store / "cache").iterdir()) == []
