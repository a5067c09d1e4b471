"""What dpeval needs of a scheduler: the interface that every scheduler implements."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Literal

from dpeval.config import Config, LauncherOptions, SiteConfig
from dpeval.errors import ConfigError, LaunchError
from dpeval.launchers.schedulers.resources import Group, Resources
from dpeval.record import schema
from dpeval.run.job import Node
from dpeval.util.frozen import Frozen

State = Literal["queued", "running", "ended", "unknown"]
Ending = Literal[
    "completed", "failed", "cancelled", "timeout", "node_fail", "oom_kill", "preempted"
]


class JobState(Frozen):
    """One job as its scheduler sees it."""

    state: State
    ending: Ending | None = None
    reason: str = ""
    """Why it waits, or how the scheduler describes its end."""
    nodes: str = ""


UNKNOWN = JobState(state="unknown", reason="the scheduler no longer knows this job")


class Scheduler(ABC):
    """A scheduler: how runs are submitted, how jobs are tracked, and what a job knows of itself.

    A new scheduler is one module with a subclass of this and one line in
    :mod:`dpeval.launchers.schedulers.registry`.
    """

    name: ClassVar[str]
    options: ClassVar[type[LauncherOptions]] = LauncherOptions
    """The keys of its ``hydra/launcher``."""

    # Submission

    @abstractmethod
    def parameters(
        self, resources: Resources, site: SiteConfig, options: LauncherOptions, job_name: str
    ) -> dict[str, Any]:
        """Keyword arguments of the executor's ``update_parameters`` for one run.

        Args:
            resources: what the run needs; cores, GPUs and memory per node.
            site: what the cluster wants to be told.
            options: the keys of ``hydra/launcher``.
            job_name: the name under which the scheduler lists the job.

        Raises:
            ConfigError: a value cannot be passed on to the scheduler.
        """

    @abstractmethod
    def preview(self, group: Group, folder: Path, options: LauncherOptions) -> str:
        """The submission of `group` as the scheduler would read it, for the dry run.

        Args:
            group: runs with equal requests.
            folder: where the submission file and the logs would go.
            options: the keys of ``hydra/launcher``.
        """

    @abstractmethod
    def executor(
        self, folder: Path, parameters: dict[str, Any], site: SiteConfig, options: LauncherOptions
    ) -> Any:
        """The submitit executor.

        Args:
            folder: where submission files, pickles and logs go.
            parameters: see :meth:`parameters`.
            site: what the cluster wants to be told.
            options: the keys of ``hydra/launcher``.

        Raises:
            LaunchError: the scheduler is not installed here.
        """

    @abstractmethod
    def after(self, parameters: dict[str, Any], job_id: str) -> dict[str, Any]:
        """`parameters` with the condition that job `job_id` has succeeded."""

    # Tracking

    @abstractmethod
    def query(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """The state of every job; jobs that the scheduler has forgotten are absent.

        Raises:
            LaunchError: the scheduler does not answer.
        """

    @abstractmethod
    def cancel(self, job_ids: Sequence[str]) -> None:
        """End these jobs and no others.

        Raises:
            LaunchError: the scheduler refuses.
        """

    # Inside a job

    @abstractmethod
    def describe_job(self, environment: Mapping[str, str]) -> schema.Scheduler:
        """The job that this process belongs to, from the variables that its scheduler sets."""

    @abstractmethod
    def node_in_job(self, environment: Mapping[str, str], count: int, folder: Path) -> Node:
        """This process's place among the nodes of its run.

        Args:
            environment: of this process.
            count: how many nodes the run has.
            folder: the run's folder, which all nodes see.
        """

    @abstractmethod
    def other_jobs(self, job: schema.Scheduler, environment: Mapping[str, str]) -> dict[str, str]:
        """Id and owner of every other job that runs on a node of `job` now.

        Raises:
            LaunchError: the scheduler does not answer from here.
        """

    def expose_gpus(self, environment: MutableMapping[str, str]) -> None:  # noqa: B027
        """Make the job's GPUs, and only them, visible to CUDA, where the scheduler does not."""

    def further_nodes(self, config: Config, node: Node | None) -> AbstractContextManager[None]:
        """Start this program on the run's other nodes, where the scheduler does not.

        Raises:
            LaunchError: a node is absent or refuses.
        """
        return contextlib.nullcontext()

    def is_preempted(self, environment: Mapping[str, str]) -> bool:
        """Whether this job has to give way to another, as opposed to having been cancelled."""
        return False

    @abstractmethod
    def requeue(self, environment: Mapping[str, str]) -> int:
        """Send this job back to the queue; return the exit status that it must end with."""


def ask(command: list[str]) -> str:
    """Standard output of a scheduler's command.

    Raises:
        LaunchError: it is absent, fails or hangs.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, errors="replace"
        )
    except FileNotFoundError as error:
        raise LaunchError(
            f"{command[0]} is not installed here; run this on a machine that submits jobs"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"{command[0]} did not answer within 60 s; try again later") from error
    if done.returncode:
        told = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise LaunchError(f"{command[0]} failed with status {done.returncode}: {told}")
    return done.stdout


def worker_command(folder: Path, python: str = sys.executable) -> str:
    """The shell command that runs one pickled submission of `folder` inside a job."""
    return f"{shlex.quote(python)} -u -m submitit.core._submit {shlex.quote(str(folder))}"


def one_line(key: str, value: object) -> str:
    """`value` as text that stays on its line of a submission file.

    Raises:
        ConfigError: it has a line break or another control character, after which a submission
            file could continue with a command.
    """
    text = str(value)
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise ConfigError(
            f"{key}={text!r} contains a control character, which is not allowed in scheduler "
            "options"
        )
    return text


def plain_options(key: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` of the user's key `key`, each checked; ``True`` stays a flag without a value.

    Raises:
        ConfigError: see :func:`one_line`.
    """
    return {
        one_line(key, name): value if value is True else one_line(key, value)
        for name, value in options.items()
    }


def chosen(environment: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Those of `names` that are set."""
    return {name: environment[name] for name in names if name in environment}


def unique(job_ids: Iterable[str | None]) -> list[str]:
    """The ids that are there, each once, in order."""
    return list(dict.fromkeys(job_id for job_id in job_ids if job_id is not None))
