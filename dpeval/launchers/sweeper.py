"""Hydra's sweeper over all combinations of values, for dpeval's launchers and any other."""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from dpeval.config import Config
from dpeval.config.suggestions import suggest_key
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

    def setup(
        self, *, hydra_context: HydraContext, config: DictConfig, task_function: TaskFunction
    ) -> None:
        """Check the launcher's keys and instantiate it.

        Args:
            hydra_context: holds the loader of configurations.
            config: the sweep's configuration, including Hydra's own node.
            task_function: what a launcher calls for one run.

        Raises:
            ConfigError: the launcher has no such key.
        """
        name = str(config.hydra.runtime.choices["hydra/launcher"])
        check_launcher_keys(name, config.hydra.launcher)
        self.is_dry_run = bool(config.hydra.launcher.get("dry_run", False))
        plain = config
        if not is_own(config.hydra.launcher):
            keys = OmegaConf.to_container(config.hydra.launcher)
            assert isinstance(keys, dict)
            keys.pop("dry_run", None)  # other packages' launchers do not accept it
            plain = config.copy()
            with open_dict(plain):
                plain.hydra.launcher = OmegaConf.create(keys)
        super().setup(hydra_context=hydra_context, config=plain, task_function=task_function)

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
        self.launcher = PluginLauncher(self.launcher, name, is_dry_run=self.is_dry_run)
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


def is_own(launcher: DictConfig) -> bool:
    """Whether ``hydra.launcher`` configures one of dpeval's launchers."""
    return str(launcher.get("_target_")).startswith("hydra_plugins.dpeval.")


def accept_dry_run() -> None:
    """Let launchers of other packages be given ``dry_run``, which this sweeper takes from them.

    Not as a key with a default: with another sweeper, the launchers would receive it.
    """
    for entry in ConfigStore.instance().repo["hydra"]["launcher"].values():
        if not is_own(entry.node):
            OmegaConf.set_struct(entry.node, False)


def check_launcher_keys(name: str, launcher: DictConfig) -> None:
    """Refuse keys that the launcher does not know: added with ``+``, or open for ``dry_run``.

    Args:
        name: of an option of ``hydra/launcher``; one from a YAML file is not checked.
        launcher: what Hydra composed for it.

    Raises:
        ConfigError: the launcher has no such key.
    """
    entry = ConfigStore.instance().repo["hydra"]["launcher"].get(f"{name}.yaml")
    if entry is None:
        return
    known = {"dry_run", *map(str, entry.node)} - {"_target_"}
    for key in map(str, launcher):
        if key not in known and key != "_target_":
            path = f"hydra.launcher.{key}"
            raise ConfigError(f"there is no key '{path}'{suggest_key(path, list(known), ())}")


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
