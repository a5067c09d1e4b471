"""However a job ends on a real SLURM, its run has a record that gives the cause."""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.cluster.conftest import LONG, TINY, Cluster, wait_until, with_steps_in
from tests.cluster.sweeps import job_ids, records, wait_for_lines, wait_for_status

PACKED = ("num_devices=1,2", "batch=24", "hydra.launcher.pack=true")
"""Two runs that take turns in one job."""


def wait_for_all(slurm: Cluster, sweep: Path, words: str) -> None:
    """Watch until the status line of every run matches the regular expression `words`."""
    wait_for_lines(slurm, sweep, lambda lines: all(re.search(words, line) for line in lines))


def steps_of(job_id: str) -> list[psutil.Process]:
    """The daemons that hold the steps of a job."""
    lines = {
        process: " ".join(process.info["cmdline"] or [])
        for process in psutil.process_iter(["cmdline"])
    }
    return [one for one, line in lines.items() if "slurmstepd" in line and job_id in line]


def children_of(steps: list[psutil.Process]) -> list[psutil.Process]:
    return [child for step in steps for child in step.children(recursive=True)]


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


def set_minutes_left(slurm: Cluster, job_id: str, minutes: int) -> None:
    """Move the time limit of a job to between `minutes` - 1 and `minutes` from now."""
    used = slurm.run("squeue", "-h", "-j", job_id, "-o", "%M").stdout.strip()
    limit = int(used.split(":")[-2]) + minutes  # minutes:seconds
    done = slurm.run("scontrol", "update", f"jobid={job_id}", f"timelimit={limit}")
    assert done.returncode == 0, done.stderr


def let_time_limit_end(slurm: Cluster, sweep: Path, attempt: int) -> None:
    """Shorten the job's time limit once its `attempt` measures; return when it has a record."""
    [job_id], folder = job_ids(sweep), sweep / "0"
    wait_for_status(slurm, sweep, "measuring")
    assert attempts(folder) == attempt, "the progress is not that of an earlier attempt"
    (folder / "metrics.json").unlink(missing_ok=True)
    set_minutes_left(slurm, job_id, 2)
    wait_until((folder / "metrics.json").exists, 120, lambda: "the interrupted run is recorded")


def attempts(folder: Path) -> int:
    path = folder / "attempts.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_warning_before_the_time_limit_stops_in_order_and_requeues_once(slurm: Cluster) -> None:
    """SLURM looks at time limits every 30 s and warns up to 30 s early."""
    _, sweep = slurm.sweep(*LONG, "batch=16", "hydra.launcher.timeout_min=20",
                           "hydra.launcher.signal_delay_s=90", "hydra.launcher.requeue=1",
                           "hydra.launcher.wait=false")  # fmt: skip
    [job_id] = job_ids(sweep)
    let_time_limit_end(slurm, sweep, attempt=1)
    wait_until(
        lambda: slurm.run("squeue", "-h", "-j", job_id, "-o", "%T").stdout == "PENDING\n",
        60,
        lambda: "requeued",
    )
    set_minutes_left(slurm, job_id, 20)
    let_time_limit_end(slurm, sweep, attempt=2)
    wait_for_status(slurm, sweep, ": interrupted")
    [found] = records(sweep)
    assert found.status == "interrupted"
    assert found.throughput is not None
    assert found.throughput.low < found.throughput.img_per_s < found.throughput.high
    assert attempts(sweep / "0") == 2, "the first start and one requeue"


def test_a_warning_during_startup_is_recorded_and_requeued(slurm: Cluster) -> None:
    # Held until the submission has returned, which takes long on a loaded machine.
    _, sweep = slurm.sweep(*LONG, "batch=16", "hydra.launcher.requeue=1",
                           "hydra.launcher.wait=false", "+site.options.hold=true")  # fmt: skip
    attempts = sweep / "0" / "attempts.jsonl"
    slurm.run("scontrol", "release", *job_ids(sweep))
    # The attempt is written before torch is imported, which takes seconds.
    wait_until(attempts.exists, 240, lambda: "job started")
    try:
        slurm.run("scancel", "--signal=USR2", *job_ids(sweep))
        wait_for_status(slurm, sweep, "queued .*requeued after an interruption")
        [found] = records(sweep)
        assert found.status == "interrupted"
        assert found.cause is not None
        assert found.cause.kind == "interrupt"
        assert found.ranks == [], "it had taken no step"
    finally:
        slurm.module("cancel", str(sweep))


def test_a_job_killed_for_memory_is_recorded_as_such(slurm: Cluster) -> None:
    if "ConstrainRAMSpace=yes" not in (slurm.root / "etc" / "cgroup.conf").read_text():
        pytest.skip("no cgroup v1 memory controller: SLURM cannot enforce a memory limit here")
    done, sweep = slurm.sweep(*TINY, "batch=16", "+site.options.mem=150M", "site.exclusive=false",
                              "site.ask_memory=false")  # fmt: skip
    assert done.returncode == 1
    [found] = records(sweep)
    assert found.cause is not None, done.stdout
    assert (found.status, found.cause.kind) == ("oom", "oom_kill"), found.cause


def test_a_node_failure_is_recorded_as_the_cause(slurm: Cluster) -> None:
    node = slurm.node(4)
    _, sweep = slurm.sweep(*LONG, "batch=16", "hydra.launcher.wait=false",
                           "hydra.launcher.requeue=0",
                           f"+site.options.nodelist={node}")  # fmt: skip
    wait_for_status(slurm, sweep, "measuring")
    daemon = psutil.Process(int((slurm.root / "pid" / f"slurmd.{node}.pid").read_text()))
    steps = steps_of(job_ids(sweep)[0])
    try:
        # As on a power failure, the daemon and everything it started end at once.
        kill([daemon, *steps, *children_of(steps)])
        wait_for_status(slurm, sweep, "failed .*node failed")
    finally:
        slurm.run("slurmd", "-N", node)
        slurm.run("scontrol", "update", f"nodename={node}", "state=resume")
    [found] = records(sweep)
    assert found.cause is not None
    assert (found.status, found.cause.kind) == ("failed", "node_fail")


def test_a_killed_job_leaves_what_its_runs_had_measured(slurm: Cluster) -> None:
    _, sweep = slurm.sweep(*LONG, *PACKED, "hydra.launcher.wait=false")
    wait_for_all(slurm, sweep, "measuring")
    [job_id] = set(job_ids(sweep))
    kill(children_of(steps_of(job_id)))
    wait_for_all(slurm, sweep, "failed .*what it had measured")
    found = records(sweep)
    assert len(found) == 2
    for run in found:
        assert run.cause is not None
        assert (run.status, run.cause.kind) == ("interrupted", "lost")
        assert len(run.ranks[0].step_s) > 0


def test_preempted_runs_are_recorded_and_requeued(slurm: Cluster) -> None:
    # Jobs of the partition main preempt those of low, after SIGTERM and a grace time.
    node = slurm.node(3)
    _, sweep = slurm.sweep(*LONG, *PACKED, "site.partition=low",
                           f"+site.options.nodelist={node}",
                           "hydra.launcher.requeue=1", "hydra.launcher.wait=false")  # fmt: skip
    wait_for_all(slurm, sweep, "measuring")
    other = slurm.run("sbatch", "--parsable", "-o", "/dev/null", "-w", node, "--exclusive",
                      "--wrap", "sleep 300").stdout.strip()  # fmt: skip
    try:
        wait_for_all(slurm, sweep, "queued .*requeued after an interruption")
        found = records(sweep)
        assert [(run.status, run.throughput is not None) for run in found] == [
            ("interrupted", True)
        ] * 2
        assert {run.cause.kind for run in found if run.cause is not None} == {"interrupt"}
    finally:
        slurm.run("scancel", other)
        slurm.module("cancel", str(sweep))


def test_a_failure_on_one_of_two_nodes_fails_the_run(slurm: Cluster) -> None:
    """Each node has the sweep's folder over a file system that shows it others' files late.

    It caches names and attributes for 5 s, as NFS does; this kernel cannot mount NFS itself.
    """
    shared = slurm.work / "outputs"
    shared.mkdir()
    late = "attr_timeout=5,entry_timeout=5,negative_timeout=5"
    quoted = shlex.quote(str(shared))
    mounted = f'bindfs -o nonempty,{late} {quoted} {quoted} && exec "$@"'
    slurm = with_steps_in(slurm, f'exec unshare --mount bash -c {shlex.quote(mounted)} step "$@"')
    done, sweep = slurm.sweep(*TINY, "num_nodes=2", "num_devices=2", "batch=16",
                              "+model.args.faults.fail_at_step=3",
                              "+model.args.faults.straggler_rank=1")  # fmt: skip
    assert done.returncode == 1
    [found] = records(sweep)
    assert found.cause is not None
    assert (found.status, found.cause.rank) == ("failed", 1), found.cause


def test_a_full_disk_is_reported_although_the_job_could_write_nothing(slurm: Cluster) -> None:
    small = slurm.work / "outputs" / "full"
    small.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(small)], check=True)
    try:
        done, sweep = slurm.sweep(*TINY, "batch=16", "+site.options.begin='now+30'",
                                  "hydra.launcher.wait=false", study="full")  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        filled = f"head -c 8M /dev/zero > {shlex.quote(str(small / 'filler'))}"
        assert subprocess.run(["bash", "-c", filled], check=False).returncode != 0
        wait_for_status(slurm, sweep, r": failed .*no space left")
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
