"""Imagenette, downloaded and verified once; if it is unavailable, a clearly marked stand-in.

https://github.com/fastai/imagenette (Apache 2.0), ten classes of ImageNet.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import queue
import shutil
import tarfile
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpeval.config import DatasetConfig
from dpeval.data.sources.image_folder import scan
from dpeval.data.sources.progress import Report, amount, progress
from dpeval.data.sources.source import Source, making, one_line
from dpeval.data.sources.synthetic import WNIDS, imagenette_like
from dpeval.errors import DataError
from dpeval.util.display.units import MIB

CHUNK_BYTES = MIB
READ_TIMEOUT_S = 60.0
RETRY_AFTER_S = 600.0
"""Without a network, a sweep waits for the download once, not in every run."""
TRAIN_IMAGES, VAL_IMAGES = 9_469, 3_925


@dataclass(frozen=True)
class Archive:
    """One published archive."""

    url: str
    nbytes: int
    md5: str
    train_images: int = TRAIN_IMAGES
    val_images: int = VAL_IMAGES

    @property
    def folder(self) -> str:
        """The folder inside the archive."""
        return self.url.rsplit("/", 1)[-1].removesuffix(".tgz")


HOST = "https://s3.amazonaws.com/fast-ai-imageclas"
ARCHIVES = {
    "full": Archive(f"{HOST}/imagenette2.tgz", 1_557_161_267, "fe2fc210e6bb7c5664d602c3cd71e612"),
    "320px": Archive(
        f"{HOST}/imagenette2-320.tgz", 341_663_724, "3df6f0d01a2c9592104656642f5e78a3"
    ),
    "160px": Archive(f"{HOST}/imagenette2-160.tgz", 99_003_388, "e793b78cc4c9e9a4ccc0c1155377a412"),
}


def imagenette(config: DatasetConfig, root: Path, report: Report) -> Source:
    """Imagenette of ``dataset.size``, or its stand-in under ``dataset.on_missing=generate``.

    Args:
        config: the keys of ``dataset``.
        root: folder for the archive and the images.
        report: prints progress.

    Raises:
        DataError: it cannot be downloaded, and ``on_missing=error``.
    """
    try:
        with one_line(f"dataset={config.name}"):
            folder = obtain(ARCHIVES[config.size], root, report, config.download_timeout_s)
            return scan(config.name, config.name, folder)
    except DataError as error:
        if config.on_missing == "error":
            raise
        report(f"{error}")
    report(
        f"USING STAND-IN imagenette_like for {config.name}: speed is measured on generated "
        "images; set dataset.on_missing=error to stop instead"
    )
    made = imagenette_like(config, root, report)
    note = f"{config.name} was not available; generated images stand in for it"
    return made.model_copy(update={"requested": config.name, "note": note})


def obtain(archive: Archive, root: Path, report: Report, timeout_s: float) -> Path:
    """The extracted folder of `archive`, downloaded or repaired as needed.

    Args:
        archive: the published archive.
        root: folder for the archive and the images.
        report: prints progress.
        timeout_s: how long to wait for the first byte, in seconds.

    Raises:
        DataError: the archive cannot be reached, or is not the published one.
    """
    folder = root / archive.folder
    if is_complete(folder, archive):
        return folder
    with making(folder, report):
        if is_complete(folder, archive):
            return folder
        packed = root / f"{archive.folder}.tgz"
        if packed.exists() and not is_sound(packed, archive):
            report(f"{packed} is damaged or incomplete; downloading it again")
            packed.unlink()
        if not packed.exists():
            download(archive, packed, report, timeout_s)
        _set_aside(folder, report)
        with one_line(str(folder)):
            extract(packed, archive, folder, report)
    return folder


def is_complete(folder: Path, archive: Archive) -> bool:
    """Whether `folder` has every image of the archive, even if another program extracted it."""
    wanted = (("train", archive.train_images), ("val", archive.val_images))
    return all(
        sum(_count(folder / split / wnid) for wnid in WNIDS) == count for split, count in wanted
    )


def _count(folder: Path) -> int:
    try:
        return sum(entry.name.endswith(".JPEG") for entry in os.scandir(folder))
    except OSError:
        return 0


def _set_aside(folder: Path, report: Report) -> None:
    """Move an incomplete folder out of the way; it may contain the user's files."""
    if folder.exists():
        aside = folder.with_name(f"{folder.name}.incomplete-{time.time_ns() // 10**9}")
        report(f"{folder} is incomplete; moving it to {aside.name} and extracting again")
        folder.rename(aside)


def is_sound(packed: Path, archive: Archive) -> bool:
    """Whether the file has the published size and MD5 sum."""
    if packed.stat().st_size != archive.nbytes:
        return False
    with packed.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return digest.hexdigest() == archive.md5


def download(archive: Archive, packed: Path, report: Report, timeout_s: float) -> None:
    """Download the archive to `packed`, which exists only once it is complete and verified.

    An interrupted download is continued if the server allows it.

    Args:
        archive: the published archive.
        packed: the file to write.
        report: prints progress.
        timeout_s: how long to wait for the first byte, in seconds.

    Raises:
        DataError: the download fails, or is not the published archive.
    """
    partial, unreachable = packed.with_suffix(".part"), packed.with_suffix(".unreachable")
    if unreachable.exists() and time.time() - unreachable.stat().st_mtime < RETRY_AFTER_S:
        raise DataError(
            f"{archive.url} could not be reached less than {RETRY_AFTER_S / 60:.0f} minutes ago; "
            f"delete {unreachable} to retry now"
        )
    _require_space(packed.parent, archive)
    begin = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(archive.url)
    if 0 < begin < archive.nbytes:
        request.add_header("Range", f"bytes={begin}-")
    try:
        with _opened(request, timeout_s) as answer:
            _receive(answer, partial, begin if answer.status == 206 else 0, archive, report)
    except (OSError, http.client.HTTPException) as error:
        if getattr(error, "filename", None) == str(partial):
            raise
        unreachable.touch()
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise DataError(f"{archive.url} cannot be downloaded ({reason})") from error
    unreachable.unlink(missing_ok=True)
    if not is_sound(partial, archive):
        size = partial.stat().st_size
        if size >= archive.nbytes:
            partial.unlink()
        raise DataError(
            f"{archive.url} returned {size} bytes that are not the published archive "
            f"({archive.nbytes} bytes, MD5 {archive.md5}); try again later"
        )
    partial.rename(packed)


def _require_space(folder: Path, archive: Archive) -> None:
    free, needed = shutil.disk_usage(folder).free, int(2.1 * archive.nbytes)
    if free < needed:
        raise DataError(
            f"{folder} has {amount(free, 'B')} free, but {archive.folder} needs "
            f"{amount(needed, 'B')}, packed and extracted; free space there or choose another "
            "folder with DPEVAL_DATA"
        )


def _opened(request: urllib.request.Request, timeout_s: float) -> Any:
    """The response to `request` within `timeout_s`, even if the name lookup hangs."""
    answers: queue.Queue[Any] = queue.Queue()

    def open_url() -> None:
        try:
            answers.put(urllib.request.urlopen(request, timeout=timeout_s))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=open_url, daemon=True).start()
    try:
        answer = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError(f"no response within {timeout_s:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    # The first byte arrived in time; later chunks may take longer.
    with contextlib.suppress(AttributeError):
        answer.fp.raw._sock.settimeout(READ_TIMEOUT_S)
    return answer


def _receive(answer: Any, partial: Path, begin: int, archive: Archive, report: Report) -> None:
    what = f"downloading {archive.url} ({amount(archive.nbytes, 'B')}) into {partial.parent}"
    with (
        partial.open("ab" if begin else "wb") as file,
        progress(report, what, archive.nbytes, "B", done=begin) as advance,
    ):
        while chunk := answer.read(CHUNK_BYTES):
            # A full disk is not a network error.
            with one_line(str(partial)):
                file.write(chunk)
            advance(len(chunk))


def extract(packed: Path, archive: Archive, folder: Path, report: Report) -> None:
    """Extract next to `folder`, and move the result into place once it is complete.

    Args:
        packed: the archive's file.
        archive: the published archive.
        folder: where the images go.
        report: prints progress.

    Raises:
        DataError: a member is outside the folder, or the archive is damaged or incomplete.
    """
    beside = folder.with_name(f"{folder.name}.extracting")
    shutil.rmtree(beside, ignore_errors=True)
    total = archive.train_images + archive.val_images
    try:
        with (
            tarfile.open(packed) as tar,
            progress(report, f"extracting {packed.name}", total, "images") as advance,
        ):
            for member in tar:
                _extract_member(tar, member, beside)
                advance(member.isfile())
        if not is_complete(beside / archive.folder, archive):
            raise DataError(f"{packed} lacks some of the {total:,} images of {archive.folder}")
        (beside / archive.folder).rename(folder)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"{packed} cannot be extracted: {error}; delete it and try again"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _extract_member(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Write a file or a folder of an archive below `folder`; its owner and mode are not kept.

    ``TarFile.extract`` has a filter for this only since Python 3.11.4; Debian 12 has 3.11.2.

    Raises:
        ExtractError: the member is a link or a device, or lies outside `folder`.
    """
    path = folder / member.name
    if ".." in path.parts or not path.is_relative_to(folder):
        raise tarfile.ExtractError(f"{member.name} lies outside the folder")
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    content = tar.extractfile(member) if member.isfile() else None
    if content is None:
        raise tarfile.ExtractError(f"{member.name} is neither a file nor a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with content, path.open("wb") as file:
        shutil.copyfileobj(content, file)
