"""Parsing of schedulers' output; the texts were printed by SLURM 22.05.8 and OAR 2.5.9."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpeval.errors import ConfigError, LaunchError
from dpeval.launchers.in_job.node_sharing import DETAIL, NodeWatch
from dpeval.launchers.schedulers import slurm as slurm_module
from dpeval.launchers.schedulers.base import JobState
from dpeval.launchers.schedulers.oar import scheduler as oar_module
from dpeval.launchers.schedulers.oar.scheduler import Oar, cuda_indices, oar_gpus, openable_gpus
from dpeval.launchers.schedulers.oar.states import oar_state, parse_oarstat
from dpeval.launchers.schedulers.registry import scheduler
from dpeval.launchers.schedulers.slurm import Slurm
from dpeval.launchers.schedulers.slurm_states import (
    latest,
    parse_sacct,
    parse_squeue,
    slurm_state,
)
from dpeval.launchers.schedulers.submission_limit import commands_limited
from dpeval.launchers.tracking.wait import pause_s
from dpeval.record.schema import Scheduler

SQUEUE = """4_1|PENDING|JobArrayTaskLimit|
6|PENDING|Resources|
4_0|RUNNING|None|node1
"""
SACCT = """22_[2-4,9%2]|PENDING|0:0|None assigned
22_0|COMPLETED|0:0|node1
22_0.batch|COMPLETED|0:0|node1
23|FAILED|1:0|node2
23.batch|FAILED|1:0|node2
23.0|OUT_OF_MEMORY|0:125|node2
24|CANCELLED by 1001|0:0|None assigned
25|TIMEOUT|0:0|node1
26|NODE_FAIL|1:0|node4
27|FAILED|3:0|node3
"""


def test_squeue_gives_reasons_and_nodes() -> None:
    found = parse_squeue(SQUEUE)
    assert found["4_1"] == JobState(state="queued", reason="JobArrayTaskLimit")
    assert (found["4_0"].state, found["4_0"].nodes) == ("running", "node1")


def test_sacct_distinguishes_every_ending() -> None:
    found = parse_sacct(SACCT)
    endings = {job_id: state.ending for job_id, state in found.items()}
    assert endings == {
        "22_2": None, "22_3": None, "22_4": None, "22_9": None,
        "22_0": "completed", "23": "oom_kill", "24": "cancelled",
        "25": "timeout", "26": "node_fail", "27": "failed",
    }  # fmt: skip
    assert found["27"].reason == "FAILED with exit code 3:0"
    assert found["24"].nodes == ""


@pytest.mark.parametrize(
    ("word", "reason", "ending"),
    [
        ("REVOKED", "None", "cancelled"),
        ("LAUNCH_FAILED", "None", "node_fail"),
        ("RECONFIG_FAIL", "None", "node_fail"),
        ("PENDING", "DependencyNeverSatisfied", "failed"),
        ("PENDING", "Dependency", None),
        ("SPECIAL_EXIT", "None", None),
    ],
)
def test_what_never_starts_has_ended(word: str, reason: str, ending: str | None) -> None:
    state = slurm_state(word, reason)
    assert (state.ending, state.state) == (ending, "ended" if ending else "queued")


@pytest.mark.parametrize(
    ("now", "past", "expected"),
    [
        ("RUNNING", "PENDING", "running"),
        ("COMPLETED", "RUNNING", "running"),  # the accounting lags: still ending
        ("COMPLETED", None, "running"),
        ("FAILED", "FAILED", "ended"),
        ("PENDING", "FAILED", "queued"),  # requeued
        (None, "COMPLETED", "ended"),
    ],
)
def test_the_accounting_decides_how_a_job_ended(
    now: str | None, past: str | None, expected: str
) -> None:
    recent = {} if now is None else {"1": slurm_state(now)}
    accounted = {} if past is None else {"1": slurm_state(past)}
    state = latest("1", recent, accounted)
    assert state is not None
    assert state.state == expected


def test_without_accounting_the_controller_decides() -> None:
    state = latest("1", {"1": slurm_state("FAILED")}, None)
    assert state is not None
    assert state.ending == "failed"
    assert latest("2", {}, {}) is None


@given(st.text(max_size=200))
def test_no_text_breaks_the_parsers(text: str) -> None:
    parse_squeue(text)
    parse_sacct(text)


def oar(state: str, *events: str, **more: Any) -> dict[str, Any]:
    return {
        "state": state,
        "events": [{"type": kind, "description": f"about {kind}"} for kind in events],
        "assigned_network_address": ["node1"],
        **more,
    }


@pytest.mark.parametrize(
    ("job", "state", "ending"),
    [
        (oar("Waiting", message="R=1,W=0:5:0,J=B,N=b (Karma=0.000,quota_ok)"), "queued", None),
        (oar("Running"), "running", None),
        (oar("Terminated", "SWITCH_INTO_TERMINATE_STATE", exit_code=0), "ended", "completed"),
        (oar("Terminated", "SWITCH_INTO_TERMINATE_STATE", exit_code=768), "ended", "failed"),
        (oar("Terminated", exit_code=9), "ended", "failed"),
        (oar("Error", "FRAG_JOB_REQUEST", "SEND_KILL_JOB"), "ended", "cancelled"),
        # A job over its walltime is "fragged" like a cancelled one, with one more event.
        (oar("Error", "FRAG_JOB_REQUEST", "WALLTIME", "SEND_KILL_JOB"), "ended", "timeout"),
        (oar("Error", "BESTEFFORT_KILL", "FRAG_JOB_REQUEST"), "ended", "preempted"),
    ],
)
def test_oar_states(job: dict[str, Any], state: str, ending: str | None) -> None:
    found = oar_state(job)
    assert (found.state, found.ending) == (state, ending)


def test_oar_exit_codes_are_wait_statuses() -> None:
    assert oar_state(oar("Terminated", exit_code=768)).reason == "Terminated with exit code 3"
    assert oar_state(oar("Terminated", exit_code=9)).reason == "Terminated with signal 9"


def test_oarstat_may_print_nothing_but_not_anything_other_than_json() -> None:
    assert parse_oarstat("\n") == {}
    with pytest.raises(LaunchError, match="not JSON"):
        parse_oarstat("DBD::Pg failed")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("pathlib.Path", "is not a subclass of"),
        ("os.path", "cannot be called"),
        ("dpeval.launchers.schedulers.base.Scheduler", "does not implement after, cancel,"),
        ("dpeval.launchers.schedulers.slurm.Slrum", "did you mean 'Slurm'?"),
    ],
)
def test_what_is_no_scheduler_is_refused_in_one_line(path: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        scheduler(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_local_sweep_has_no_scheduler() -> None:
    with pytest.raises(LaunchError, match="local"):
        scheduler("local")


PROPERTIES = """gpudevice = '2' , host = 'node1' , network_address = 'node1' , gpu = '3'
gpudevice = '2' , host = 'node1' , network_address = 'node1' , gpu = '3'
gpudevice = '0' , host = 'node1' , network_address = 'node1' , gpu = '1'
gpudevice = '3' , host = 'node2' , network_address = 'node2' , gpu = '8'
"""


def test_oar_gpus_are_those_of_the_jobs_own_node() -> None:
    assert oar_gpus(PROPERTIES) == [0, 2]
    assert oar_gpus(PROPERTIES, "node2") == [3]
    assert oar_gpus("cpuset = '1' , host = 'node1'") == []


def test_visible_gpus_are_set_unless_already_set(tmp_path: Any) -> None:
    path = tmp_path / "resources"
    path.write_text(PROPERTIES)
    environment = {"OAR_RESOURCE_PROPERTIES_FILE": str(path)}
    Oar().expose_gpus(environment)
    assert environment["CUDA_VISIBLE_DEVICES"] == "0,2"
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        already = {"OAR_RESOURCE_PROPERTIES_FILE": str(path), name: "7"}
        Oar().expose_gpus(already)
        assert already == {"OAR_RESOURCE_PROPERTIES_FILE": str(path), name: "7"}


ONE_OTHER = "1 other job (1 of other users)"
OAR_JOBS = """{
 "4": {"owner": "ann", "assigned_network_address": ["node1", "node2"]},
 "5": {"owner": "bob", "assigned_network_address": ["node2"]},
 "6": {"owner": "eve", "assigned_network_address": ["node3"]}
}"""


@pytest.mark.parametrize(
    ("job", "answer", "expected"),
    [
        (
            Scheduler(kind="slurm", job_id="4_1", nodes=["node[1-2]"]),
            "8|ann\n9|bob\n",
            ONE_OTHER,
        ),
        (Scheduler(kind="slurm", job_id="4_1", nodes=["node[1-2]"]), "8|ann\n", "none"),
        (
            Scheduler(kind="oar", job_id="4", nodes=["node1", "node2"]),
            OAR_JOBS,
            ONE_OTHER,
        ),
        (Scheduler(kind="oar", job_id="4", nodes=["node1", "node2"]), "", "none"),
    ],
)
def test_other_jobs_on_the_nodes_are_reported(
    monkeypatch: pytest.MonkeyPatch, job: Scheduler, answer: str, expected: str
) -> None:
    for module in (slurm_module, oar_module):
        monkeypatch.setattr(module, "run_command", lambda _: answer)
    with NodeWatch(scheduler(job.kind), job, {"SLURM_JOB_ID": "8"}) as watch:
        pass
    details, warnings = watch.report()
    assert details == {DETAIL: expected}
    assert [warning.code for warning in warnings] == ["shared_node"] * (expected != "none")


def test_a_failed_query_does_not_count_as_an_empty_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(command: list[str]) -> str:
        raise LaunchError("squeue is not installed here")

    monkeypatch.setattr(slurm_module, "run_command", refuse)
    with NodeWatch(Slurm(), Scheduler(kind="slurm", job_id="8"), {}) as watch:
        pass
    details, warnings = watch.report()
    assert details[DETAIL] == "not known: squeue is not installed here"
    assert warnings == []


def test_sbatch_does_not_inherit_the_job_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    inherited = ("SLURM_JOB_ID", "SLURM_MEM_PER_CPU", "SBATCH_PARTITION", "RANK")
    stays = ("SLURM_CONF", "SBATCH_ACCOUNT", "HOME")
    for name in (*inherited, *stays):
        monkeypatch.setenv(name, "x")
    with Slurm().submitting({"partition": "gpu", "account": None}):
        assert not set(inherited) & set(os.environ)
        assert set(stays) <= set(os.environ)
    assert {*inherited, *stays} <= set(os.environ)


def test_a_submission_that_does_not_answer_is_ended_and_nothing_else() -> None:
    with subprocess.Popen(["sleep", "300"]) as other:
        with pytest.raises(LaunchError, match=r"^sleep did not") as caught, commands_limited(0.1):
            done = subprocess.run(["sleep", "300"], check=False)
        assert other.poll() is None
        other.kill()
    assert done.returncode == -signal.SIGKILL
    assert "check before you submit again" in str(caught.value)


def test_a_submission_that_answers_is_left_alone() -> None:
    with commands_limited():
        assert subprocess.run(["true"], check=False).returncode == 0


def test_the_size_of_an_array_is_what_slurm_says(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = "MaxArraySize            = 1001\nMaxJobCount = 10000\n"
    monkeypatch.setattr(slurm_module, "run_command", lambda _: shown)
    assert Slurm().most_in_array() == 1001

    def refuse(command: list[str]) -> str:
        raise LaunchError(f"{command[0]} is not installed here")

    monkeypatch.setattr(slurm_module, "run_command", refuse)
    assert Slurm().most_in_array() is None


@given(st.floats(0, 1e6), st.floats(0.1, 600))
def test_polling_backs_off_while_nothing_changes(unchanged_s: float, least_s: float) -> None:
    assert least_s <= pause_s(least_s, unchanged_s) <= max(60.0, least_s)
    assert pause_s(least_s, unchanged_s) <= pause_s(least_s, unchanged_s + 60)
    assert pause_s(2.0, 20.0) == 2.0, "the end of a short job is seen at once"


def test_gpus_are_counted_as_the_process_sees_them(tmp_path: Path) -> None:
    assert cuda_indices([3], [3]) == [0], "a device cgroup leaves one, and CUDA counts from 0"
    assert cuda_indices([1, 3], [0, 1, 2, 3]) == [1, 3]
    assert cuda_indices([1, 3], []) == [1, 3], "not NVIDIA's"
    for name in ("nvidia0", "nvidia11", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert openable_gpus(tmp_path) == [0, 11]
