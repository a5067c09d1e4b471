"""What a scheduler knows of jobs: one question for all of them, parsed by pure functions."""

from __future__ import annotations

import getpass
import json
import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from dpeval.errors import LaunchError
from dpeval.util.frozen import Frozen

State = Literal["queued", "running", "ended", "unknown"]
Ending = Literal[
    "completed", "failed", "cancelled", "timeout", "node_fail", "oom_kill", "preempted"
]


class JobState(Frozen):
    """One job as its scheduler sees it."""

    state: State
    ending: Ending | None = None
    reason: str = ""
    """Why it waits, or in which words the scheduler says how it ended."""
    nodes: str = ""


UNKNOWN = JobState(state="unknown", reason="the scheduler does not know this job any more")


class Scheduler(Protocol):
    """The part of a scheduler that is needed after submission."""

    kind: str

    def query(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """The state of every job; jobs that the scheduler has forgotten are absent.

        Raises:
            LaunchError: the scheduler does not answer.
        """

    def cancel(self, job_ids: Sequence[str]) -> None:
        """End these jobs and no others.

        Raises:
            LaunchError: the scheduler refuses.
        """


def scheduler(kind: str) -> Scheduler:
    """The scheduler by its name.

    Raises:
        LaunchError: there is none of this name.
    """
    known: dict[str, Scheduler] = {"slurm": Slurm(), "oar": Oar()}
    if kind not in known:
        raise LaunchError(f"a sweep of launcher '{kind}' has no jobs to ask a scheduler about")
    return known[kind]


def ask(command: list[str]) -> str:
    """Standard output of a scheduler's command.

    Raises:
        LaunchError: it is absent, fails or hangs.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, errors="replace"
        )
    except FileNotFoundError as error:
        raise LaunchError(
            f"{command[0]} is not installed here; run this on a machine that submits jobs"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"{command[0]} did not answer within 60 s; try again later") from error
    if done.returncode:
        told = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise LaunchError(f"{command[0]} failed with status {done.returncode}: {told}")
    return done.stdout


class Slurm:
    """SLURM through squeue (what waits and runs) and sacct (what has ended)."""

    kind = "slurm"

    def query(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        if not job_ids:
            return {}
        arrays = sorted({job_id.partition("_")[0] for job_id in job_ids}, key=int)
        # squeue --jobs fails as a whole when it has forgotten one of them; --user does not.
        # All states: a job that has just ended may not have reached the accounting yet.
        recent = parse_squeue(
            ask(["squeue", "-h", "-r", "-t", "all", "-u", getpass.getuser(), "-o", "%i|%T|%r|%N"])
        )
        fields = "JobID,State,ExitCode,NodeList"
        try:
            accounted = parse_sacct(
                ask(["sacct", "-n", "-P", "-o", fields, "-j", ",".join(arrays)])
            )
        except LaunchError:
            accounted = None  # without accounting only the controller's short memory is left
        found = {job_id: latest(job_id, recent, accounted) for job_id in job_ids}
        return {job_id: state for job_id, state in found.items() if state is not None}

    def cancel(self, job_ids: Sequence[str]) -> None:
        if job_ids:
            ask(["scancel", *job_ids])


def latest(
    job_id: str, recent: Mapping[str, JobState], accounted: Mapping[str, JobState] | None
) -> JobState | None:
    """The controller's word for what lives, the accounting's for how a job ended.

    Only the accounting knows the steps, hence whether memory was the cause: a job that has
    ended for the controller alone is still ending.
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
    "OUT_OF_MEMORY": "oom_kill",
    "PREEMPTED": "preempted",
}
_SLURM_RUNNING = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED")


def slurm_state(word: str, reason: str = "", nodes: str = "") -> JobState:
    """One of SLURM's state words (``CANCELLED by 1001``) in dpeval's."""
    name = word.split()[0] if word.split() else ""
    told = reason if reason not in ("", "None") else ""
    nodes = "" if nodes == "None assigned" else nodes
    if name in _SLURM_ENDINGS:
        return JobState(
            state="ended", ending=_SLURM_ENDINGS[name], reason=told or word, nodes=nodes
        )
    state: State = "running" if name in _SLURM_RUNNING else "queued"
    return JobState(state=state, reason=told or word, nodes=nodes)


def parse_squeue(text: str) -> dict[str, JobState]:
    """Lines ``id|state|reason|nodes`` of ``squeue -r``."""
    found = {}
    for line in text.splitlines():
        parts = line.split("|")
        if len(parts) == 4:
            found[parts[0]] = slurm_state(parts[1], parts[2], parts[3])
    return found


def parse_sacct(text: str) -> dict[str, JobState]:
    """Lines ``id|state|exit code|nodes`` of ``sacct -P``, steps included.

    A job whose step was killed for memory under ``srun`` is itself only FAILED: the step tells.
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
    """``7_[2-4,9%2]``, sacct's name for tasks that wait together, as single ids."""
    found = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job_id)
    if found is None:
        return [job_id]
    ids = []
    for part in found[2].split(","):
        first, _, last = part.partition("-")
        ids += [f"{found[1]}_{index}" for index in range(int(first), int(last or first) + 1)]
    return ids


class Oar:
    """OAR through oarstat."""

    kind = "oar"
    _at_once = 500
    """Ids per command line, far below the length that a kernel takes."""

    def query(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        found: dict[str, JobState] = {}
        for first in range(0, len(job_ids), self._at_once):
            some = job_ids[first : first + self._at_once]
            found |= self._query(some)
        return found

    def _query(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        ids = ",".join(str(int(job_id)) for job_id in job_ids)
        # One question, whatever the number of jobs: -j given N times costs N queries.
        jobs = parse_oarstat(ask(["oarstat", "-f", "-J", "--sql", f"job_id IN ({ids})"]))
        again = parse_oarstat(ask(["oarstat", "-f", "-J", "--sql", f"resubmit_job_id IN ({ids})"]))
        found = {job_id: oar_state(job) for job_id, job in jobs.items()}
        if again:
            later = self._query(list(again))
            for job_id, job in again.items():
                found[str(job["resubmit_job_id"])] = later.get(job_id, oar_state(job))
        return found

    def cancel(self, job_ids: Sequence[str]) -> None:
        if not job_ids:
            return
        ids = ",".join(str(int(job_id)) for job_id in job_ids)
        again = parse_oarstat(ask(["oarstat", "-f", "-J", "--sql", f"resubmit_job_id IN ({ids})"]))
        ask(["oardel", *job_ids, *again])


def parse_oarstat(text: str) -> dict[str, dict[str, Any]]:
    """The JSON of ``oarstat -f -J``; no job at all is an empty text."""
    if not text.strip():
        return {}
    try:
        jobs = json.loads(text)
    except ValueError as error:
        raise LaunchError(f"oarstat answered what is not JSON: {text.strip()[:80]!r}") from error
    return jobs if isinstance(jobs, dict) else {}


_OAR_RUNNING = ("Running", "Finishing", "Suspended", "Resuming", "Launching", "toLaunch")


def oar_state(job: Mapping[str, Any]) -> JobState:
    """One job of ``oarstat -f -J`` in dpeval's words.

    An exit code says little here: submitit-oar ends with 0 after an exception, and a job killed
    from inside is Terminated like any other. The run's record decides.
    """
    word = str(job.get("state", ""))
    nodes = ",".join(job.get("assigned_network_address") or [])
    if word in ("Terminated", "Error"):
        ending, reason = _oar_ending(word, job)
        return JobState(state="ended", ending=ending, reason=reason, nodes=nodes)
    state: State = "running" if word in _OAR_RUNNING else "queued"
    reason = word if state == "running" else _waiting(word, str(job.get("message") or ""))
    return JobState(state=state, reason=reason, nodes=nodes)


def _oar_ending(word: str, job: Mapping[str, Any]) -> tuple[Ending, str]:
    events = {str(event["type"]): str(event["description"]) for event in job.get("events") or []}
    for name, ending in _OAR_EVENTS:
        for kind, description in events.items():
            if name in kind:
                return ending, description
    code = job.get("exit_code")
    if word == "Terminated" and not code:
        return "completed", word
    return "failed", f"{word} with {_wait_status(code)}"


_OAR_EVENTS: tuple[tuple[str, Ending], ...] = (
    # In order of what explains most: a job over its walltime is "fragged" as a cancelled one is.
    ("WALLTIME", "timeout"),
    ("BESTEFFORT_KILL", "preempted"),
    ("NODE", "node_fail"),
    ("PING_CHECKER", "node_fail"),
    ("FRAG_JOB_REQUEST", "cancelled"),
)


def _wait_status(code: object) -> str:
    if not isinstance(code, int):
        return "no exit code"
    if os.WIFSIGNALED(code):
        return f"signal {os.WTERMSIG(code)}"
    return f"exit code {os.WEXITSTATUS(code)}"


def _waiting(word: str, message: str) -> str:
    """OAR's message holds the request and, where it has one, the reason to wait."""
    told = re.sub(r"\([^)]*\)", "", message).strip()
    reasons = [part for part in told.split(",") if not re.match(r"^\s*[A-Z]=", part)]
    return ", ".join([word, *reasons]) if reasons else word


def unique(job_ids: Iterable[str | None]) -> list[str]:
    """The ids that are there, each once, in order."""
    return list(dict.fromkeys(job_id for job_id in job_ids if job_id is not None))
