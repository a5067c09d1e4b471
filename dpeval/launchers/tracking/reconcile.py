"""Jobs that a scheduler has accepted although its command failed, such as by a time-out."""

from __future__ import annotations

from collections.abc import Collection

from dpeval.errors import LaunchError
from dpeval.launchers.schedulers.base import Scheduler


def cancel_unknown(own: Scheduler, job_name: str, token: str, known: Collection[str]) -> str:
    """Cancel the jobs of a sweep that its manifest does not know; return what was done, in words.

    They cannot be told from one another, and would be measured a second time by a resumed sweep.

    Args:
        own: the sweep's scheduler.
        job_name: the name of the sweep's jobs.
        token: of the sweep; a name without it may be that of other sweeps' jobs.
        known: the ids in the manifest.
    """
    if token not in job_name:
        return ""
    try:
        unknown = [job_id for job_id in own.find(job_name) if job_id not in known]
        own.cancel(unknown)
    except LaunchError as error:
        return f"; there may be jobs called {job_name} all the same ({error})"
    return f"; what it had accepted all the same was cancelled: {' '.join(unknown)}" * bool(unknown)
