"""The launcher for SLURM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpeval.config import Config, SiteConfig
from dpeval.launchers.resources import Group, Resources, slurm_parameters
from dpeval.launchers.submission import sbatch_file
from dpeval.launchers.submit import SchedulerLauncher


class SlurmLauncher(SchedulerLauncher):
    """Sends runs through submitit's executor for SLURM."""

    kind = "slurm"

    def translate(self, name: str) -> Callable[[Resources, SiteConfig], dict[str, Any]]:
        return lambda resources, site: slurm_parameters(resources, site, self.options, name)

    def text(self, group: Group, folder: Path) -> str:
        return sbatch_file(group, folder)

    def executor(self, folder: Path, parameters: dict[str, Any], config: Config) -> Any:
        from submitit import SlurmExecutor

        from dpeval.errors import LaunchError

        if SlurmExecutor.affinity() < 0:
            raise LaunchError(
                "srun is not installed here: submit from a login node of the SLURM cluster, or "
                "look at the submission with hydra.launcher.dry_run=true"
            )
        executor = SlurmExecutor(folder)
        executor.update_parameters(**parameters)
        return executor

    def after(self, parameters: dict[str, Any], job_id: str) -> dict[str, Any]:
        return {**parameters, "dependency": f"afterok:{job_id}"}
