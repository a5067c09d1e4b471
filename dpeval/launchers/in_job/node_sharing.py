"""Other jobs on the nodes of this one: they share its memory bandwidth, clocks and network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dpeval.errors import LaunchError
from dpeval.launchers.schedulers.base import Scheduler
from dpeval.record import schema
from dpeval.record.schema import Warning

DETAIL = "OTHER_JOBS_ON_NODES"
"""Key of the record's scheduler details that names them."""
_MOST_TOLD = 8


class NodeWatch:
    """Asks when the run begins and when it ends; a job that came and went between is not seen."""

    def __init__(
        self, own: Scheduler, job: schema.Scheduler, environment: Mapping[str, str]
    ) -> None:
        self._own, self._job, self._environment = own, job, environment
        self._seen: dict[str, str] = {}
        self._why_not = ""
        self.look()

    def look(self) -> None:
        """Note who is there now."""
        try:
            self._seen |= self._own.other_jobs(self._job, self._environment)
        except LaunchError as error:
            self._why_not = str(error)

    def told(self) -> tuple[dict[str, str], list[Warning]]:
        """Details for the record, and a warning where somebody was there."""
        if self._seen:
            words = _words(self._seen)
            text = f"other jobs were on its node: {words}; they share memory bandwidth and clocks"
            return {DETAIL: words}, [Warning(code="shared_node", text=text)]
        return {DETAIL: f"not known: {self._why_not}" if self._why_not else "none"}, []


def _words(seen: Mapping[str, str]) -> str:
    shown: Sequence[str] = [f"{job_id} of {owner}" for job_id, owner in sorted(seen.items())]
    more = len(shown) - _MOST_TOLD
    return ", ".join(shown[:_MOST_TOLD]) + (f" and {more} more" if more > 0 else "")
