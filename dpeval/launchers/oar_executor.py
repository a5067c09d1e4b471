"""submitit's executor for OAR with what submitit-oar 1.1.2 gets wrong put right."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

from submitit.core import core, utils
from submitit_oar import oar

from dpeval.launchers.submission import oar_script, oarsub_command, worker_command


class OarExecutor(oar.OarExecutor):  # type: ignore[misc]  # untyped base
    """Submits a script file instead of an inline command, and every option as one argument.

    An inline command loses line breaks and comments of the set-up and every option with a
    space; see :func:`dpeval.launchers.submission.oarsub_command`. Jobs of an array are told
    apart by their ids as numbers (submitit-oar sorts them as text).
    """

    carried: tuple[str, ...] = ()
    """Names of the variables carried into the job."""
    singly: bool = False
    """Submit no arrays: of an array OAR resubmits the first element alone."""

    @property
    def _submitit_command_str(self) -> str:
        return worker_command(self.folder)

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        environment = {name: os.environ[name] for name in self.carried if name in os.environ}
        return oar_script(
            command, self.folder, Path.cwd(), self.parameters.get("setup", []), environment
        )

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        count = self.parameters.get("map_count")
        return oarsub_command(self.parameters, submission_file_path, count)

    def _internal_process_submissions(
        self, delayed_submissions: list[utils.DelayedSubmission]
    ) -> list[core.Job[Any]]:
        if self.singly or len(delayed_submissions) == 1:
            return core.PicklingExecutor._internal_process_submissions(self, delayed_submissions)
        pickles = [self._dump(delayed) for delayed in delayed_submissions]
        self.parameters["map_count"] = len(pickles)
        try:
            first = self._submit_command(self._submitit_command_str)
        finally:
            del self.parameters["map_count"]
        ids = sorted(self._get_job_id_list_from_array_id(first.job_id), key=int)
        jobs: list[core.Job[Any]] = [oar.OarJob(self.folder, job_id, [0]) for job_id in ids]
        for job, pickle in zip(jobs, pickles, strict=True):
            job.paths.move_temporary_file(pickle, "submitted_pickle")
        return jobs

    def _dump(self, delayed: utils.DelayedSubmission) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        path: Path = self.folder / f"{uuid.uuid4().hex}.pkl"
        delayed.set_timeout(self.parameters.get("timeout_min", 5), self.max_num_timeout)
        delayed.dump(path)
        return path
