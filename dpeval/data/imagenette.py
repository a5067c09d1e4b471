"""Imagenette, downloaded and verified once; a stand-in, loudly, where it cannot be had.

https://github.com/fastai/imagenette (Apache 2.0), ten classes of ImageNet.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from dpeval.config import DatasetConfig
from dpeval.data.folder import scan
from dpeval.data.source import Say, Source
from dpeval.data.stand_in import imagenette_like
from dpeval.errors import DataError

CLASSES = (
    "n01440764", "n02102040", "n02979186", "n03000684", "n03028079",
    "n03394916", "n03417042", "n03425413", "n03445777", "n03888257",
)  # fmt: skip
CHUNK_BYTES = 1 << 20
READ_TIMEOUT_S = 60.0
RETRY_AFTER_S = 600.0
"""A sweep of many runs must not wait for an absent network once per run."""
COMPLETE = ".complete"
"""A file that is written after the last image: a folder without it was never finished."""


@dataclass(frozen=True)
class Archive:
    """One published archive."""

    url: str
    nbytes: int
    md5: str

    @property
    def folder(self) -> str:
        """The folder inside the archive."""
        return self.url.rsplit("/", 1)[-1].removesuffix(".tgz")


ARCHIVES = {
    "full": Archive(
        "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2.tgz",
        1_557_161_267,
        "fe2fc210e6bb7c5664d602c3cd71e612",
    ),
    "320px": Archive(
        "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
        341_663_724,
        "3df6f0d01a2c9592104656642f5e78a3",
    ),
    "160px": Archive(
        "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz",
        99_003_388,
        "e793b78cc4c9e9a4ccc0c1155377a412",
    ),
}


def imagenette(config: DatasetConfig, root: Path, say: Say) -> Source:
    """Imagenette of ``dataset.size``, or its stand-in where ``dataset.on_missing=generate``.

    Raises:
        DataError: it is not there, cannot be downloaded, and ``on_missing=error``.
    """
    archive = ARCHIVES[config.size]
    try:
        folder = obtain(archive, root, say, config.download_timeout_s)
        return scan(config.name, config.name, folder)
    except DataError as error:
        if config.on_missing == "error":
            raise
        say(f"{error}")
        say("USING THE STAND-IN imagenette_like: speed is measured on generated images; "
            "dataset.on_missing=error stops instead")  # fmt: skip
        made = imagenette_like(config, root, say)
        note = f"{config.name} could not be had; generated images stand in for it"
        return made.model_copy(update={"requested": config.name, "note": note})


def obtain(archive: Archive, root: Path, say: Say, timeout_s: float) -> Path:
    """The extracted folder of `archive` below `root`, downloaded and mended as needed.

    Raises:
        DataError: the archive cannot be reached or is not what was published.
    """
    folder, packed = root / archive.folder, root / f"{archive.folder}.tgz"
    if (folder / COMPLETE).exists():
        return folder
    if packed.exists() and not is_sound(packed, archive):
        say(f"{packed} is damaged or incomplete; it is fetched again")
        packed.unlink()
    if not packed.exists():
        download(archive, packed, say, timeout_s)
    if folder.exists():
        say(f"{folder} was not completely extracted; it is extracted again")
        shutil.rmtree(folder)
    extract(packed, archive, folder, say)
    return folder


def is_sound(packed: Path, archive: Archive) -> bool:
    """Whether the file has the published size and MD5 sum."""
    if packed.stat().st_size != archive.nbytes:
        return False
    with packed.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return digest.hexdigest() == archive.md5


def download(archive: Archive, packed: Path, say: Say, timeout_s: float) -> None:
    """Fetch the archive into `packed`, which exists only once it is complete and verified.

    What an interrupted download left is continued where the server allows.
    """
    partial, unreachable = packed.with_suffix(".part"), packed.with_suffix(".unreachable")
    if unreachable.exists() and time.time() - unreachable.stat().st_mtime < RETRY_AFTER_S:
        raise DataError(
            f"{archive.url} could not be reached less than {RETRY_AFTER_S / 60:.0f} minutes ago; "
            f"delete {unreachable} to try at once"
        )
    begin = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(archive.url)
    if 0 < begin < archive.nbytes:
        request.add_header("Range", f"bytes={begin}-")
    say(f"downloading {archive.url} ({archive.nbytes / 1e6:.0f} MB) into {packed.parent}")
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            resumed = answer.status == 206
            # The first byte came in time; the rest may take longer between two chunks.
            with contextlib.suppress(AttributeError):
                answer.fp.raw._sock.settimeout(READ_TIMEOUT_S)
            _receive(answer, partial, begin if resumed else 0, archive, say)
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        unreachable.touch()
        raise DataError(f"{archive.url} cannot be downloaded ({reason})") from error
    unreachable.unlink(missing_ok=True)
    if not is_sound(partial, archive):
        size = partial.stat().st_size
        partial.unlink()
        raise DataError(
            f"{archive.url} sent {size} bytes that are not the published archive "
            f"({archive.nbytes} bytes, MD5 {archive.md5}); try again later"
        )
    partial.rename(packed)


def _receive(answer: object, partial: Path, begin: int, archive: Archive, say: Say) -> None:
    done, told = begin, 0
    with partial.open("ab" if begin else "wb") as file:
        while chunk := answer.read(CHUNK_BYTES):  # type: ignore[attr-defined]  # a response
            file.write(chunk)
            done += len(chunk)
            tenth = 10 * done // archive.nbytes
            if tenth > told:
                told = tenth
                say(f"  {min(done / archive.nbytes, 1):.0%} of {archive.nbytes / 1e6:.0f} MB")


def extract(packed: Path, archive: Archive, folder: Path, say: Say) -> None:
    """Unpack beside `folder` and move it into place only when it is whole.

    Raises:
        DataError: a member would lie outside, or the archive is not readable.
    """
    say(f"extracting {packed.name}")
    beside = folder.with_name(f"{folder.name}.extracting")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with tarfile.open(packed) as tar:
            # The "data" filter refuses members outside the folder, links out of it and devices.
            tar.extractall(beside, filter="data")
    except tarfile.TarError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise DataError(
            f"{packed} cannot be extracted: {error}; delete it and try again"
        ) from error
    inner = beside / archive.folder
    if not (inner / "train").is_dir():
        shutil.rmtree(beside, ignore_errors=True)
        raise DataError(f"{packed} does not hold {archive.folder}/train; delete it and try again")
    (inner / COMPLETE).touch()
    inner.rename(folder)
    beside.rmdir()
