"""Hydra's sweeper over all combinations of values, for dpeval's launchers and any other."""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.plugins.sweeper import Sweeper

from dpeval.config import Config
from dpeval.errors import ConfigError, LaunchError
from dpeval.launchers.base import SweepLauncher, compose_job
from dpeval.launchers.compose import Composer
from dpeval.launchers.folders import check_jobs
from dpeval.launchers.plugin_launcher import PluginLauncher


class CartesianSweeper(BasicSweeper, Sweeper):
    """Sweeps over all combinations of values, each composed and checked before any starts."""

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None = None) -> None:
        # Not through BasicSweeper: Hydra's discovery of plugins executes that module again, and
        # its `super(BasicSweeper, self)` then names another class than the one derived from.
        Sweeper.__init__(self)
        self.overrides = None
        self.batch_index = 0
        self.max_batch_size = max_batch_size
        self.params = params or {}
        self.hydra_context = self.config = self.launcher = None

    def sweep(self, arguments: list[str]) -> Any:
        """Launch every combination.

        Raises:
            ConfigError: a configuration is wrong, or the launcher does not support it.
            LaunchError: a launcher that is not dpeval's cannot submit.
        """
        if isinstance(self.launcher, SweepLauncher):
            if self.max_batch_size is not None:
                raise ConfigError(
                    "hydra.sweeper.max_batch_size would split the sweep, whose runs one manifest "
                    "lists; leave it out (hydra.launcher.array_parallelism limits how many jobs "
                    "run at once)"
                )
            return super().sweep(arguments)
        assert self.config is not None
        assert self.launcher is not None
        name = str(self.config.hydra.runtime.choices["hydra/launcher"])
        self.launcher = PluginLauncher(self.launcher, name)
        try:
            return super().sweep(arguments)
        except RuntimeError as error:
            if "srun" not in str(error):
                raise
            raise LaunchError(
                "srun is not installed here; submit from a login node of the SLURM cluster"
            ) from error

    def validate_batch_is_legal(self, batch: Any) -> None:
        """Check `batch` before it is launched; dpeval's launchers check every job themselves.

        Raises:
            ConfigError: a configuration is wrong, or only dpeval's launchers support it.
        """
        if isinstance(self.launcher, SweepLauncher):
            return
        assert self.hydra_context is not None
        assert self.config is not None
        composer = Composer(self.hydra_context.config_loader, self.config)
        earlier = sum(map(len, (self.overrides or [])[: self.batch_index - 1]))
        jobs = [
            compose_job(composer, list(overrides), earlier + position)
            for position, overrides in enumerate(batch)
        ]
        for job in jobs:
            _check_supported(job.config)
        check_jobs(jobs)
        if isinstance(self.launcher, PluginLauncher):
            self.launcher.jobs = jobs


def _check_supported(config: Config) -> None:
    """Check that a launcher other than dpeval's can execute a run."""
    needs = {
        f"repeat={config.repeat}": config.repeat > 1,
        f"num_nodes={config.num_nodes}": config.num_nodes > 1,
        "baseline=serial": config.baseline == "serial",
        "sweep.order=interleaved": config.sweep.order == "interleaved",
    }
    for setting, is_needed in needs.items():
        if is_needed:
            raise ConfigError(
                f"{setting} needs one of dpeval's launchers: hydra/launcher=local, slurm or oar"
            )
