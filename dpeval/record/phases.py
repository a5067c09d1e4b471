"""The phases of a step: their names in a record and their labels."""

from __future__ import annotations

from typing import Literal, get_args

Phase = Literal[
    "data", "h2d", "forward", "backward", "comm_exposed", "grad_copy", "optimizer", "other"
]

PHASES: tuple[str, ...] = get_args(Phase)
"""The phases in order; their times add up to the step."""
MARKED_PHASES: tuple[str, ...] = tuple(phase for phase in PHASES if phase != "other")
"""The phases that a rank marks; `other` is the remainder of the step."""
COMPUTE_PHASES: tuple[str, ...] = tuple(
    phase for phase in PHASES if phase not in ("data", "comm_exposed")
)
"""The phases in which a rank works; in the rest of a step it waits for data or for others."""
SYNC_PHASES: tuple[str, ...] = ("comm_exposed", "grad_copy")
"""The phases that are part of `backward` unless the strategy times its all-reduces. Records of
earlier releases lack `grad_copy`: their `comm_exposed` includes it."""
PHASE_WORDS: dict[str, str] = {
    "data": "data wait",
    "h2d": "copy to device",
    "forward": "forward",
    "backward": "backward",
    "comm_exposed": "exposed communication",
    "grad_copy": "gradient copies",
    "optimizer": "optimizer",
    "other": "other",
}
