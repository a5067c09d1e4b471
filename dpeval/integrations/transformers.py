"""The meter for the Trainer of Hugging Face's transformers."""

from __future__ import annotations

from typing import Any

from dpeval.errors import ConfigError
from dpeval.integrations.metered import LibraryLoop
from dpeval.meter.meter import Meter

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ConfigError(
        f"dpeval.integrations.transformers needs transformers ({error}); "
        "pip install 'dpeval[transformers]'"
    ) from None


class MeterCallback(TrainerCallback):
    """Measures ``Trainer.train()`` and ends it once enough is measured.

    A step begins with the fetch of its first batch, although the Trainer fetches all batches of a
    step before it tells its callbacks so. Accelerate's loader copies to the device, which is part
    of `data`. Evaluation belongs to no step.
    """

    def __init__(self, samples_per_step: float | None = None, unit: str = "samples") -> None:
        """See :class:`dpeval.Meter`."""
        self._meter = Meter(samples_per_step, unit)
        self._loop = LibraryLoop(self._meter)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See :meth:`transformers.TrainerCallback.on_train_begin`."""
        self._loop.take_loader(kwargs["train_dataloader"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See :meth:`transformers.TrainerCallback.on_step_end`."""
        if control.should_evaluate:
            self._loop.pause()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See :meth:`transformers.TrainerCallback.on_evaluate`."""
        self._loop.resume()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See :meth:`transformers.TrainerCallback.on_epoch_end`."""
        self._loop.end_epoch()
        if self._meter.is_over:
            control.should_training_stop = True
