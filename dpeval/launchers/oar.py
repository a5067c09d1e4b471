"""The launcher for OAR."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpeval.config import Config, SiteConfig
from dpeval.errors import LaunchError
from dpeval.launchers.resources import Group, Resources, oar_parameters
from dpeval.launchers.submission import oarsub_command, waves
from dpeval.launchers.submit import SchedulerLauncher


class OarLauncher(SchedulerLauncher):
    """Sends runs through submitit-oar's executor, mended (:mod:`dpeval.launchers.oar_executor`)."""

    kind = "oar"

    def translate(self, name: str) -> Callable[[Resources, SiteConfig], dict[str, Any]]:
        return lambda resources, site: oar_parameters(resources, site, self.options, name)

    def text(self, group: Group, folder: Path) -> str:
        script = folder / "<submission>.sh"
        lines, parameters = [], group.parameters
        for wave in waves(group.members, self.options.array_parallelism):
            singly = bool(self.options.requeue) and len(wave) > 1
            line = shlex.join(oarsub_command(parameters, script, None if singly else len(wave)))
            lines.append(line)
            if singly:
                lines.append(f"({len(wave)} times: OAR resubmits the elements of no array)")
            parameters = self.after(group.parameters, "<each job above>")
        return "\n".join(lines)

    def executor(self, folder: Path, parameters: dict[str, Any], config: Config) -> Any:
        from dpeval.launchers.oar_executor import OarExecutor

        if OarExecutor.affinity() < 0:
            raise LaunchError(
                "oarsub is not installed here: submit from a frontend of the OAR cluster, or "
                "look at the submission with hydra.launcher.dry_run=true"
            )
        executor = OarExecutor(folder)
        executor.carried = tuple(config.site.environment)
        executor.singly = bool(self.options.requeue)
        executor.at_once = self.options.array_parallelism
        executor.update_parameters(**parameters)
        return executor

    def after(self, parameters: dict[str, Any], job_id: str) -> dict[str, Any]:
        additional = {**parameters["additional_parameters"], "a": job_id}
        return {**parameters, "additional_parameters": additional}
