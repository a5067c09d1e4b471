"""Decodes images once into a file of fixed-size records, which all ranks and runs map.

A record holds the pixels of one training image and its original size. With random crops, it holds
the whole image, squashed into a square somewhat larger than the model's input, so that every loader
takes the same crop of the same image. Without augmentation, it holds exactly the model's input.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpeval.config import DatasetConfig
from dpeval.data.images.augment import middle_square
from dpeval.data.sources.progress import Report, progress
from dpeval.data.sources.source import Source, making, one_line, store
from dpeval.errors import DataError
from dpeval.util.cpus import allowed_cpus
from dpeval.util.display.units import GIB
from dpeval.util.files import write_atomically
from dpeval.util.frozen import Frozen

MARGIN = 8 / 7
"""Side of a squashed image relative to the model's input: 256 px for the usual 224 px."""
CHUNK = 128
"""Images decoded, written and checksummed at a time."""
MAX_THREADS = 16
DECODED_ALIKE = (".jpg", ".jpeg")
"""Extensions of files that every version decodes to the same pixels."""
DECODER = 2
"""Version of the decoding of all other files. 2: 16 bits are scaled to 8."""


class Meta(Frozen):
    """Describes a finished cache. It is written last: a cache without it is unfinished."""

    images: int
    side_px: int
    content: str
    """``whole``: the squashed image; ``middle``: the center square of ``augment=none``."""
    source: str
    """The folder that was decoded."""
    fingerprint: str
    """Hash of the files' names, sizes and modification times."""
    crc32: int

    @property
    def nbytes(self) -> int:
        """Size of the whole file."""
        return self.images * record_type(self.side_px).itemsize


@dataclass(frozen=True)
class Layout:
    """Shape of the cached images for a configuration."""

    side_px: int
    content: str


def layout(config: DatasetConfig) -> Layout:
    """The shape of the cached images that `config` needs."""
    if config.augment == "none":
        return Layout(config.image_px, "middle")
    return Layout(round(config.image_px * MARGIN), "whole")


def record_type(side_px: int) -> np.dtype[Any]:
    """The type of a record: pixels, and the original (height, width) of the image."""
    return np.dtype([("pixels", "u1", (side_px, side_px, 3)), ("size", "<i4", (2,))])


def folder() -> Path:
    """The folder of caches."""
    return store() / "cache"


def cache_path(source: Source, shape: Layout) -> Path:
    """The file of the cache of `source`."""
    key = hashlib.sha256(source.root.encode()).hexdigest()[:8]
    return folder() / f"{source.used}-{key}-{shape.content}-{shape.side_px}px.u8"


def ensure(source: Source, config: DatasetConfig, report: Report) -> Source:
    """Build the cache of `source` unless a finished one of the same files exists.

    Args:
        source: the images.
        config: the keys of ``dataset``.
        report: prints progress.

    Returns:
        `source` with its ``cache`` set.

    Raises:
        DataError: an image cannot be read, the disk is full, or the cache cannot be written.
    """
    shape = layout(config)
    path = cache_path(source, shape)
    files = [Path(source.root) / name for name in source.train_files]
    wanted = fingerprint(files)
    if not is_current(path, wanted):
        with making(path, report):
            # Another process may have built it while this one waited.
            if not is_current(path, wanted):
                with one_line(str(path)):
                    build(path, files, shape, wanted, source.root, report)
    return source.model_copy(update={"cache": str(path)})


def is_current(path: Path, wanted: str) -> bool:
    """Whether a finished cache of exactly these files is at `path`, judged by its size."""
    meta = load_meta(path)
    return meta is not None and meta.fingerprint == wanted and is_whole(path, meta)


def load_meta(path: Path) -> Meta | None:
    """The description of the cache at `path`; None if it is missing or unfinished."""
    try:
        return Meta.model_validate_json(path.with_suffix(".json").read_bytes())
    except (OSError, ValueError):
        return None


def is_whole(path: Path, meta: Meta) -> bool:
    """Whether the file has the size that its description states."""
    try:
        return path.stat().st_size == meta.nbytes
    except OSError:
        return False


def verify(path: Path) -> bool:
    """Whether the checksum still matches; reads the whole file."""
    meta = load_meta(path)
    return meta is not None and is_whole(path, meta) and _crc32(path) == meta.crc32


def build(
    path: Path, files: list[Path], shape: Layout, wanted: str, source: str, report: Report
) -> None:
    """Decode `files` into `path`, or continue an interrupted build.

    Args:
        path: the cache to write.
        files: images, in the order of their records.
        shape: of the cached images.
        wanted: :func:`fingerprint` of `files`.
        source: the folder that is decoded.
        report: prints progress.

    Raises:
        DataError: an image cannot be read, or the disk has too little space.
    """
    path.with_suffix(".json").unlink(missing_ok=True)
    building = path.with_suffix(f".{wanted[:8]}.building")
    for stale in path.parent.glob(f"{path.stem}.*.building"):
        if stale != building:
            stale.unlink()
    kind = record_type(shape.side_px)
    done = building.stat().st_size // kind.itemsize if building.exists() else 0
    needed = (len(files) - done) * kind.itemsize
    _require_space(path, needed)
    what = f"decoding {len(files):,} images once to {shape.side_px} px ({needed / GIB:.2f} GiB)"
    with (
        building.open("r+b" if building.exists() else "w+b") as file,
        progress(report, what, len(files), "images", done=done) as advance,
    ):
        # Records are written in order, so all but the last one of a truncated file are complete.
        file.truncate(done * kind.itemsize)
        crc32 = _crc32(building)
        file.seek(0, os.SEEK_END)
        for records in _decoded(files[done:], shape):
            content = records.tobytes()
            file.write(content)
            crc32 = zlib.crc32(content, crc32)
            advance(len(records))
        file.flush()
        os.fsync(file.fileno())
    building.replace(path)
    meta = Meta(
        images=len(files),
        side_px=shape.side_px,
        content=shape.content,
        source=source,
        fingerprint=wanted,
        crc32=crc32,
    )
    write_atomically(path.with_suffix(".json"), meta.model_dump_json())


def _require_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise DataError(
            f"{path} needs {needed / GIB:.2f} GiB more, but {path.parent} has only "
            f"{free / GIB:.2f} GiB free; free space there, choose another folder with "
            "DPEVAL_DATA, or use dataset.loader=jpeg, which needs no cache"
        )


def _decoded(files: list[Path], shape: Layout) -> Iterator[NDArray[Any]]:
    """Yield the records in order, a chunk at a time."""
    # Late: torch takes seconds to import, and only decoding needs it.
    import torch

    from dpeval.data.images.decode import decode, open_file

    def fill(job: tuple[Path, NDArray[Any]]) -> None:
        file, record = open_file(job[0]), job[1]
        if shape.content == "middle":
            box = middle_square(np.array([file.height]), np.array([file.width]))[0]
        else:
            box = np.array([0, 0, file.height, file.width])
        decode(file, box, False, torch.from_numpy(record["pixels"]))
        record["size"] = file.height, file.width

    # Threads suffice: decoding releases the GIL.
    with ThreadPoolExecutor(min(MAX_THREADS, len(allowed_cpus()))) as pool:
        for begin in range(0, len(files), CHUNK):
            part = files[begin : begin + CHUNK]
            records = np.zeros(len(part), record_type(shape.side_px))
            # A zero-dimensional view writes through; a plain element would be a copy.
            views = [records[index : index + 1].reshape(()) for index in range(len(part))]
            for _ in pool.map(fill, zip(part, views, strict=True)):
                pass
            yield records


def fingerprint(files: list[Path]) -> str:
    """Hash of the names, sizes and modification times of `files`, and of how they are decoded."""
    facts: list[tuple[str | int, ...]] = []
    for path in files:
        stat = path.stat()
        facts.append((path.name, stat.st_size, stat.st_mtime_ns))
    if any(path.suffix.lower() not in DECODED_ALIKE for path in files):
        facts.append(("decoder", DECODER))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value
