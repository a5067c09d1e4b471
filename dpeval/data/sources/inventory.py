"""What dpeval keeps in its data folder: data sets, caches, and what interrupted work left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np

from dpeval.data.sources import imagenette, pixel_cache, synthetic
from dpeval.data.sources.image_folder import EXTENSIONS
from dpeval.data.sources.progress import Say, progress
from dpeval.errors import DataError, nearest
from dpeval.util.cpus import allowed_cpus
from dpeval.util.frozen import Frozen

Kind = Literal["data set", "archive", "cache", "left over"]
LEFT_OVER = (".part", ".generating", ".extracting", ".building", ".unreachable", ".tmp")


class Entry(Frozen):
    """One thing in the data folder."""

    name: str
    """Path below the data folder: what ``delete`` takes."""
    kind: Kind
    nbytes: int
    images: int | None = None
    state: str = ""
    """What is wrong with it, or worth knowing."""


def entries(root: Path) -> list[Entry]:
    """Everything that dpeval keeps in `root`, by name."""
    if not root.is_dir():
        return []
    found = [entry for path in sorted(root.iterdir()) if (entry := _entry(path, root))]
    caches = root / pixel_cache.folder().name
    if caches.is_dir():
        found += [_cache_entry(path, root) for path in sorted(caches.glob("*.u8"))]
        left = (path for path in sorted(caches.iterdir()) if path.suffix in LEFT_OVER)
        found += [_left_over(path, root) for path in left]
    return found


def _entry(path: Path, root: Path) -> Entry | None:
    name = path.name
    published = {one.folder: one for one in imagenette.ARCHIVES.values()}
    if path.suffix in LEFT_OVER or ".incomplete-" in name:
        return _left_over(path, root)
    if path.suffix == ".tgz" and path.stem in published:
        return Entry(name=name, kind="archive", nbytes=path.stat().st_size)
    if not path.is_dir() or not (name in published or name.startswith("imagenette_like-")):
        return None
    files = list(_images(path))
    if name in published:
        complete = imagenette.is_complete(path, published[name])
    else:
        complete = (path / synthetic.COMPLETE).exists()
    return Entry(
        name=name,
        kind="data set",
        nbytes=sum(file.stat().st_size for file in files),
        images=len(files),
        state="" if complete else "incomplete; prepare mends it",
    )


def _cache_entry(path: Path, root: Path) -> Entry:
    meta = pixel_cache.load_meta(path)
    if meta is None or not pixel_cache.is_whole(path, meta):
        state = "not finished; prepare builds it anew"
    elif not Path(meta.source).is_dir():
        state = f"its source {meta.source} is gone"
    else:
        state = f"{meta.content} images of {meta.side_px} px from {meta.source}"
    return Entry(
        name=str(path.relative_to(root)),
        kind="cache",
        nbytes=path.stat().st_size,
        images=meta.images if meta else None,
        state=state,
    )


def _left_over(path: Path, root: Path) -> Entry:
    files = path.rglob("*") if path.is_dir() else iter([path])
    nbytes = sum(file.stat().st_size for file in files if file.is_file())
    return Entry(
        name=str(path.relative_to(root)),
        kind="left over",
        nbytes=nbytes,
        state="of interrupted work; may be deleted unless something prepares data now",
    )


def _images(folder: Path) -> Iterator[Path]:
    for where, _, names in os.walk(folder):
        yield from (Path(where) / name for name in names if name.lower().endswith(EXTENSIONS))


def delete(root: Path, names: list[str], say: Say) -> None:
    """Delete the named entries of `root`.

    Raises:
        DataError: there is no entry of one of the names; nothing is deleted then.
    """
    known = {entry.name: entry for entry in entries(root)}
    for name in names:
        if name not in known:
            raise DataError(
                f"{root} holds no '{name}'{nearest(name, known)}; "
                "python -m dpeval.data list names what it holds"
            )
    for name in names:
        path = root / name
        if path.is_dir():
            # Out of sight at once, so that an interrupted deletion leaves nothing half there.
            doomed = path.with_name(f"{path.name}.tmp")
            path.rename(doomed)
            shutil.rmtree(doomed)
        else:
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink()
        say(f"deleted {path}")


def verify(root: Path, names: list[str], say: Say) -> list[str]:
    """Read everything, or what `names` say, wholly; return what is wrong, a line each.

    Raises:
        DataError: there is no entry of one of the names.
    """
    known = {entry.name: entry for entry in entries(root)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(f"{root} holds no '{unknown[0]}'{nearest(unknown[0], known)}")
    wrong: list[str] = []
    for entry in known.values():
        if not names or entry.name in names:
            wrong += _wrong_with(entry, root, say)
    return wrong


def _wrong_with(entry: Entry, root: Path, say: Say) -> list[str]:
    path = root / entry.name
    if entry.kind == "archive":
        published = {one.folder: one for one in imagenette.ARCHIVES.values()}[path.stem]
        with progress(say, f"checking {path}", entry.nbytes, "B") as advance:
            sound = imagenette.is_sound(path, published)
            advance(entry.nbytes)
        return [] if sound else [f"{path} is not the published archive; prepare fetches it again"]
    if entry.kind == "cache":
        with progress(say, f"checking {path}", entry.nbytes, "B") as advance:
            sound = pixel_cache.verify(path)
            advance(entry.nbytes)
        advice = f"python -m dpeval.data delete {entry.name}"
        return [] if sound else [f"{path} is damaged; {advice}"]
    if entry.kind == "data set":
        return damaged_images(list(_images(path)), path, say)
    return []


def damaged_images(files: list[Path], where: Path, say: Say) -> list[str]:
    """A line for every one of `files` that cannot be decoded."""
    # Late: torch takes seconds to import, and only who decodes needs it.
    import torch

    from dpeval.data.images.decode import decode, open_file

    def check(path: Path) -> str | None:
        try:
            file = open_file(path)
            box = np.array([0, 0, file.height, file.width])
            decode(file, box, False, torch.empty(8, 8, 3, dtype=torch.uint8))
        except DataError as error:
            return str(error)
        return None

    wrong = []
    with (
        ThreadPoolExecutor(min(pixel_cache.MAX_THREADS, len(allowed_cpus()))) as pool,
        progress(say, f"decoding every image in {where}", len(files), "images") as advance,
    ):
        for line in pool.map(check, files):
            advance(1)
            if line is not None:
                wrong.append(line)
    return wrong
