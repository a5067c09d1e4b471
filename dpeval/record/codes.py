"""Every code that a record uses. A code is for programs; the text beside it is for people.

A code that is not listed here is an error of mypy where it is written and of pydantic where it is
made or read. Adding one extends the record's JSON Schema.
"""

from __future__ import annotations

from typing import Literal

Status = Literal["ok", "skipped", "oom", "failed", "interrupted"]
"""How a run ended. ``skipped``: it was not started on purpose."""

StopReason = Literal["precision", "time_limit", "max_steps", "interrupted"]
"""Why the main window ended."""

DiagnosticCode = Literal["straggler", "input_bound", "jitter", "cold_start", "drift"]
"""What the step series shows to be wrong."""

WarningCode = Literal[
    DiagnosticCode,
    "stand_in",  # other data than was asked for
    "unsteady",  # no steady state
    "imprecise",  # a limit ended the run before its interval was as narrow as asked
    "loss",  # the loss is not finite
    "plan",  # a note of the plan: oversubscribed, SMT siblings shared, uneven batch
    "conditions",  # the machine was disturbed
    "shared_node",  # jobs of others ran on the node
]
"""What makes a figure less trustworthy."""

FailureCode = Literal[
    "exception",  # a rank raised
    "oom",  # out of memory
    "signal",  # a rank was killed by a signal
    "exit",  # a rank or a job exited without a result
    "hang",  # no rank took a step any more
    "interrupt",  # the user or the scheduler asked the run to end
    "peer",  # another node of the run failed
    "lost_node",  # another node of the run returned no results
]
"""Why the ranks of a run were ended."""

SkipCode = Literal["devices", "memory", "time_limit"]
"""What a run that was not started lacks."""

JobCode = Literal[
    "refused",  # by the scheduler
    "cancelled",
    "preempted",
    "node_fail",
    "oom_kill",  # for exceeding the memory of its job
    "disk_full",
    "record",  # the record there cannot be read
    "lost",  # the job ended and nobody knows how
]
"""How a scheduler's job ended without a record."""

CauseCode = Literal[
    FailureCode,
    SkipCode,
    JobCode,
    "setup",  # the run could not be prepared
    "bug",  # dpeval itself raised
]
"""Why a run is not ``ok``. ``time_limit`` is also that of a run with too few steps for a mean."""

MemoryAction = Literal["run", "accumulate", "try", "skip", "error"]
"""What becomes of a run, from the forecast of its memory and its budget."""

AblationKind = Literal["normal", "no_sync", "alone"]
"""Kinds of ablation blocks: as measured, without gradient synchronisation, one rank alone."""

AbsenceCode = Literal["steps", "missing"]
"""Why the analysis has no measurement where no record gives a cause."""

SHORT_CAUSES: dict[CauseCode, str] = {
    "devices": "too few devices",
    "time_limit": "too little time",
}
"""Short words for causes whose message is too long for a cell of a figure."""
