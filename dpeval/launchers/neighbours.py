"""Whose jobs were on the nodes of this one: they share its memory bandwidth, clocks and network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dpeval.errors import LaunchError
from dpeval.launchers.scheduler import ask, parse_oarstat
from dpeval.record.schema import Scheduler, Warning

DETAIL = "OTHER_JOBS_ON_NODES"
"""Where the record's scheduler details tell of them."""
_MOST_TOLD = 8


def neighbours(job: Scheduler, raw_id: str) -> dict[str, str]:
    """Id and owner of every other job that runs on a node of `job` now.

    Args:
        job: this job; its nodes are in the scheduler's own notation.
        raw_id: its id without array notation.

    Raises:
        LaunchError: the scheduler cannot be asked from here, or does not tell.
    """
    if job.kind == "slurm":
        listed = ask(["squeue", "-h", "-r", "-t", "R", "-w", ",".join(job.nodes), "-o", "%A|%u"])
        pairs = (line.split("|", 1) for line in listed.split() if "|" in line)
        return {job_id: owner for job_id, owner in pairs if job_id != raw_id}
    jobs = parse_oarstat(ask(["oarstat", "-f", "-J", "--sql", "state = 'Running'"]))
    return {
        job_id: str(other.get("owner") or other.get("job_user") or "?")
        for job_id, other in jobs.items()
        if job_id != raw_id and set(other.get("assigned_network_address") or []) & set(job.nodes)
    }


class Watch:
    """Asks when the run begins and when it ends; a job that came and went between is not seen."""

    def __init__(self, job: Scheduler, environment: Mapping[str, str]) -> None:
        self._job = job
        is_slurm = job.kind == "slurm"
        self._raw_id = environment.get("SLURM_JOB_ID", "") if is_slurm else job.job_id
        self._seen: dict[str, str] = {}
        self._why_not = ""
        self.look()

    def look(self) -> None:
        """Note who is there now."""
        try:
            self._seen |= neighbours(self._job, self._raw_id)
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
