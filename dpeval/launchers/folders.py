"""The folders of sweeps and runs: claimed before anything starts, so that no two runs share one.

A folder named after the time is created by exactly one sweep; if another sweep of the same second
has it, the next free name is taken. A folder that the user names is locked while this process
lives, and is refused if it already holds a record: an earlier measurement is never overwritten."""

from __future__ import annotations

import fcntl
import itertools
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from dpeval import record
from dpeval.errors import ConfigError, MachineError
from dpeval.launchers.tracking import manifest as manifests
from dpeval.launchers.tracking.job_spec import SPEC_NAME
from dpeval.util.files import remove_leftovers
from dpeval.util.paths import shown

_LONGEST_NAME_BYTES = 255
"""The limit of Linux file systems for a file or folder name."""
_PROBE = b"x" * 65536
"""About the size of a record, so that a full disk is noticed before a measurement, not after."""


class RunInFolder(Protocol):
    """A run of a sweep."""

    @property
    def folder(self) -> Path: ...

    @property
    def overrides(self) -> tuple[str, ...]: ...


def claim_run(composed: DictConfig) -> int | None:
    """Claim ``hydra.run.dir`` and make it absolute.

    Returns:
        A descriptor that locks the folder until it is closed.

    Raises:
        ConfigError: the folder holds a record, or another run writes to it.
        MachineError: it cannot be written.
    """
    return _claim_key(composed, "run")


def claim_sweep(composed: DictConfig) -> int | None:
    """Claim ``hydra.sweep.dir`` and make it absolute; see :func:`claim_run`."""
    before = Path(str(composed.hydra.sweep.dir))
    lock = _claim_key(composed, "sweep")
    claimed = Path(str(composed.hydra.sweep.dir))
    if claimed.name != before.name:
        # Every job is composed again, from the overrides.
        with read_write(composed), open_dict(composed):
            quoted = str(claimed).replace("'", r"\'")
            composed.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")
    return lock


def _claim_key(composed: DictConfig, kind: str) -> int | None:
    node = composed.hydra[kind]
    raw = OmegaConf.to_container(node, resolve=False)
    assert isinstance(raw, dict)
    key = f"hydra.{kind}.dir"
    wanted = Path(str(node.dir)).absolute()
    check_names([wanted], key)
    try:
        claimed, lock = _claimed(wanted, key, is_stamped="${now:" in str(raw["dir"]))
        _check_writable(claimed)
    except OSError as error:
        raise MachineError(
            f"cannot write to {error.filename or wanted}: {error.strerror}; name another folder "
            f"with {key}=FOLDER"
        ) from error
    with read_write(composed), open_dict(composed):
        node.dir = str(claimed)
    return lock


def _claimed(wanted: Path, key: str, *, is_stamped: bool) -> tuple[Path, int | None]:
    """The folder, and the lock on it if there may be other claims.

    Raises:
        ConfigError: see :func:`claim_run`.
        OSError: it cannot be made.
    """
    wanted.parent.mkdir(parents=True, exist_ok=True)
    if is_stamped:
        for number in itertools.count(1):
            path = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return path, None
    wanted.mkdir(exist_ok=True)
    lock = _lock(wanted, key)
    for name in (manifests.FILE_NAME, record.FILE_NAME):
        if (wanted / name).exists():
            held = "a sweep" if name == manifests.FILE_NAME else "the record of a run"
            raise ConfigError(
                f"{key}={shown(wanted)} holds {held} already, which is never overwritten; name "
                "another folder (sweep.resume=FOLDER leaves out what an earlier sweep has measured)"
            )
    remove_leftovers(wanted)
    return wanted, lock


def _lock(folder: Path, key: str) -> int | None:
    """Lock `folder` until the returned descriptor is closed; None where folders have no locks.

    Raises:
        ConfigError: another process holds the lock.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConfigError(
            f"another run is writing to {key}={shown(folder)}; name another folder"
        ) from error
    except OSError:  # such as NFS, which locks only files
        os.close(descriptor)
        return None
    return descriptor


def _check_writable(folder: Path) -> None:
    """Check that a record can be written to `folder`.

    Raises:
        OSError: it cannot.
    """
    # Without a name: nothing is left of it, even if this process is killed now.
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(_PROBE)
        file.flush()
        os.fsync(file.fileno())


def check_jobs(jobs: Sequence[RunInFolder]) -> None:
    """Check that every run is listed once and has a folder of its own that holds no run yet.

    Raises:
        ConfigError: a run is listed twice, two runs share a folder, one is in use, or its name is
            too long.
    """
    for overrides, count in Counter(tuple(job.overrides) for job in jobs).items():
        if count > 1:
            raise ConfigError(
                f"the sweep lists {' '.join(overrides) or 'one run'} {count} times; list each "
                f"value once (repeat={count} measures every run {count} times)"
            )
    check_names([job.folder for job in jobs], "hydra.sweep.subdir")
    owners: dict[Path, RunInFolder] = {}
    for job in jobs:
        other = owners.setdefault(job.folder, job)
        if other is not job:
            raise ConfigError(
                f"hydra.sweep.subdir gives two runs the folder {shown(job.folder)}: "
                f"{' '.join(other.overrides)} and {' '.join(job.overrides)}; leave it out, or add "
                "${hydra.job.num} to it"
            )
    for job in jobs:
        if any((job.folder / name).exists() for name in (record.FILE_NAME, SPEC_NAME)):
            raise ConfigError(
                f"{shown(job.folder)} already holds a run, which is never overwritten; name "
                "another hydra.sweep.dir (sweep.resume=FOLDER leaves out what an earlier sweep has "
                "measured)"
            )


def check_names(folders: Iterable[Path], key: str) -> None:
    """Check that no part of a path is longer than a file system allows.

    Raises:
        ConfigError: one is.
    """
    for folder in folders:
        for part in folder.parts:
            length = len(os.fsencode(part))
            if length > _LONGEST_NAME_BYTES:
                raise ConfigError(
                    f"{key} makes a folder name of {length} bytes, '{part[:40]}…', and at most "
                    f"{_LONGEST_NAME_BYTES} are possible; use a shorter one, such as "
                    "${hydra.job.num}"
                )
