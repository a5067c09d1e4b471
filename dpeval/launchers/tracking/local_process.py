"""Sweeps executed by one process of this machine: their manifest, and how that process ended."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import psutil

from dpeval.config import Config, identity
from dpeval.errors import LaunchError
from dpeval.launchers.schedulers.base import JobState
from dpeval.launchers.tracking import job_spec
from dpeval.launchers.tracking import manifest as manifests
from dpeval.launchers.tracking.job_spec import JobSpec
from dpeval.launchers.tracking.manifest import LOCAL, Manifest, ManifestRun, Process

_SAME_START_S = 2.0
"""Tolerance for a process's start time, s: the clock may be set in between."""


def this_process() -> Process:
    """The calling process."""
    own = psutil.Process()
    return Process(host=socket.gethostname(), pid=own.pid, started_s=own.create_time())


def lives(process: Process, *, elsewhere: bool) -> bool:
    """Whether `process` still exists; `elsewhere` is the answer for one of another machine."""
    if process.host != socket.gethostname():
        return elsewhere
    try:
        found = psutil.Process(process.pid)
        is_same = abs(found.create_time() - process.started_s) < _SAME_START_S
        return bool(is_same and found.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


class LocalProcess:
    """Answers for the process of a local sweep what a scheduler answers for its jobs."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def query(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """The state of the process, for each of `job_ids`."""
        return dict.fromkeys(job_ids, self._state())

    def cancel(self, job_ids: Sequence[str]) -> None:
        """Stop the process cleanly, as Ctrl-C does.

        Raises:
            LaunchError: it runs on another machine.
        """
        if not job_ids:
            return
        process = self._process
        if process.host != socket.gethostname():
            raise LaunchError(f"the sweep runs on {process.host}; cancel it there")
        if self._state().state == "running":
            os.kill(process.pid, signal.SIGTERM)

    def find(self, folder: Path) -> list[str]:
        """None: a local sweep has no jobs."""
        return []

    def _state(self) -> JobState:
        process = self._process
        if lives(process, elsewhere=True):
            reason = "" if process.host == socket.gethostname() else "on another machine"
            return JobState(state="running", nodes=process.host, reason=reason)
        reason = f"process {process.job_id} was killed before it wrote a record"
        return JobState(state="ended", reason=reason, nodes=process.host)


class LocalSweep:
    """Keeps the manifest of a sweep that this process executes."""

    def __init__(
        self,
        configs: Mapping[Path, Config],
        overrides: Mapping[Path, Sequence[str]],
        sweep_dir: Path,
        labels: Mapping[Path, str],
        left_out: Mapping[Path, str],
    ) -> None:
        """Write the manifest.

        Args:
            configs: the runs by folder, in order.
            overrides: of each run.
            sweep_dir: the sweep's folder.
            labels: how messages call each run.
            left_out: why some are not measured.

        Raises:
            OSError: `sweep_dir` cannot be written.
        """
        self._configs, self._overrides, self._sweep_dir = configs, overrides, sweep_dir
        self._process = this_process()
        self.manifest = Manifest(
            launcher=LOCAL,
            token=secrets.token_hex(3),
            study=next(iter(configs.values())).study,
            created_at=datetime.now().astimezone().isoformat(timespec="seconds"),
            submitit_folder="",
            process=self._process,
            runs=[
                ManifestRun(
                    number=number,
                    folder=os.path.relpath(folder, sweep_dir),
                    identity=identity(config),
                    label=labels[folder],
                    overrides=list(overrides[folder]),
                    job_id=self._process.job_id,
                    left_out=left_out.get(folder),
                )
                for number, (folder, config) in enumerate(configs.items())
            ],
        )
        manifests.write(self.manifest, sweep_dir)

    def start(self, folders: Iterable[Path]) -> None:
        """Note that the runs in `folders` start: if they leave no record, they are lost."""
        for folder in folders:
            config, overrides = self._configs[folder], tuple(self._overrides[folder])
            with contextlib.suppress(OSError):  # on a full disk, the run still goes on
                job_spec.write(JobSpec.of(LOCAL, config, overrides, requeue=0), folder)

    def not_started(self, folders: Iterable[Path]) -> None:
        """Note that the runs in `folders` were not started after all, as the sweep was stopped."""
        for folder in folders:
            with contextlib.suppress(OSError):
                (folder / job_spec.SPEC_NAME).unlink()

    def note_elsewhere(self, places: Mapping[Path, Path | None]) -> None:
        """Note where records are that could not be written to their folders, disk permitting."""
        folders = {os.path.relpath(folder, self._sweep_dir): at for folder, at in places.items()}
        runs = [
            run.model_copy(update={"record_at": str(folders[run.folder])})
            if folders.get(run.folder) is not None
            else run
            for run in self.manifest.runs
        ]
        if runs != self.manifest.runs:
            self.manifest = self.manifest.model_copy(update={"runs": runs})
            with contextlib.suppress(OSError):
                manifests.write(self.manifest, self._sweep_dir)
