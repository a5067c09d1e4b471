"""The states of SLURM's jobs and limits of its partitions, parsed from squeue, sacct, sinfo."""

from __future__ import annotations

import re
from collections.abc import Mapping

from dpeval.launchers.schedulers.base import UNKNOWN, Ending, JobState, State
from dpeval.launchers.schedulers.resources import NodeSize


def latest(
    job_id: str, recent: Mapping[str, JobState], accounted: Mapping[str, JobState] | None
) -> JobState | None:
    """The controller says whether a job is alive, the accounting how it ended.

    Only the accounting knows a job's steps, and hence whether it was killed for memory. A job that
    has ended only according to the controller counts as still ending.

    Args:
        job_id: the job.
        recent: states from squeue.
        accounted: states from sacct; None if there is no accounting.

    Returns:
        The job's state; None if neither knows the job.
    """
    now = recent.get(job_id)
    past = accounted.get(job_id) if accounted is not None else None
    if now is None or accounted is None:
        return now or past
    if now.state != "ended" or (past is not None and past.state == "ended"):
        return past if now.state == "ended" else now
    return JobState(state="running", reason="ending", nodes=now.nodes)


_SLURM_ENDINGS: dict[str, Ending] = {
    "COMPLETED": "completed",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "NODE_FAIL": "node_fail",
    "BOOT_FAIL": "node_fail",
    "LAUNCH_FAILED": "node_fail",
    "RECONFIG_FAIL": "node_fail",
    "REVOKED": "cancelled",  # another cluster of the federation runs it
    "OUT_OF_MEMORY": "oom_kill",
    "PREEMPTED": "preempted",
}
_NEVER_STARTS = "DependencyNeverSatisfied"
"""The reason of a pending job whose dependency failed; SLURM keeps it in the queue forever."""
_SLURM_RUNNING = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED")


def slurm_state(word: str, reason: str = "", nodes: str = "") -> JobState:
    """Translate a state of SLURM.

    Args:
        word: such as ``CANCELLED by 1001``.
        reason: why the job waits; empty or ``None`` without a reason.
        nodes: where it runs.
    """
    name = word.split()[0] if word.split() else ""
    given = reason if reason not in ("", "None") else ""
    nodes = "" if nodes == "None assigned" else nodes
    if name in _SLURM_ENDINGS:
        return JobState(
            state="ended", ending=_SLURM_ENDINGS[name], reason=given or word, nodes=nodes
        )
    if given == _NEVER_STARTS:
        words = f"{_NEVER_STARTS}: the job that it waits for failed"
        return JobState(state="ended", ending="failed", reason=words, nodes=nodes)
    state: State = "running" if name in _SLURM_RUNNING else "queued"
    return JobState(state=state, reason=given or word, nodes=nodes)


def parse_squeue(text: str) -> dict[str, JobState]:
    """Lines ``id|state|reason|nodes`` of ``squeue -r``."""
    found = {}
    for line in text.splitlines():
        parts = line.split("|")
        if len(parts) == 4:
            found[parts[0]] = slurm_state(parts[1], parts[2], parts[3])
    return found


def parse_sacct(text: str) -> dict[str, JobState]:
    """Lines ``id|state|exit code|nodes`` of ``sacct -P``, including steps.

    If a step was killed for memory under ``srun``, its job is only FAILED; the step has the cause.
    """
    found: dict[str, JobState] = {}
    steps: list[tuple[str, str]] = []
    for line in text.splitlines():
        parts = line.split("|")
        if len(parts) != 4:
            continue
        job_id, word, exit_code, nodes = parts
        if "." in job_id:
            steps.append((job_id.partition(".")[0], word))
            continue
        state = slurm_state(word, "", nodes)
        if state.ending == "failed":
            state = state.model_copy(update={"reason": f"{word} with exit code {exit_code}"})
        for one in _expand(job_id):
            found[one] = state
    for job_id, word in steps:
        state = found.get(job_id, UNKNOWN)
        if word.startswith("OUT_OF_ME") and state.ending in ("failed", "cancelled"):
            found[job_id] = state.model_copy(update={"ending": "oom_kill", "reason": word})
    return found


def _expand(job_id: str) -> list[str]:
    """The single ids in ``7_[2-4,9%2]``, as sacct lists the queued tasks of an array."""
    found = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job_id)
    if found is None:
        return [job_id]
    ids = []
    for part in found[2].split(","):
        first, _, last = part.partition("-")
        ids += [f"{found[1]}_{index}" for index in range(int(first), int(last or first) + 1)]
    return ids


def parse_time_limits(text: str, partition: str | None) -> int | None:
    """The longest time limit of a partition, min; None if it has none or is not listed.

    Args:
        text: lines ``partition|limit`` of ``sinfo``, the default partition with an asterisk; a
            limit is ``days-hours:minutes:seconds``, shorter, or a word such as ``infinite``.
        partition: its name; None: the default partition. Of several, ``a,b``, the shortest limit
            holds.
    """
    limits: list[int] = []
    for line in text.splitlines():
        name, _, limit = line.strip().partition("|")
        is_asked = _is_asked(name, partition)
        found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
        if is_asked and found is not None:
            days, hours, minutes, _ = (int(part or 0) for part in found.groups())
            limits.append((days * 24 + hours) * 60 + minutes)
    return min(limits, default=None)


def parse_node_sizes(text: str, partition: str | None) -> NodeSize:
    """The largest node of a partition.

    Args:
        text: lines ``partition|cores|generic resources`` of ``sinfo``, see
            :func:`parse_time_limits`.
        partition: its name; None: the default partition.
    """
    cores, gpus = 0, 0
    for line in text.splitlines():
        name, _, rest = line.strip().partition("|")
        count, _, generic = rest.partition("|")
        if _is_asked(name, partition):
            cores = max(cores, int(count) if count.isdigit() else 0)
            gpus = max(gpus, sum(map(int, re.findall(r"\bgpu(?::[^:,()]+)?:(\d+)", generic))))
    return NodeSize(cores or None, gpus or None)


def _is_asked(name: str, partition: str | None) -> bool:
    """Whether ``sinfo``'s `name` is one of `partition`: None: the default, with an asterisk."""
    if partition is None:
        return name.endswith("*")
    return name.rstrip("*") in partition.split(",")
