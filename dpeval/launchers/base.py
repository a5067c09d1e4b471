"""The base of dpeval's launchers: compose and check every run, then put the runs in order.

Hydra resolves a launcher's parameters once per sweep. Here each job is composed first, so its
devices, memory and time limit come from its own configuration.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.utils import JobReturn, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from dpeval.config import Config, check_script, from_hydra, identity
from dpeval.errors import ConfigError
from dpeval.launchers.compose import Composer
from dpeval.launchers.folders import check_jobs
from dpeval.util.display.plural import counted


@dataclass(frozen=True)
class SweepJob:
    """One run of a sweep, composed and checked."""

    number: int
    overrides: tuple[str, ...]
    composed: DictConfig
    """The configuration including Hydra's own node, as ``run_job`` expects it."""
    config: Config
    folder: Path


class SweepLauncher(Launcher):
    """Composes, checks and orders a sweep's jobs; a subclass runs or submits them."""

    def __init__(self) -> None:
        self.config: DictConfig | None = None
        self.task_function: TaskFunction | None = None
        self.hydra_context: HydraContext | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Store what Hydra passes before :meth:`launch`.

        Args:
            hydra_context: holds the loader of configurations.
            task_function: what Hydra would call for one run.
            config: the sweep's configuration, including Hydra's own node.
        """
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Compose and check every job, then launch them all.

        Raises:
            ConfigError: a job's configuration is wrong; nothing has been started.
        """
        setup_globals()
        assert self.config is not None  # Hydra calls setup() first
        jobs = self._compose(job_overrides, initial_job_idx)
        check_time([job.config for job in jobs])
        check_jobs(jobs)
        self.launch_jobs(jobs, Path(str(self.config.hydra.sweep.dir)))
        return []

    @abstractmethod
    def launch_jobs(self, jobs: list[SweepJob], sweep_dir: Path) -> None:
        """Run or submit `jobs`, in this order.

        A failed run is recorded and raises nothing: :mod:`dpeval.commands.callbacks` reads the
        records when the sweep ends.

        Raises:
            DpevalError: the sweep as a whole failed.
        """

    def _compose(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[SweepJob]:
        assert self.hydra_context is not None
        assert self.config is not None
        composer = Composer(self.hydra_context.config_loader, self.config)
        once = _composed(composer, job_overrides, initial_job_idx)
        if any(job.config.baseline == "serial" for job in once):
            job_overrides = with_baselines(composer, once)
            once = _composed(composer, job_overrides, initial_job_idx)
        if all(job.config.repeat == 1 for job in once):
            return once
        jobs: list[SweepJob] = []
        # A B C A B C, not A A A B B B: a drift of the machine must not look like an effect.
        for repetition in range(max((job.config.repeat for job in once), default=1)):
            for overrides, first in zip(job_overrides, once, strict=True):
                if repetition >= first.config.repeat:
                    continue
                extra = [f"repetition={repetition}"] if first.config.repeat > 1 else []
                jobs.append(
                    compose_job(composer, [*overrides, *extra], initial_job_idx + len(jobs))
                )
        return jobs


def _composed(
    composer: Composer, job_overrides: Sequence[Sequence[str]], first: int
) -> list[SweepJob]:
    return [
        compose_job(composer, list(overrides), first + position)
        for position, overrides in enumerate(job_overrides)
    ]


def with_baselines(composer: Composer, jobs: Sequence[SweepJob]) -> list[Sequence[str]]:
    """The overrides of a sweep's jobs with their serial baselines, as ``baseline=serial`` asks.

    A serial run replaces the run of a strategy on one device and precedes those on more, once for
    all that differ in the strategy or the number of devices alone.

    Raises:
        ConfigError: the configuration of a serial run is wrong.
    """
    made: list[Sequence[str]] = []
    present: set[str] = set()
    for job in jobs:
        if job.config.baseline == "serial":
            serial = _serial(job.overrides, job.config)
            mark = identity(compose_job(composer, serial, job.number).config)
            if mark not in present:
                made.append(serial)
            present.add(mark)
            if job.config.num_devices == 1:
                continue
        made.append(job.overrides)
    return made


def _serial(overrides: Sequence[str], config: Config) -> list[str]:
    """The overrides of the serial run that is the baseline of the run with `overrides`."""
    kept = [
        item
        for item in overrides
        if not item.lstrip("+~").startswith(
            ("num_devices=", "num_nodes=", "strategy=", "strategy.")
        )
    ]
    nodes = ["num_nodes=1"] * (config.num_nodes > 1)
    return [*kept, "num_devices=1", *nodes, "strategy=none"]


def compose_job(composer: Composer, overrides: list[str], number: int) -> SweepJob:
    """Compose and check one run of a sweep.

    Args:
        composer: the sweep's composer.
        overrides: the run's overrides.
        number: the run's position in the sweep, from 0.

    Raises:
        ConfigError: the run's configuration is wrong.
    """
    composed = composer.compose(overrides)
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = number
    plain = composed.copy()
    with open_dict(plain):
        del plain["hydra"]
    try:
        config = from_hydra(plain)
        check_script(config, overrides)
    except ConfigError as error:
        # The message already names a single override.
        which = f"{' '.join(overrides)}: " if len(overrides) > 1 else ""
        raise ConfigError(f"{which}{error}") from error
    folder = Path(str(composed.hydra.sweep.dir)).absolute() / str(composed.hydra.sweep.subdir)
    return SweepJob(number, tuple(overrides), composed, config, folder)


def check_time(configs: list[Config]) -> None:
    """Refuse a sweep that can exceed its time limit, repetitions included, before anything starts.

    Raises:
        ConfigError: the runs' time limits add up to more than ``sweep.time_limit_s``.
    """
    limit_s = min((c.sweep.time_limit_s for c in configs if c.sweep.time_limit_s), default=None)
    total_s = sum(config.measure.longest_s for config in configs)
    if limit_s is not None and total_s > limit_s:
        raise ConfigError(
            f"{counted(len(configs), 'run')} of up to {total_s / len(configs):.0f} s each can take "
            f"{total_s:.0f} s, more than sweep.time_limit_s={limit_s:g}; use fewer repeats or "
            "configurations, or a shorter measure.time_limit_s"
        )


def labels_of(jobs: Sequence[SweepJob]) -> list[str]:
    """A label for each run: the overrides that not all runs share."""
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    return [
        " ".join(word for word in job.overrides if word not in common) or f"run {job.number}"
        for job in jobs
    ]
