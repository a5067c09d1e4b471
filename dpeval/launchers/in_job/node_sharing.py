"""Other jobs on this job's nodes, which share memory bandwidth, clocks and network with it."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from dpeval.errors import LaunchError
from dpeval.launchers.schedulers.base import Scheduler
from dpeval.record import schema
from dpeval.record.schema import Warning
from dpeval.util.display.plural import counted

DETAIL = "OTHER_JOBS_ON_NODES"
"""Key of the record's scheduler details that counts them."""


class NodeWatch:
    """Finds other jobs when it is entered and left, but none that ran only in between."""

    def __init__(
        self, own: Scheduler, job: schema.Scheduler, environment: Mapping[str, str]
    ) -> None:
        """Query nothing yet.

        Args:
            own: the scheduler of this job.
            job: this job.
            environment: of this process.
        """
        self._scheduler, self._job, self._environment = own, job, environment
        self._seen: dict[str, str] = {}
        self._failure = ""

    def __enter__(self) -> Self:
        self._update()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._update()

    def _update(self) -> None:
        """Add the jobs that run on these nodes now."""
        try:
            self._seen |= self._scheduler.other_jobs(self._job, self._environment)
        except LaunchError as error:
            self._failure = str(error)

    def report(self) -> tuple[dict[str, str], list[Warning]]:
        """Details for the record, and a warning if there were other jobs."""
        if self._seen:
            words = _words(self._seen)
            text = f"{words} on its node; they share memory bandwidth and clocks"
            return {DETAIL: words}, [Warning(code="shared_node", text=text)]
        return {DETAIL: f"not known: {self._failure}" if self._failure else "none"}, []


def _words(seen: Mapping[str, str]) -> str:
    """How many jobs, and how many are the user's own; others' names are left out of records."""
    own = sum(owner == getpass.getuser() for owner in seen.values())
    others = len(seen) - own
    parts = [f"{own} of the same user"] * bool(own) + [f"{others} of other users"] * bool(others)
    return f"{counted(len(seen), 'other job')} ({', '.join(parts)})"
