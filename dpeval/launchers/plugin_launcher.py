"""Complete a sweep of hydra-submitit-launcher even if a job ends without a result.

The plugin raises at the first such job: other jobs would still run, and nothing would be analysed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from dpeval import record
from dpeval.errors import LaunchError
from dpeval.launchers.base import SweepJob
from dpeval.launchers.dry_run import describe_plugin
from dpeval.launchers.schedulers.slurm import without_job_variables
from dpeval.launchers.tracking.job_spec import JobSpec, unmeasured
from dpeval.record.schema import Cause
from dpeval.util.files import write_new

_LOG_CHARACTERS = 2_000


class PluginLauncher(Launcher):
    """Launches through another launcher; records every job that ended without a record."""

    def __init__(self, inner: Launcher, name: str, *, is_dry_run: bool) -> None:
        """Wrap a launcher that is set up.

        Args:
            inner: a launcher that is not dpeval's.
            name: its name in ``hydra/launcher``.
            is_dry_run: list the runs without launching any.
        """
        self._inner, self._name, self._is_dry_run = inner, name, is_dry_run
        self.jobs: list[SweepJob] = []
        """The jobs of the next launch."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Set up the wrapped launcher.

        Args:
            hydra_context: holds the loader of configurations.
            task_function: what the launcher calls for one run.
            config: the sweep's configuration, including Hydra's own node.
        """
        self._inner.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Launch :attr:`jobs` and return when all have ended.

        Raises:
            LaunchError: submission failed, or a job that wrote its record failed afterwards.
        """
        if self._is_dry_run:
            print(describe_plugin(self._name, [" ".join(words) for words in job_overrides]))
            return []
        # Late: it takes a tenth of a second, and few sweeps need it.
        from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError

        with _submitted() as submitted, self._submitting():
            try:
                return self._inner.launch(job_overrides, initial_job_idx)
            except FailedSubmissionError as error:
                raise LaunchError(f"cannot submit: {_first_lines(error)}") from error
            except (FailedJobError, UncompletedJobError) as error:
                if len(submitted) < len(self.jobs):  # submitit reports a failed sbatch so, too
                    raise LaunchError(f"cannot submit: {_first_lines(error)}") from error
                missing = 0
                for job, run in zip(submitted, self.jobs, strict=True):
                    job.wait()
                    missing += self._write_missing_record(job, run)
                if not missing:
                    raise LaunchError(f"a job failed: {_first_lines(error)}") from error
        return []

    def _submitting(self) -> AbstractContextManager[None]:
        if not self._name.startswith("submitit"):
            return contextlib.nullcontext()
        return without_job_variables(getattr(self._inner, "params", {}))

    def _write_missing_record(self, job: Any, run: SweepJob) -> bool:
        """Record a run whose job ended without a record; return whether there was none."""
        path = run.folder / record.FILE_NAME
        if path.exists():
            return False
        cause = Cause(
            kind="exit",
            message=f"job {job.job_id} ended without a record (state {job.state})",
            log=(job.stderr() or job.stdout() or "").strip()[-_LOG_CHARACTERS:],
        )
        spec = JobSpec.of(self._name, run.config, run.overrides, requeue=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_new(path, unmeasured(spec, "failed", cause, None).model_dump_json() + "\n")
        return True


@contextlib.contextmanager
def _submitted() -> Iterator[list[Any]]:
    """The submitit jobs that are submitted in this context; the plugin keeps them to itself."""
    from submitit import AutoExecutor

    jobs: list[Any] = []
    map_array = AutoExecutor.map_array

    def recording(executor: AutoExecutor, *arguments: Any) -> list[Any]:
        made = map_array(executor, *arguments)
        jobs.extend(made)
        return made

    setattr(AutoExecutor, "map_array", recording)  # noqa: B010  # mypy refuses the assignment
    try:
        yield jobs
    finally:
        delattr(AutoExecutor, "map_array")  # it is inherited


def _first_lines(error: Exception) -> str:
    """The first two lines of submitit's message: the job or the command, and the state."""
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
