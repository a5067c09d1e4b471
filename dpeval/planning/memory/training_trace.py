"""The traces of one training at any batch size: few are taken, the others are scaled from them.

Taking a step on fake tensors costs seconds for each new size, since every operation infers its
result's shape anew. But a step's tensors are either as large as the batch or independent of it, so
two traces show which is which, and every other follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise

import torch
from torch import nn

from dpeval.config import Config
from dpeval.planning.memory.allocator_model import Event
from dpeval.planning.memory.fake_step import FakeStep, take_fake_step

SCALED_UP_TO = 4
"""A trace is scaled from others that are at most this many times as large, or as small."""


class TrainingTrace:
    """What has been found so far about the memory of one training."""

    def __init__(self) -> None:
        self.optimizer: tuple[int, int] | None = None
        """What the optimizer keeps between steps, and what its step needs in addition, in bytes."""
        self._taken: dict[tuple[str, bool, bool], dict[int, FakeStep]] = {}

    def step(
        self,
        config: Config,
        items: int,
        build: Callable[[], nn.Module],
        device: torch.device,
        *,
        held_gradients: bool,
        backward: bool = True,
    ) -> FakeStep:
        """:func:`take_fake_step`, or what it would return.

        Args:
            config: the same at every call, but for what does not change a micro-batch.
            items: size of the micro-batch: images or sequences.
            build: makes the model, on ``meta`` or elsewhere.
            device: the device to imitate.
            held_gradients: gradients already exist before the pass.
            backward: if false, stop between the passes.

        Raises:
            NoForecast: the model needs data.
            ConfigError: the model's output contains no logits.
        """
        taken = self._taken.setdefault((device.type, held_gradients, backward), {})
        found = taken.get(items) or _scaled(taken, items)
        if found is None:
            found = taken[items] = take_fake_step(
                config, items, build, device, held_gradients=held_gradients, backward=backward
            )
        return found

    def add(self, other: TrainingTrace) -> None:
        """Add what another trace of the same training holds."""
        self.optimizer = self.optimizer or other.optimizer
        for kind, taken in other._taken.items():
            self._taken.setdefault(kind, {}).update(taken)


def _scaled(taken: Mapping[int, FakeStep], items: int) -> FakeStep | None:
    """The step with `items`, from the two taken with the closest sizes; None: it must be taken.

    A batch of one is never scaled nor scaled from: models and kernels treat it specially.
    """
    near = sorted(size for size in taken if size > 1)
    if items < 2 or len(near) < 2:
        return None
    if not near[0] / SCALED_UP_TO <= items <= near[-1] * SCALED_UP_TO:
        return None
    low, high = next((pair for pair in pairwise(near) if items < pair[1]), (near[-2], near[-1]))
    return scaled(taken[low], low, taken[high], high, items)


def scaled(
    one: FakeStep, one_items: int, other: FakeStep, other_items: int, items: int
) -> FakeStep | None:
    """The step with `items`, from two with other numbers.

    Args:
        one: a step …
        one_items: … and its size.
        other: another step of the same training …
        other_items: … and its size.
        items: size of the step to return.

    Returns:
        None if the two differ in more than sizes, or if some size is neither the same in both nor
        proportional to the number of items.
    """
    alike = (
        one.parameters == other.parameters
        and one.gradients == other.gradients
        and one.completed == other.completed
        and (one.forward_end, one.first_drop) == (other.forward_end, other.first_drop)
        and [event.key for event in one.events] == [event.key for event in other.events]
    )
    if not alike:
        return None
    events: list[Event] = []
    for first, second in zip(one.events, other.events, strict=True):
        if first == second:
            events.append(first)
            continue
        if first.nbytes is None or second.nbytes is None:
            return None
        nbytes, rest = divmod(first.nbytes * items, one_items)
        if rest or first.nbytes * other_items != second.nbytes * one_items:
            return None
        events.append(Event(first.key, nbytes))
    return replace(one, events=tuple(events))
