"""How many ablation blocks run, how long they are, and in which order.

Importing this module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from dpeval.record.codes import AblationKind

KINDS: tuple[AblationKind, ...] = ("normal", "no_sync", "alone")
MIN_ROUNDS, MAX_ROUNDS = 2, 6
"""Even, so that every order of the three kinds runs as often as its reverse does."""
MIN_STEPS_PER_BLOCK, MAX_STEPS_PER_BLOCK = 2, 50


@dataclass(frozen=True)
class Schedule:
    """The number of rounds (of one block of each kind), and of steps per block."""

    rounds: int
    steps: int


def schedule(window_s: float, step_s: float, share: float) -> Schedule:
    """Fit the blocks into `share` of the main window's time.

    At least two rounds of two steps. More rounds rather than longer blocks, because intervals are
    computed from rounds, and because disturbances of a machine outlast short blocks.

    Args:
        window_s: total time of the main window's steps, s.
        step_s: typical time of a step, s.
        share: fraction of `window_s` that the blocks may take.
    """
    affordable = share * window_s / max(step_s, 1e-9) / len(KINDS)
    rounds = int(min(MAX_ROUNDS, max(MIN_ROUNDS, affordable / MIN_STEPS_PER_BLOCK))) // 2 * 2
    steps = int(min(MAX_STEPS_PER_BLOCK, max(MIN_STEPS_PER_BLOCK, affordable / rounds)))
    return Schedule(rounds, steps)


def order(rounds: int) -> list[AblationKind]:
    """The kinds of all blocks of an even number of rounds.

    Each odd round starts with a different kind, and the round after it runs in reverse order. The
    blocks of every kind are thus centred on the same moment, and a linear drift cancels out of
    their differences (a counterbalanced design: Montgomery, Design and Analysis of Experiments, ch.
    4). In six rounds, every kind is first, second and third twice.
    """
    kinds: list[AblationKind] = []
    for pair in range(rounds // 2):
        first = pair % len(KINDS)
        turned = [*KINDS[first:], *KINDS[:first]]
        kinds += [*turned, *reversed(turned)]
    return kinds
