"""Hydra's sweeper over every combination of values, for dpeval's launchers and any other."""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.plugins.sweeper import Sweeper

from dpeval.config import Config
from dpeval.errors import ConfigError, LaunchError
from dpeval.launchers.base import SweepLauncher, compose_job
from dpeval.launchers.compose import Composer


class CartesianSweeper(BasicSweeper, Sweeper):
    """Every combination of the values given; each is composed and checked once before any runs."""

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
        """Hydra's call: launch every combination.

        Raises:
            ConfigError: a configuration is wrong, or the launcher cannot carry it out.
            LaunchError: a launcher that is not dpeval's lost a job or cannot submit.
        """
        if isinstance(self.launcher, SweepLauncher):
            return super().sweep(arguments)
        # Late: it takes a tenth of a second, and few sweeps need it.
        from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError

        try:
            return super().sweep(arguments)
        except (FailedJobError, FailedSubmissionError, UncompletedJobError) as error:
            # The first line names the job and its result file, the second says what is the case.
            told = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
            raise LaunchError(f"a job failed, and others may still run: {told}") from error
        except RuntimeError as error:
            if "srun" not in str(error):
                raise
            raise LaunchError(
                "srun is not installed here: submit from a login node of the SLURM cluster"
            ) from error

    def validate_batch_is_legal(self, batch: Any) -> None:
        """Hydra's call before it launches `batch`; dpeval's launchers check every job themselves.

        Raises:
            ConfigError: a configuration is wrong, or needs one of dpeval's launchers.
        """
        if isinstance(self.launcher, SweepLauncher):
            return
        assert self.hydra_context is not None
        assert self.config is not None
        composer = Composer(self.hydra_context.config_loader, self.config)
        for number, overrides in enumerate(batch):
            _check_alone(compose_job(composer, list(overrides), number).config)


def _check_alone(config: Config) -> None:
    """Check that a launcher which knows nothing of dpeval can carry a run out."""
    needs = {
        f"repeat={config.repeat}": config.repeat > 1,
        f"num_nodes={config.num_nodes}": config.num_nodes > 1,
        "baseline=serial": config.baseline == "serial",
    }
    for setting, is_needed in needs.items():
        if is_needed:
            raise ConfigError(
                f"{setting} needs a launcher of dpeval: hydra/launcher=local, slurm or oar"
            )
