"""Orders that a rank receives between two steps, from whatever source."""

from __future__ import annotations

from typing import cast

from dpeval.instruments.reference_work import ReferenceWork
from dpeval.record.codes import AblationKind, StopReason

SAVE, SETTLE, RESTORE = "save:", "settle:", "restore:"
"""Around blocks: copy the trained state, make the next step independent of other ranks, restore
it."""
RELEASE = "release:"
"""Return memory that is not in use: no turn is due for long."""


def go_on_to(steps: int, *, work: bool) -> str:
    """The order to continue until `steps` steps have been taken in total.

    Args:
        steps: the same on all ranks; the next order is due then.
        work: whether the reference work is done first.
    """
    return f"{'work' if work else 'go'}:{steps}"


def stop(reason: StopReason) -> str:
    """The order to end the loop."""
    return f"stop:{reason}"


def block(kind: AblationKind, steps: int, round_: int) -> str:
    """The order to take a block of ablation steps, which do not change the trained state.

    Args:
        kind: the kind of its steps.
        steps: number of steps.
        round_: the round to which it belongs.
    """
    return f"block:{kind}:{steps}:{round_}"


def read_block(order: str) -> tuple[AblationKind, int, int] | None:
    """The kind, the number of steps and the round of a block; None for any other order."""
    action, *values = order.split(":")
    if action != "block":
        return None
    kind, steps, round_ = values
    return cast(AblationKind, kind), int(steps), int(round_)


class StepOrders:
    """Follows orders between steps; subclasses receive them."""

    def __init__(self, reference_work: ReferenceWork | None, until: int) -> None:
        """Start without an order.

        Args:
            reference_work: done when an order asks for it; None on CUDA.
            until: number of steps before the first order is due.
        """
        self._reference_work, self._until = reference_work, until
        self.stopped_by: StopReason | None = None

    def _obey(self, order: str, steps: int) -> bool:
        """Whether to take another step after `steps` steps."""
        action, _, value = order.partition(":")
        if action == "stop":
            self.stopped_by = cast(StopReason, value)
            return False
        if action == "work" and self._reference_work is not None:
            self._reference_work.do(steps)
        self._until = int(value)
        return True
