"""What a script uses of dpeval: :class:`Meter`."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar, cast

from dpeval.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from dpeval.meter.loop import MeteredLoop
    from dpeval.record.phases import Phase

Batch = TypeVar("Batch")
RECORD_FOLDER = "DPEVAL_RECORD"
"""Environment variable: the folder for the record of a script that dpeval did not start."""
_NOTHING = nullcontext()
"""Entered wherever there is nothing to measure; making one costs as much as entering it."""


class Meter:
    """Measures the training loop of a script if dpeval runs the script; otherwise does nothing.

    >>> import dpeval
    >>> meter = dpeval.Meter(samples_per_step=32)
    >>> for batch in meter.steps(["one batch", "another"]):
    ...     print(f"train on {batch}")
    train on one batch
    train on another

    A step starts with the fetch of a batch and ends with the next fetch after an optimizer update,
    so it contains as many batches as the script accumulates gradients over. Phases need no marks:
    the fetch is `data`, the first module with parameters starts `forward`, autograd is `backward`,
    DistributedDataParallel's communication is timed by hooks, and torch's optimizers are
    `optimizer`. Everything else counts as `other`; :meth:`phase` gives it a name.

    Create it before the model, so that it can time a communication hook that the script registers.
    """

    def __init__(self, samples_per_step: float | None = None, unit: str = "img") -> None:
        """Find out whether there is anything to measure.

        Args:
            samples_per_step: samples that all ranks together process in one step, the global
                batch; for a language model, say, its tokens. None: ``batch`` of the run.
            unit: what a sample is, as figures and tables call it: img, tokens, …

        Raises:
            ConfigError: this process already has a meter, or an argument is not valid.
        """
        if samples_per_step is not None and not samples_per_step > 0:
            raise ConfigError(f"Meter(samples_per_step={samples_per_step}): must be above 0")
        if not unit or len(unit) > 20 or not unit.isprintable():
            raise ConfigError(f"Meter(unit={unit!r}): give a short name, such as img or tokens")
        self._loop = _open_loop(samples_per_step, unit)

    @property
    def is_active(self) -> bool:
        """Whether anything is measured."""
        return self._loop is not None

    @property
    def is_over(self) -> bool:
        """Whether enough is measured, so that a script which trains on does so for itself."""
        return self._loop is not None and self._loop.is_over

    def steps(self, batches: Iterable[Batch] | None = None) -> Iterator[Batch]:
        """The batches to train on, until enough is measured.

        Call it again for the next epoch; the time in between belongs to no step. Once enough is
        measured, it ends, and every later call ends at once.

        Args:
            batches: the loader; None: yields numbers from 0, for a loop that fetches batches
                itself.

        Raises:
            ConfigError: another loop over it is still running.
        """
        chosen = batches if batches is not None else cast(Iterable[Batch], itertools.count())
        return iter(chosen) if self._loop is None else self._loop.steps(chosen)

    def watch(self, *watched: nn.Module | Optimizer) -> None:
        """Time the passes of these models from the first step on.

        Without this call, the first module with parameters that the loop calls is watched, usually
        the only one; with it, ``torch.compile`` compiles once less. If a step trains several
        models, name all of them.

        Args:
            watched: the models, wrapped, as the loop calls them. Optimizers may be among them,
                although the updates of every torch optimizer are timed anyway.
        """
        if self._loop is not None:
            self._loop.watch(*watched)

    def phase(self, name: Phase) -> AbstractContextManager[Any]:
        """A context whose time counts as the phase `name`, such as ``h2d``, whatever happens in it.

        Raises:
            ConfigError: there is no such phase.
        """
        return _NOTHING if self._loop is None else self._loop.phase(name)

    def pause(self) -> AbstractContextManager[Any]:
        """A context that belongs to no step, for an evaluation within the loop."""
        return _NOTHING if self._loop is None else self._loop.pause()

    def updated(self) -> None:
        """Report an update of the model that was made without a torch optimizer."""
        if self._loop is not None:
            self._loop.updated()


def _open_loop(samples_per_step: float | None, unit: str) -> MeteredLoop | None:
    """The loop that measures in this process; None if nothing does."""
    # A rank that dpeval started has imported its main function.
    if "dpeval.worker.script_rank" in sys.modules:
        from dpeval.meter.loop import MeteredLoop
        from dpeval.worker import script_rank

        rank = script_rank.current()
        if rank is not None:
            return MeteredLoop(rank, samples_per_step, unit)
    if os.environ.get(RECORD_FOLDER):
        from dpeval.meter.loop import MeteredLoop
        from dpeval.meter.standalone import open_rank

        return MeteredLoop(open_rank(os.environ[RECORD_FOLDER]), samples_per_step, unit)
    return None
