"""Every code that a record uses. Codes are for programs; the text beside them is for people.

mypy rejects unlisted codes in source code, and pydantic rejects them in records. Adding one
extends the record's JSON Schema.
"""

from __future__ import annotations

from typing import Literal

Status = Literal["ok", "skipped", "oom", "failed", "interrupted"]
"""How a run ended. ``skipped``: deliberately not started."""

StopReason = Literal[
    "precision", "ratios", "best", "time_limit", "max_steps", "interrupted", "ended"
]
"""Why the main window ended. ``ratios``: the speedups in its sitting were precise enough; ``best``:
the fastest run of its sitting was settled, or another was known to be faster; ``ended``: the
script's loop ended on its own."""

Steadiness = Literal["steady", "drifting", "unknown"]
"""Whether the step time stayed the same over the main window. ``unknown``: the steps are too few or
too noisy to tell."""

DiagnosticCode = Literal["straggler", "input_bound", "jitter", "cold_start", "drift"]
"""Problems that the step series shows."""

WarningCode = Literal[
    DiagnosticCode,
    "stand_in",  # other data than requested
    "unsteady",  # no steady state
    "imprecise",  # a limit ended the run before it reached the requested precision
    "few_steps",  # too few independent steps for a reliable interval
    "slow_wander",  # the step time wanders too slowly for the interval of one window
    "loss",  # the loss is not finite
    "plan",  # a note of the plan: oversubscribed, SMT siblings shared, uneven batch
    "conditions",  # the machine was disturbed
    "shared_node",  # other jobs ran on the node
    "suspended",  # the whole run was stopped for a while
    "script",  # the script failed after the measurement, or did not end
]
"""What makes a figure less trustworthy."""

FailureCode = Literal[
    "exception",  # a rank raised
    "oom",  # out of memory
    "signal",  # a rank was killed by a signal
    "exit",  # a rank or a job exited without a result
    "hang",  # the ranks stopped taking steps
    "interrupt",  # by the user or the scheduler
    "peer",  # another node of the run failed
    "lost_node",  # another node of the run returned no results
    "script",  # the script did not use the meter as required, or exited with an error
]
"""Why the ranks of a run were stopped."""

SkipCode = Literal["devices", "memory", "time_limit"]
"""What a run lacked that was not started."""

JobCode = Literal[
    "refused",  # by the scheduler
    "cancelled",
    "preempted",
    "node_fail",
    "oom_kill",  # for exceeding the memory of its job
    "disk_full",
    "record",  # the record there cannot be read
    "lost",  # the job ended, and why is unknown
]
"""How a scheduler's job ended without a record."""

CauseCode = Literal[
    FailureCode,
    SkipCode,
    JobCode,
    "setup",  # the run could not be prepared
    "bug",  # dpeval itself raised
]
"""Why a run is not ``ok``. ``time_limit`` also covers runs with too few steps for a mean."""

MemoryAction = Literal["run", "accumulate", "try", "skip", "error"]
"""What to do with a run, given the forecast of its memory and its budget."""

AblationKind = Literal["normal", "no_sync", "alone"]
"""Kinds of ablation blocks: normal steps, without gradient synchronisation, one rank alone."""

AbsenceCode = Literal["steps", "missing"]
"""Why the analysis has no measurement where no record gives a cause."""

SHORT_CAUSES: dict[CauseCode, str] = {
    "devices": "too few devices",
    "time_limit": "too little time",
}
"""Short text for causes whose message is too long for a cell of a figure."""

SHORT_STOPS: dict[StopReason, str] = {
    "precision": "settled",
    "ratios": "settled",
    "best": "settled",
    "time_limit": "time limit",
    "max_steps": "step limit",
    "interrupted": "interrupted",
    "ended": "its loop ended",
}
"""Short text for why measuring ended. ``settled``: what was asked for is known."""

SHORT_WARNINGS: dict[WarningCode, str] = {
    "unsteady": "no steady state",
    "stand_in": "stand-in data",
}
"""Short text for warnings that tables and figures mark."""
