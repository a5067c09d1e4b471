"""How a sweep is submitted: the keys of ``hydra/launcher``."""

from __future__ import annotations

from dataclasses import dataclass

from dpeval.errors import ConfigError


@dataclass(frozen=True)
class LauncherOptions:
    """How a sweep is submitted, equal for all its runs; the keys of ``hydra/launcher``."""

    array_parallelism: int = 64
    wait: bool = True
    dry_run: bool = False
    time_min: int | None = None
    signal_s: int = 60
    requeue: int = 0
    prepare: str = "parent"
    poll_s: float = 2.0

    def __post_init__(self) -> None:
        for key, low in (("array_parallelism", 1), ("signal_s", 1), ("requeue", 0)):
            if getattr(self, key) < low:
                raise ConfigError(
                    f"hydra.launcher.{key}={getattr(self, key)} is too small; "
                    f"the smallest valid value is {low}"
                )
        if self.time_min is not None and self.time_min < 1:
            raise ConfigError(f"hydra.launcher.time_min={self.time_min} must be 1 minute or more")
        if self.prepare not in ("parent", "job", "none"):
            raise ConfigError(
                f"hydra.launcher.prepare={self.prepare} is not one of parent, job, none"
            )
        if self.poll_s <= 0:
            raise ConfigError(f"hydra.launcher.poll_s={self.poll_s} must be above 0")
