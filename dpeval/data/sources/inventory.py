"""What is in the data folder: datasets, archives, caches, and leftovers of interrupted work."""

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
from dpeval.data.sources.progress import Report, progress
from dpeval.errors import DataError, nearest
from dpeval.util.cpus import allowed_cpus
from dpeval.util.frozen import Frozen

Kind = Literal["dataset", "archive", "cache", "leftover"]
LEFT_OVER = (".part", ".generating", ".extracting", ".building", ".unreachable", ".tmp")


class Entry(Frozen):
    """One entry of the data folder."""

    name: str
    """Path relative to the data folder, as ``delete`` expects it."""
    kind: Kind
    nbytes: int
    images: int | None = None
    state: str = ""
    """What is wrong with it, or what it contains."""


def entries(root: Path) -> list[Entry]:
    """Everything in `root` that belongs to dpeval, sorted by name."""
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
        kind="dataset",
        nbytes=sum(file.stat().st_size for file in files),
        images=len(files),
        state="" if complete else "incomplete; prepare completes it",
    )


def _cache_entry(path: Path, root: Path) -> Entry:
    meta = pixel_cache.load_meta(path)
    if meta is None or not pixel_cache.is_whole(path, meta):
        state = "unfinished; prepare rebuilds it"
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
        kind="leftover",
        nbytes=nbytes,
        state="from interrupted work; delete it unless data is being prepared now",
    )


def _images(folder: Path) -> Iterator[Path]:
    for where, _, names in os.walk(folder):
        yield from (Path(where) / name for name in names if name.lower().endswith(EXTENSIONS))


def delete(root: Path, names: list[str], report: Report) -> None:
    """Delete the named entries of `root`.

    Args:
        root: the data folder.
        names: names of entries.
        report: prints one line per entry.

    Raises:
        DataError: one of the names does not exist; nothing has been deleted.
    """
    known = {entry.name: entry for entry in entries(root)}
    for name in names:
        if name not in known:
            raise DataError(
                f"{root} has no '{name}'{nearest(name, known)}; "
                "python -m dpeval.data list shows its contents"
            )
    for name in names:
        path = root / name
        if path.is_dir():
            # Renamed first, so that an interrupted deletion leaves nothing that looks complete.
            doomed = path.with_name(f"{path.name}.tmp")
            path.rename(doomed)
            shutil.rmtree(doomed)
        else:
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink()
        report(f"deleted {path}")


def verify(root: Path, names: list[str], report: Report) -> list[str]:
    """Read entries completely; return one line for each problem.

    Args:
        root: the data folder.
        names: names of entries; empty: all of them.
        report: prints progress.

    Raises:
        DataError: one of the names does not exist.
    """
    known = {entry.name: entry for entry in entries(root)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(f"{root} has no '{unknown[0]}'{nearest(unknown[0], known)}")
    wrong: list[str] = []
    for entry in known.values():
        if not names or entry.name in names:
            wrong += _wrong_with(entry, root, report)
    return wrong


def _wrong_with(entry: Entry, root: Path, report: Report) -> list[str]:
    path = root / entry.name
    if entry.kind == "archive":
        published = {one.folder: one for one in imagenette.ARCHIVES.values()}[path.stem]
        with progress(report, f"checking {path}", entry.nbytes, "B") as advance:
            sound = imagenette.is_sound(path, published)
            advance(entry.nbytes)
        advice = "prepare downloads it again"
        return [] if sound else [f"{path} is not the published archive; {advice}"]
    if entry.kind == "cache":
        with progress(report, f"checking {path}", entry.nbytes, "B") as advance:
            sound = pixel_cache.verify(path)
            advance(entry.nbytes)
        advice = f"delete it with python -m dpeval.data delete {entry.name}"
        return [] if sound else [f"{path} is damaged; {advice}"]
    if entry.kind == "dataset":
        return damaged_images(list(_images(path)), path, report)
    return []


def damaged_images(files: list[Path], where: Path, report: Report) -> list[str]:
    """One line for each file that cannot be decoded.

    Args:
        files: image files.
        where: the folder to show in the progress report.
        report: prints progress.
    """
    # Late: torch takes seconds to import, and only decoding needs it.
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
        progress(report, f"decoding every image in {where}", len(files), "images") as advance,
    ):
        for line in pool.map(check, files):
            advance(1)
            if line is not None:
                wrong.append(line)
    return wrong
