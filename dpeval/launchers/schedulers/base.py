"""The interface that every scheduler implements."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from dpeval.config import Config, LauncherOptions, SiteConfig
from dpeval.errors import ConfigError, LaunchError
from dpeval.launchers.schedulers.resources import Group, NodeSize, Resources
from dpeval.record import schema
from dpeval.run.job import Node
from dpeval.util.entry import safe_options
from dpeval.util.frozen import Frozen

State = Literal["queued", "running", "ended", "unknown"]
Ending = Literal[
    "completed", "failed", "cancelled", "timeout", "node_fail", "oom_kill", "preempted"
]


class JobState(Frozen):
    """The state of one job according to its scheduler."""

    state: State
    ending: Ending | None = None
    reason: str = ""
    """Why the job waits, or how the scheduler describes its end."""
    nodes: str = ""


UNKNOWN = JobState(state="unknown", reason="unknown to the scheduler")


class Tracker(Protocol):
    """Tracks the jobs of a sweep that has been started."""

    def query(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """See :meth:`Scheduler.query`."""

    def cancel(self, job_ids: Sequence[str]) -> None:
        """See :meth:`Scheduler.cancel`."""

    def find(self, folder: Path) -> list[str]:
        """See :meth:`Scheduler.find`."""


class Scheduler(ABC):
    """Submits runs, tracks their jobs, and tells a job about itself.

    A new scheduler is one module with a subclass of this class and one line in
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
        """Keyword arguments of the executor's ``update_parameters`` for one job.

        Args:
            resources: what the job needs; cores, GPUs and memory per node.
            site: the cluster's settings.
            options: the keys of ``hydra/launcher``.
            job_name: the name under which the scheduler lists the job.

        Raises:
            ConfigError: a value cannot be passed to the scheduler.
        """

    def longest_min(self, site: SiteConfig, options: LauncherOptions) -> int | None:
        """The longest time limit of the partition or queue, min; None: none, or not known.

        Args:
            site: the cluster's settings.
            options: the keys of ``hydra/launcher``.
        """
        return None

    def node_size(self, site: SiteConfig, options: LauncherOptions) -> NodeSize:
        """The largest node of the partition or queue.

        Args:
            site: the cluster's settings.
            options: the keys of ``hydra/launcher``.
        """
        return NodeSize()

    def most_in_array(self) -> int | None:
        """How many jobs one array may have; None: no limit, or not known."""
        return None

    def caution(self, resources: Resources, site: SiteConfig, options: LauncherOptions) -> str:
        """A warning to show before a run is submitted; empty: none.

        Args:
            resources: what its job needs.
            site: the cluster's settings.
            options: the keys of ``hydra/launcher``.
        """
        return ""

    @abstractmethod
    def preview(self, group: Group, folder: Path, options: LauncherOptions) -> str:
        """The submission of `group` in the scheduler's own syntax, for the dry run.

        Args:
            group: jobs with equal requests.
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
            site: the cluster's settings.
            options: the keys of ``hydra/launcher``.

        Raises:
            LaunchError: the scheduler is not installed on this machine.
        """

    def submitting(self, parameters: Mapping[str, Any]) -> AbstractContextManager[None]:
        """A context without variables of a job around this process, which a submission inherits.

        Args:
            parameters: see :meth:`parameters`.
        """
        return contextlib.nullcontext()

    @abstractmethod
    def after(self, parameters: dict[str, Any], job_id: str) -> dict[str, Any]:
        """`parameters` with a dependency on the success of job `job_id`."""

    # Tracking

    @abstractmethod
    def query(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """The state of every job; jobs unknown to the scheduler are missing.

        Raises:
            LaunchError: the scheduler does not answer.
        """

    @abstractmethod
    def cancel(self, job_ids: Sequence[str]) -> None:
        """Cancel these jobs and no others.

        Raises:
            LaunchError: the scheduler refuses.
        """

    def find(self, folder: Path) -> list[str]:
        """The ids of this user's queued and running jobs whose script lies in `folder`.

        None, if the scheduler cannot tell.

        Raises:
            LaunchError: the scheduler does not answer.
        """
        return []

    # Inside a job

    @abstractmethod
    def describe_job(self, environment: Mapping[str, str]) -> schema.Scheduler:
        """The job that this process belongs to, from the variables that the scheduler sets.

        Outside a job its ``job_id`` is empty.
        """

    @abstractmethod
    def node_in_job(self, environment: Mapping[str, str], count: int, folder: Path) -> Node:
        """Which of the run's nodes this process is on.

        Args:
            environment: of this process.
            count: how many nodes the run has.
            folder: the run's folder, which all nodes share.
        """

    @abstractmethod
    def other_jobs(self, job: schema.Scheduler, environment: Mapping[str, str]) -> dict[str, str]:
        """Id and owner of every other job now running on a node of `job`.

        Raises:
            LaunchError: the scheduler does not answer on this machine.
        """

    def expose_gpus(self, environment: MutableMapping[str, str]) -> None:  # noqa: B027
        """Make only the job's GPUs visible to CUDA, if the scheduler does not."""

    def other_nodes(self, config: Config, node: Node | None) -> AbstractContextManager[None]:
        """Run this program on the run's other nodes, if the scheduler does not.

        Raises:
            LaunchError: a node is missing or refuses the connection.
        """
        return contextlib.nullcontext()

    def is_preempted(self, environment: Mapping[str, str]) -> bool:
        """Whether this job is being preempted, as opposed to cancelled."""
        return False

    @abstractmethod
    def requeue(self, environment: Mapping[str, str]) -> int:
        """Requeue this job; return the exit status with which it must end."""


def run_command(command: list[str]) -> str:
    """The standard output of a scheduler's command.

    Raises:
        LaunchError: it is not installed, fails, or does not answer within 60 s.
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
        message = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise LaunchError(f"{command[0]} failed with status {done.returncode}: {message}")
    return done.stdout


def worker_command(folder: Path, python: Sequence[str] = (sys.executable,)) -> str:
    """The shell command that runs one pickled submission of `folder` inside a job.

    `python` are the words that start Python.
    """
    module = "dpeval.launchers.in_job.start_job"
    words = shlex.join([*python, *safe_options()])
    return f"{words} -u -m {module} {shlex.quote(str(folder))}"


def one_line(key: str, value: object) -> str:
    """`value` as text that fits on one line of a submission file.

    Raises:
        ConfigError: it contains a line break, after which the file could continue with a command,
            or another control character.
    """
    text = str(value)
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise ConfigError(
            f"{key}={text!r} contains a control character, which is not allowed in scheduler "
            "options"
        )
    return text


Option = str | bool | list[str] | None
"""A checked option: ``True`` is a flag without a value, ``False`` or None one to leave out."""


def checked_options(key: str, options: Mapping[str, Any]) -> dict[str, Option]:
    """The `options` given in the user's key `key`, checked.

    Raises:
        ConfigError: see :func:`one_line`, or a value is a mapping.
    """
    return {
        one_line(key, name): _checked(f"{key}.{name}", value) for name, value in options.items()
    }


def _checked(key: str, value: object) -> Option:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Mapping):
        raise ConfigError(f"{key} is a mapping; an option takes a value or a list of values")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [one_line(key, item) for item in value]
    return one_line(key, value)


def chosen(environment: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Those of `names` that are set."""
    return {name: environment[name] for name in names if name in environment}


def unique(job_ids: Iterable[str | None]) -> list[str]:
    """`job_ids` without None and without repetitions, in order."""
    return list(dict.fromkeys(job_id for job_id in job_ids if job_id is not None))
