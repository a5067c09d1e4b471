"""submitit's executor for OAR, with the errors of submitit-oar 1.1.2 corrected."""

from __future__ import annotations

import os
import re
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit.core import core, utils
from submitit_oar import oar

from dpeval.errors import LaunchError
from dpeval.launchers.schedulers.base import run_command, worker_command
from dpeval.launchers.schedulers.oar.states import parse_oarstat
from dpeval.launchers.schedulers.oar.submission import oar_script, oarsub_command, waves


class OarExecutor(oar.OarExecutor):  # type: ignore[misc]  # untyped base
    """Submits a script file instead of an inline command, and every option as one argument.

    An inline command loses the line breaks and comments of ``setup`` and breaks options that
    contain spaces; see :func:`oarsub_command`. Ids within an array are sorted as numbers
    (submitit-oar sorts them as text).
    """

    exported: tuple[str, ...] = ()
    """Names of the variables to export to the job."""
    python: Sequence[str] = (sys.executable,)
    """The words that start Python in the job."""
    no_arrays: bool = False
    """Submit no arrays: OAR resubmits only the first element of an array."""
    max_concurrent: int = 1
    """How many runs may run at the same time.

    OAR cannot limit an array, so runs beyond this number wait for as many before them to end.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.sent: list[core.Job[Any]] = []
        """The jobs that OAR has accepted, in the order of the submissions, also after an error."""
        self._answered: list[str] = []

    @property
    def _submitit_command_str(self) -> str:
        return worker_command(self.folder, self.python)

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        environment = {name: os.environ[name] for name in self.exported if name in os.environ}
        return oar_script(
            command,
            self.folder,
            Path.cwd(),
            self.parameters.get("setup", []),
            environment,
            stderr_to_stdout=bool(self.parameters.get("stderr_to_stdout")),
        )

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        count = self.parameters.get("map_count")
        return oarsub_command(self.parameters, submission_file_path, count)

    def _get_job_id_from_submission_command(self, string: str | bytes) -> str:
        text = string if isinstance(string, str) else string.decode(errors="replace")
        self._answered = re.findall(r"OAR_JOB_ID=(\d+)", text)
        return str(oar.OarExecutor._get_job_id_from_submission_command(text))

    def _internal_process_submissions(
        self, delayed_submissions: list[utils.DelayedSubmission]
    ) -> list[core.Job[Any]]:
        first = len(self.sent)
        given = self.parameters["additional_parameters"]
        try:
            for wave in waves(delayed_submissions, self.max_concurrent):
                begin = len(self.sent)
                self._submit_wave(wave)
                # OAR's dependency needs an end, not success: Error counts too.
                self.parameters["additional_parameters"] = {
                    **given, "a": [job.job_id for job in self.sent[begin:]]
                }  # fmt: skip
        finally:
            self.parameters["additional_parameters"] = given
        return self.sent[first:]

    def _submit_wave(self, wave: Sequence[utils.DelayedSubmission]) -> None:
        if self.no_arrays or len(wave) == 1 or self._waits_for_one():
            for delayed in wave:
                self.sent += core.PicklingExecutor._internal_process_submissions(self, [delayed])
            return
        pickles = [self._dump(delayed) for delayed in wave]
        self.parameters["map_count"] = len(pickles)
        try:
            first = self._submit_command(self._submitit_command_str)
        finally:
            del self.parameters["map_count"]
        for job_id, pickle in zip(self._array_ids(first.job_id, len(wave)), pickles, strict=True):
            job: core.Job[Any] = oar.OarJob(self.folder, job_id, [0])
            self.sent.append(job)
            job.paths.move_temporary_file(pickle, "submitted_pickle")

    def _waits_for_one(self) -> bool:
        """Whether what is submitted waits for a single job.

        OAR 2.5.9 forgets the only dependency of an array (``add_micheline_simple_array_job``); one
        of several dependencies, or of a job by itself, it keeps.
        """
        before = self.parameters["additional_parameters"].get("a")
        return before is not None and (not isinstance(before, list) or len(before) == 1)

    def _array_ids(self, array_id: str, count: int) -> list[str]:
        """The ids of an array's jobs, which oarsub prints; where it does not, oarstat knows them.

        Raises:
            LaunchError: neither told them.
        """
        ids = self._answered
        if len(ids) != count:
            ids = list(parse_oarstat(run_command(["oarstat", "--array", array_id, "-J"])))
        if len(ids) != count:
            raise LaunchError(
                f"oarsub submitted array {array_id} of {count} jobs, and oarstat lists {len(ids)}; "
                f"delete it with oardel --array {array_id}"
            )
        return sorted(ids, key=int)

    def _dump(self, delayed: utils.DelayedSubmission) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        path: Path = self.folder / f"{uuid.uuid4().hex}.pkl"
        delayed.set_timeout(self.parameters.get("timeout_min", 5), self.max_num_timeout)
        delayed.dump(path)
        return path
