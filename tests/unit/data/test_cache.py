"""Images decoded once: never half, never stale, never twice."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpeval.config import DatasetConfig
from dpeval.data import cache, decode, prepare
from dpeval.data.table import CacheTable
from dpeval.errors import DataError
from tests.unit.data.conftest import silent

FolderOf = Callable[..., DatasetConfig]
ROOT = Path(__file__).resolve().parents[3]


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
    assert cache.verify(Path(str(source.cache)))


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
    assert cache.verify(path)


def test_a_flipped_bit_is_found_by_verify(folder_of: FolderOf) -> None:
    path = cache_of(folder_of(a=4, b=4))
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    assert not cache.verify(path)


def test_a_cache_is_built_anew_when_its_images_change(folder_of: FolderOf) -> None:
    config = folder_of(a=4, b=4)
    before = cache_of(config).read_bytes()
    image = Path(str(config.root)) / "train/a/0.jpg"
    Image.new("RGB", (40, 40), (0, 255, 0)).save(image)
    os.utime(image, (1, 1))
    assert cache_of(config).read_bytes() != before


def test_a_second_preparation_decodes_nothing(
    folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = folder_of(a=4, b=4)
    source = prepare(config, silent)
    monkeypatch.setattr(cache, "build", None)
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


def test_a_build_that_was_cut_off_goes_on_where_it_stood(
    folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    config = folder_of(a=4, b=4)
    root = Path(str(config.root))
    damaged = root / "train/b/1.jpg"
    good = damaged.read_bytes()
    times = damaged.stat()
    damaged.write_bytes(b"x" * len(good))
    os.utime(damaged, ns=(times.st_atime_ns, times.st_mtime_ns))
    monkeypatch.setattr(cache, "CHUNK", 1)
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
    assert cache.verify(path)


def build_in_process(config: DatasetConfig, store: str, answers: object) -> None:
    os.environ["DPEVAL_DATA"] = store
    said: list[str] = []
    path = prepare(config, said.append).cache
    answers.put((path, [line for line in said if "decoding" in line]))  # type: ignore[attr-defined]


def test_two_sweeps_that_build_one_cache_build_it_once(folder_of: FolderOf, store: Path) -> None:
    config = folder_of(a=100, b=100)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [
        context.Process(target=build_in_process, args=(config, str(store), answers))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    (path, said), (other_path, other_said) = (answers.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    assert path == other_path
    assert len(said + other_said) == 1
    assert cache.verify(Path(path))


PREPARE = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from dpeval import cli
from dpeval.config import DatasetConfig
from dpeval.data import prepare
sys.exit(cli.run_main(lambda: prepare(DatasetConfig(
    name="image_folder", _target_="dpeval.data.image_folder", image_px=32, loader="cached",
    num_classes=2, root=sys.argv[1]))))
"""


def test_a_disk_that_fills_up_while_a_cache_is_built(folder_of: FolderOf, store: Path) -> None:
    """A limit on the size of files makes the same writes fail, with another errno."""
    config = folder_of(a=4, b=4)
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, str(config.root)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(store / "cache") in done.stderr
    assert "File too large" in done.stderr
    assert list(store.glob("cache/*.json")) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert cache.verify(cache_of(config))


def test_a_disk_without_room_is_told_before_anything_is_written(
    folder_of: FolderOf, store: Path
) -> None:
    config = dataclasses.replace(folder_of(a=4, b=4), image_px=20_000)
    kind = cache.record_type(round(20_000 * cache.MARGIN))
    (store / "cache").mkdir(parents=True)
    with pytest.raises(DataError, match=r"GiB more and .* GiB free; free space there"):
        # More of such images than any disk holds.
        cache.build(
            store / "cache" / "huge.u8",
            [Path("a.jpg")] * (2**60 // kind.itemsize),
            cache.layout(config),
            "wanted",
            "source",
            silent,
        )
    assert list((store / "cache").iterdir()) == []
