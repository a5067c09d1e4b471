"""The states of OAR's jobs, parsed from oarstat."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from dpeval.errors import LaunchError
from dpeval.launchers.schedulers.base import Ending, JobState, State


def parse_oarstat(text: str) -> dict[str, dict[str, Any]]:
    """The jobs in the JSON of ``oarstat -f -J``, which is empty if there are none.

    Raises:
        LaunchError: `text` is not JSON.
    """
    if not text.strip():
        return {}
    try:
        jobs = json.loads(text)
    except ValueError as error:
        raise LaunchError(f"the output of oarstat is not JSON: {text.strip()[:80]!r}") from error
    return jobs if isinstance(jobs, dict) else {}


_OAR_RUNNING = ("Running", "Finishing", "Suspended", "Resuming", "Launching", "toLaunch")


def oar_state(job: Mapping[str, Any]) -> JobState:
    """Translate one job of ``oarstat -f -J``.

    The exit code is not reliable: submitit-oar exits with 0 after an exception, and a job that was
    killed from inside is Terminated like any other. The run's record decides.
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
    # The most specific first: a job over its walltime is "fragged" like a cancelled one.
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
    """The state, with the reason to wait if OAR's message contains one beside the request."""
    outside = re.sub(r"\([^)]*\)", "", message).strip()
    reasons = [part for part in outside.split(",") if not re.match(r"^\s*[A-Z]=", part)]
    return ", ".join([word, *reasons]) if reasons else word
