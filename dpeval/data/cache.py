"""Images decoded once into one file of fixed-size pixels that all ranks and runs map."""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpeval.config import DatasetConfig
from dpeval.data.decode import Pixels, read_image
from dpeval.data.source import Say, Source
from dpeval.schema import Frozen

MARGIN = 8 / 7
"""Cached side over trained side: room for random crops, as 256 px for 224 px is usual."""
CHUNK = 256
TELL_EVERY_S = 5.0


class Meta(Frozen):
    """What a finished cache holds; it is written last, so a cache without it is none."""

    images: int
    side_px: int
    fingerprint: str
    """Of the source's files: names, sizes, modification times."""
    crc32: int


def side_px(image_px: int) -> int:
    """Side of a cached image for a model that sees `image_px`."""
    return max(image_px, round(image_px * MARGIN))


def ensure(source: Source, config: DatasetConfig, root: Path, say: Say) -> Source:
    """Build the cache of `source` unless a finished one of the same files is there.

    The caller holds the folder's lock.

    Raises:
        DataError: an image cannot be read; OSError: the disk is full.
    """
    side = side_px(config.image_px)
    key = hashlib.sha256(source.root.encode()).hexdigest()[:8]
    path = root / "cache" / f"{source.used}-{key}-{side}px.u8"
    files = [Path(source.root) / name for name in source.train_files]
    fingerprint = _fingerprint(files)
    meta = load_meta(path)
    if meta is None or meta.fingerprint != fingerprint or not is_whole(path, meta):
        build(path, files, side, fingerprint, say)
    return source.model_copy(update={"cache": str(path)})


def load_meta(path: Path) -> Meta | None:
    """What the finished cache at `path` holds; None where there is none."""
    try:
        return Meta.model_validate_json(path.with_suffix(".json").read_bytes())
    except (OSError, ValueError):
        return None


def is_whole(path: Path, meta: Meta) -> bool:
    """Whether the file has the size that its meta data promise."""
    try:
        return path.stat().st_size == meta.images * meta.side_px**2 * 3
    except OSError:
        return False


def verify(path: Path) -> bool:
    """Whether every byte is as it was built; reads the whole file."""
    meta = load_meta(path)
    return meta is not None and is_whole(path, meta) and _crc32(path) == meta.crc32


def build(path: Path, files: list[Path], side: int, fingerprint: str, say: Say) -> None:
    """Decode `files` into `path`; a build that was cut off is continued where it stood."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)
    building = path.with_suffix(f".{fingerprint[:8]}.building")
    for stale in path.parent.glob(f"{path.stem}.*.building"):
        if stale != building:
            stale.unlink()
    image_bytes = side * side * 3
    begin = building.stat().st_size // image_bytes if building.exists() else 0
    gib = len(files) * image_bytes / 2**30
    say(f"decoding {len(files)} images once to {side} px into {path} ({gib:.2f} GiB)")
    told_s = time.monotonic()
    with building.open("r+b" if building.exists() else "wb") as file:
        # What is written is written in order, so a cut-off file is whole up to its last image.
        file.truncate(begin * image_bytes)
        file.seek(0, os.SEEK_END)
        for done, pixels in enumerate(_decoded(files[begin:], side), start=begin + 1):
            file.write(np.ascontiguousarray(pixels).tobytes())
            if time.monotonic() - told_s > TELL_EVERY_S:
                told_s = time.monotonic()
                say(f"  {done} of {len(files)} images")
        file.flush()
        os.fsync(file.fileno())
    building.replace(path)
    meta = Meta(images=len(files), side_px=side, fingerprint=fingerprint, crc32=_crc32(path))
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(meta.model_dump_json())
    temporary.replace(path.with_suffix(".json"))


def _decoded(files: list[Path], side: int) -> Iterator[Pixels]:
    """Decoded images in order; decoding lets go of the interpreter's lock, so threads do."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for begin in range(0, len(files), CHUNK):
            yield from pool.map(
                lambda path: read_image(path, side, None), files[begin : begin + CHUNK]
            )


def _fingerprint(files: list[Path]) -> str:
    facts = []
    for path in files:
        stat = path.stat()
        facts.append((path.name, stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value


def open_cache(path: str, images: int, side: int) -> NDArray[np.uint8]:
    """The cache, mapped: all ranks of a node share one copy in the page cache.

    Copy-on-write, because torch has no read-only tensors; nothing ever writes to it.
    """
    return np.memmap(path, dtype=np.uint8, mode="c", shape=(images, side, side, 3))
