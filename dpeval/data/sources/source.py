"""A source: prepared data, where it is stored, and the lock held while it is made."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dpeval.config import DatasetConfig
from dpeval.data.sources.progress import Report
from dpeval.errors import DataError
from dpeval.util.frozen import Frozen

LOCK_WAIT_S = 3600.0
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")


class Source(Frozen):
    """Prepared data, as it is sent to every rank: image files and their labels, or tokens.

    A source that is not a folder of images has no files and names a `loader`.
    """

    requested: str = ""
    """Name of the requested dataset; "": ``dataset.name``."""
    used: str = ""
    """Name of the dataset in use, if it is a different one."""
    root: str
    """Folder that paths of files are relative to."""
    note: str = ""
    """Anything that a reader of the figures must know about the data."""
    num_classes: int
    train_files: list[str] = []
    train_labels: list[int] = []
    """The class of each file, from 0."""
    val_files: list[str] = []
    val_labels: list[int] = []
    left_out: dict[str, int] = {}
    """Counts of entries among the images that are not images (``.txt``: 3)."""
    tokens: str = ""
    """Token file, relative to `root`; "": the samples are images."""
    token_type: str = ""
    """NumPy dtype of the tokens."""
    sequences: int = 0
    """Number of sequences in the token file."""
    cache: str | None = None
    """The decoded images, if the loader needs them (:mod:`dpeval.data.sources.pixel_cache`)."""
    loader: str = ""
    """Import path of the loader that this source requires, called as ``loader(shard)``; "": use
    ``dataset.loader``."""

    @property
    def train_samples(self) -> int:
        """Number of images or sequences to train on."""
        return self.sequences or len(self.train_files)


NO_SOURCE = Source(root="", num_classes=1)
"""The source of a training that supplies its own data."""


def store() -> Path:
    """dpeval's data folder: ``$DPEVAL_DATA`` or ``~/.cache/dpeval``."""
    return Path(os.environ.get("DPEVAL_DATA") or "~/.cache/dpeval").expanduser().absolute()


def data_root(config: DatasetConfig) -> Path:
    """The folder for the data of `config`: ``dataset.root``, or :func:`store`.

    Raises:
        DataError: ``dataset.root`` is a file, or holds a variable that the shell left alone.
    """
    if not config.root:
        return store()
    root = Path(config.root).expanduser().absolute()
    variable = re.search(r"\$\{?(\w+)\}?", config.root)
    if variable and not root.exists():
        raise DataError(
            f"dataset.root={config.root} contains {variable[0]} as text, since single quotes keep "
            "the shell from replacing it; use double quotes, or write "
            f"'{config.root.replace(variable[0], f'${{oc.env:{variable[1]}}}')}'"
        )
    if root.is_file():
        advice = "; unpack it first" if root.suffix in _ARCHIVES else ""
        raise DataError(f"dataset.root={config.root} is a file{advice}; give a folder")
    return root


@contextmanager
def making(path: Path, report: Report) -> Iterator[None]:
    """Hold the lock for making `path`; report if another process holds it.

    Check whether `path` exists before taking the lock, so that finished data can be read from a
    read-only folder, and again while holding it, because another process may have made it
    meanwhile.

    Raises:
        DataError: another process has held the lock for over an hour.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(f"waiting for another process to finish {path}")
        try:
            lock.acquire(timeout=LOCK_WAIT_S)
        except Timeout as error:
            raise DataError(
                f"{path} has been locked by another process for over {LOCK_WAIT_S / 60:.0f} "
                "minutes; stop that process, or choose another folder with DPEVAL_DATA"
            ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turn an :class:`OSError` into a :class:`DataError` that names the file.

    Raises:
        DataError: instead of the OSError, with advice where there is some.
    """
    try:
        yield
    except OSError as error:
        advice = {
            errno.ENOSPC: "; free space there or choose another folder with DPEVAL_DATA",
            errno.EDQUOT: "; free space there or choose another folder with DPEVAL_DATA",
            errno.EACCES: "; choose a writable folder with DPEVAL_DATA",
            errno.EPERM: "; choose a writable folder with DPEVAL_DATA",
            errno.EROFS: "; choose a writable folder with DPEVAL_DATA",
        }.get(error.errno or 0, "")
        named = f"{what}: {error.filename}" if error.filename else what
        raise DataError(f"{named}: {error.strerror or error}{advice}") from error
