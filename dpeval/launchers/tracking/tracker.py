"""Find out who tracks a sweep's jobs."""

from __future__ import annotations

from dpeval.launchers.schedulers.base import Tracker
from dpeval.launchers.schedulers.registry import scheduler
from dpeval.launchers.tracking.local_process import LocalProcess
from dpeval.launchers.tracking.manifest import Manifest


def tracker(manifest: Manifest) -> Tracker:
    """The scheduler of a submitted sweep, or the process of a local one.

    Raises:
        LaunchError: there is no such scheduler.
        ConfigError: the scheduler's class cannot be imported.
    """
    if manifest.process is not None:
        return LocalProcess(manifest.process)
    return scheduler(manifest.launcher)
