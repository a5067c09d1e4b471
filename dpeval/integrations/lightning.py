"""The meter for the Trainer of Lightning."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from dpeval.errors import ConfigError
from dpeval.integrations.metered import LibraryLoop
from dpeval.meter.meter import Meter


def _callback_class() -> Any:
    """``Callback`` of that of the two packages of Lightning which the script has imported."""
    names = ("lightning.pytorch", "pytorch_lightning")
    imported = [name for name in names if name in sys.modules]
    for name in imported or names:
        try:
            return importlib.import_module(name).Callback
        except ModuleNotFoundError as error:
            missing = error
    raise ConfigError(
        f"dpeval.integrations.lightning needs lightning ({missing}); "
        "pip install 'dpeval[lightning]'"
    )


class MeterCallback(_callback_class()):  # type: ignore[misc]
    """Measures ``Trainer.fit()`` and ends it once enough is measured.

    A step begins with the fetch of its first batch. Validation belongs to no step.
    """

    def __init__(self, samples_per_step: float | None = None, unit: str = "samples") -> None:
        """See :class:`dpeval.Meter`."""
        self._meter = Meter(samples_per_step, unit)
        self._loop = LibraryLoop(self._meter)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._loop.take_fetcher(trainer.fit_loop._data_fetcher)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._loop.pause()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._loop.resume()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._loop.end_epoch()
        if self._meter.is_over:
            trainer.should_stop = True
