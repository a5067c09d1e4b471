"""Sweeps on a real SLURM: their requests, and that no run is lost."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from dpeval.launchers.tracking import manifest as manifests
from dpeval.record import read
from tests.cluster.conftest import (
    LONG,
    TEST_USER,
    TINY,
    Cluster,
    counted,
    wait_until,
    with_commands,
    with_steps_in,
)
from tests.cluster.sweeps import check_turns_in_one_job, job_ids, records, standing, wait_for_lines


def accounted(cluster: Cluster, sweep: Path) -> list[dict[str, str]]:
    """Each run's request and state in SLURM's accounting."""
    found = []
    for job_id in job_ids(sweep):
        done = cluster.run("sacct", "-n", "-P", "-X", "-j", job_id, "-o", "ReqTRES,State")
        request, _, state = done.stdout.strip().splitlines()[0].partition("|")
        found.append({**dict(part.split("=") for part in request.split(",")), "state": state})
    return found


def test_every_run_gets_its_cores_and_equal_requests_share_an_array(slurm: Cluster) -> None:
    done, sweep = slurm.sweep(*TINY, "num_devices=1,2,3", "batch=12,24")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [record.status for record in records(sweep)] == ["ok"] * 6
    assert [entry["cpu"] for entry in accounted(slurm, sweep)] == ["1", "1", "2", "2", "3", "3"]
    ids = job_ids(sweep)
    assert len({job_id.split("_")[0] for job_id in ids}) == 3
    found = records(sweep)[0]
    assert found.scheduler is not None
    assert (found.scheduler.kind, found.scheduler.job_id) == ("slurm", ids[0])
    assert found.scheduler.details["OTHER_JOBS_ON_NODES"] == "none"
    assert len(found.ranks) == 1
    assert stat.S_IMODE((sweep / ".submitit").stat().st_mode) == 0o700


def test_runs_take_turns_in_one_job(slurm: Cluster) -> None:
    job_id = check_turns_in_one_job(slurm, too_many=24)  # a node has 16 CPUs
    shown = slurm.run("sacct", "-n", "-P", "-X", "-j", job_id, "-o", "ReqTRES").stdout
    assert "cpu=3" in shown.split(",")


def test_a_script_of_the_user_is_a_run_like_any_other(slurm: Cluster) -> None:
    script = Path(__file__).parents[1] / "multiprocess" / "scripts" / "faulty.py"
    done, sweep = slurm.sweep(
        "task=script", f"task.script={script}", "task.args=[none]", "measure=quick",
        "measure.time_limit_s=2", "num_devices=1,2", "hardware.oversubscribe=true", "analyze=false",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = records(sweep)
    assert [(made.status, made.unit) for made in found] == [("ok", "rows")] * 2
    assert [len(made.ranks) for made in found] == [1, 2]
    assert all(made.scheduler is not None for made in found)


def test_every_run_gets_the_gpus_it_needs(slurm: Cluster) -> None:
    done, sweep = slurm.sweep(*TINY, "hardware=gpu", "hardware.oversubscribe=false",
                              "num_devices=1,2,3", "batch=16")  # fmt: skip
    assert [entry["gres/gpu"] for entry in accounted(slurm, sweep)] == ["1", "2", "3"], done.stdout
    # There is no CUDA here: each run records that instead of crashing.
    assert [record.status for record in records(sweep)] == ["skipped"] * 3
    causes = [record.cause for record in records(sweep) if record.cause is not None]
    assert [cause.kind for cause in causes] == ["devices"] * 3


def known_jobs(slurm: Cluster) -> set[str]:
    return set(slurm.run("squeue", "-h", "-t", "all", "-o", "%i").stdout.split())


def test_resume_after_half_of_the_sweep_was_cancelled(slurm: Cluster) -> None:
    command = (*LONG, "batch=16,32,48,64", "hydra.launcher.wait=false")
    done, sweep = slurm.sweep(*command, "hydra.launcher.array_parallelism=2")
    assert done.returncode == 0, done.stdout + done.stderr
    wait_for_lines(slurm, sweep, lambda lines: sum("measuring" in line for line in lines) == 2)
    assert sum(": queued" in line for line in standing(slurm, sweep)) == 2
    again, _ = slurm.sweep(*command, "sweep.skip_done=true")
    assert "0 runs submitted" in again.stdout, "a queued or running job must not be submitted twice"
    other = slurm.run(
        "sbatch", "--parsable", "-o", "/dev/null", "--wrap", "sleep 60"
    ).stdout.strip()
    cancelled = slurm.module("cancel", str(sweep))
    assert cancelled.stdout.startswith("4 jobs cancelled"), cancelled.stdout + cancelled.stderr
    # SLURM may not have started it yet; if it had been cancelled too, it would never run.
    wait_until(
        lambda: slurm.run("squeue", "-h", "-j", other, "-o", "%T").stdout.strip() == "RUNNING",
        240,
        lambda: "the other job running",
    )
    slurm.run("scancel", other)
    wait_for_lines(slurm, sweep, lambda lines: all(": interrupted" in line for line in lines))
    found = records(sweep)
    assert [record.status for record in found] == ["interrupted"] * 4
    assert [record.throughput is not None for record in found] == [True, True, False, False]


def test_a_refused_request_is_reported_and_the_other_runs_continue(slurm: Cluster) -> None:
    done, sweep = slurm.sweep(*TINY, "hardware=gpu", "hardware.oversubscribe=false",
                              "num_devices=1,8", "batch=16")  # fmt: skip
    assert done.returncode == 1
    assert "refused" in done.stdout
    kinds = [record.cause.kind for record in records(sweep) if record.cause is not None]
    assert kinds == ["devices", "refused"]


def test_overrides_with_shell_characters_arrive_unchanged(slurm: Cluster) -> None:
    nasty = "it's $(touch pwned) `touch pwned`; &"
    done, sweep = slurm.sweep(*TINY, "batch=16", f'model.name="{nasty}"',
                              study="a study; $(touch pwned)")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    [found] = records(sweep)
    assert found.config["model"]["name"] == nasty
    assert found.config["study"] == "a study; $(touch pwned)"
    assert not list(slurm.work.rglob("pwned"))


def test_ctrl_c_while_waiting_keeps_the_jobs(slurm: Cluster) -> None:
    command = [*slurm.python, "-m", "dpeval.train", "-m", "hydra/launcher=slurm", "study=study",
               *LONG, "batch=16,32"]  # fmt: skip
    process = subprocess.Popen(
        command,
        cwd=slurm.work,
        env=slurm.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A shell starts what runs in its background with SIGINT ignored, and so would tests.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_until(
            lambda: bool(list(slurm.work.glob("outputs/study/*/sweep.json"))),
            240,
            lambda: "submitted",
        )
        sweep = slurm.newest()
        wait_for_lines(slurm, sweep, lambda lines: all(": running" in line for line in lines))
        os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=120)
        assert "the jobs continue" in out
        assert process.returncode == 130
        assert all(": running" in line for line in standing(slurm, sweep))
    finally:
        process.kill()
        slurm.module("cancel", str(slurm.newest()))


def test_an_unprivileged_user_can_run_a_sweep(unprivileged: Cluster) -> None:
    done, sweep = unprivileged.sweep(*TINY, "num_devices=1,2", "batch=16")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [record.status for record in records(sweep)] == ["ok", "ok"]
    assert (sweep / "0" / "metrics.json").owner() == TEST_USER
    shown = unprivileged.module("status", str(sweep))
    assert "2 ok" in shown.stdout


def test_runs_wait_for_the_job_that_prepares_the_data(slurm: Cluster) -> None:
    """Its jobs have no internet, like those of many sites: the data are a stand-in, and said so."""
    offline = 'ip link set lo up && exec "$@"'
    slurm = with_steps_in(slurm, f'exec unshare --net bash -c {shlex.quote(offline)} step "$@"')
    slurm.environment["DPEVAL_DATA"] = str(slurm.work / "data")
    done, sweep = slurm.sweep(*TINY, "dataset=imagenette_160", "dataset.train_images=64",
                              "dataset.train_images=64", "batch=16,32",
                              "hydra.launcher.prepare=job")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    first = manifests.read(sweep).prepare_job_id
    assert first is not None
    assert [record.status for record in records(sweep)] == ["ok", "ok"]
    for record in records(sweep):
        assert "stand_in" in {warning.code for warning in record.warnings}
    shown = slurm.run("sacct", "-n", "-X", "-P", "-o", "End,Start", "-j", first).stdout
    runs = slurm.run("sacct", "-n", "-X", "-P", "-o", "End,Start", "-j", job_ids(sweep)[0]).stdout
    assert shown.split("|")[0] <= runs.strip().split("|")[1]


def test_two_nodes_make_one_record(slurm: Cluster) -> None:
    done, sweep = slurm.sweep(*TINY, "num_nodes=2", "num_devices=4", "batch=16")
    assert done.returncode == 0, done.stdout + done.stderr
    [found] = records(sweep)
    assert (found.status, len(found.ranks)) == ("ok", 4)
    assert len({rank.pid for rank in found.ranks}) == 4
    assert found.plan is not None
    assert [rank.node for rank in found.plan.ranks] == [0, 0, 1, 1]
    assert found.throughput is not None
    assert len({len(rank.step_s) for rank in found.ranks}) == 1
    assert [entry["node"] for entry in accounted(slurm, sweep)] == ["2"]


@pytest.mark.timeout(3600)
def test_many_runs_without_loss_or_duplicates(slurm: Cluster) -> None:
    """The number of runs does not change how often submission and status call the scheduler."""
    count = int(os.environ.get("DPEVAL_MANY", "12"))
    batches = ",".join(str(size) for size in range(4, 4 + count))
    slurm, calls = counted(slurm, "sbatch", "squeue", "sacct")
    done, sweep = slurm.sweep(*TINY, "measure.time_limit_s=1", f"batch={batches}",
                              "site.exclusive=false", "hydra.launcher.array_parallelism=4",
                              "hydra.launcher.wait=false")  # fmt: skip
    assert f"{count} runs submitted" in done.stdout, done.stdout + done.stderr
    assert calls.count()["sbatch"] == 1
    deadline_s = time.monotonic() + 3000
    while True:
        before = calls.count()
        shown = slurm.module("status", str(sweep)).stdout
        assert calls.count() - before <= Counter(squeue=1, sacct=1)
        if f"{count} ok" in shown:
            break
        assert not re.search(r"^\d+: .*: (lost|failed|oom|interrupted)", shown, re.M), shown
        assert time.monotonic() < deadline_s
        time.sleep(5)
    made = records(sweep)
    assert len({record.run_id for record in made}) == count
    # They were allowed to share nodes, so some list other jobs.
    assert any(warning.code == "shared_node" for record in made for warning in record.warnings)
    for run in manifests.read(sweep).runs:
        assert len((sweep / run.folder / "attempts.jsonl").read_text().splitlines()) == 1


def test_documented_keys_of_the_plugin_reach_slurm(slurm: Cluster) -> None:
    done, sweep = slurm.sweep(*TINY, "batch=16", "site.partition=main", "site.exclusive=false",
                              "hydra.launcher.partition=low", "hydra.launcher.timeout_min=7",
                              "hydra.launcher.mem_gb=2", "hydra.launcher.cpus_per_task=3",
                              "hydra.launcher.setup=['export DPEVAL_NOTE=1']",
                              "hydra.launcher.additional_parameters={comment: note}")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    fields = "Partition,TimelimitRaw,ReqMem,ReqCPUS"
    shown = slurm.run("sacct", "-n", "-X", "-P", "-o", fields, "-j", job_ids(sweep)[0]).stdout
    assert shown.strip() == "low|7|2G|3"
    script = next((sweep / ".submitit").glob("*submission.sh")).read_text()
    assert "export DPEVAL_NOTE=1" in script
    assert "--comment=note" in script


def test_the_plugins_own_launcher_prints_what_was_measured(slurm: Cluster) -> None:
    done = slurm.module("train", "-m", "hydra/launcher=submitit_slurm", "study=plugin",
                        *(word for word in TINY if "launcher.pack" not in word),
                        "batch=16,32", "hydra.launcher.timeout_min=5",
                        "hydra.launcher.mem_gb=3")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "batch 16" in done.stdout
    assert "batch 32" in done.stdout
    paths = slurm.work.glob("outputs/plugin/*/*/metrics.json")
    found = [read(path) for path in sorted(paths)]
    assert [record.status for record in found] == ["ok", "ok"]
    assert all(record.scheduler and record.scheduler.kind == "slurm" for record in found)


GPUS = (*TINY, "hardware=gpu", "hardware.oversubscribe=false", "batch=16",
        "hydra.launcher.wait=false", "+site.options.hold=true")  # fmt: skip
"""A request that SLURM accepts; its job never starts."""


def shown_job(cluster: Cluster, job_id: str) -> dict[str, str]:
    """What SLURM shows of a job."""
    text = cluster.run("scontrol", "show", "job", "-o", job_id).stdout
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def test_a_site_as_shipped_reaches_slurm(slurm: Cluster) -> None:
    slurm.environment["SCRATCH"] = str(slurm.work)
    done, sweep = slurm.sweep("site=jean_zay", "site.account=project@v100", *GPUS,
                              "num_devices=2", "hydra.launcher.prepare=none")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    shown = shown_job(slurm, *job_ids(sweep))
    asked = {key: shown[key] for key in ("Account", "Features", "TresPerNode", "MinCPUsNode")}
    assert asked == {
        "Account": "project@v100", "Features": "v100-32g", "TresPerNode": "gres:gpu:2",
        "MinCPUsNode": "20",
    }  # fmt: skip
    script = next((sweep / ".submitit").glob("*submission.sh")).read_text()
    assert "#SBATCH --hint=nomultithread" in script.splitlines()
    slurm.run("scancel", *job_ids(sweep))


def test_resume_asks_for_what_waits_on_another_kind_of_gpu(slurm: Cluster) -> None:
    """A dry run, which submits nothing."""
    a100 = ("hydra.launcher.constraint=a100", "hydra.launcher.gres=gpu:a100:1")
    done, sweep = slurm.sweep(*GPUS, *a100)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = shown_job(slurm, *job_ids(sweep))
    assert (shown["TresPerNode"], shown["Features"]) == ("gres:gpu:a100:1", "a100")
    command = ("train", "-m", "hydra/launcher=slurm", *GPUS, f"sweep.resume={sweep}",
               "hydra.launcher.dry_run=true")  # fmt: skip
    before = known_jobs(slurm)
    same = slurm.module(*command, *a100)
    assert "0 runs in 0 jobs" in same.stdout, same.stdout + same.stderr
    other = slurm.module(*command, "num_devices=1,2", "site.gpu_type=v100")
    assert other.returncode == 0, other.stderr
    for gpus in (1, 2):
        assert f"#SBATCH --gpus-per-node=v100:{gpus}" in other.stdout
    assert "2 runs in 2 jobs; nothing was submitted" in other.stdout
    assert "device-hours" in other.stdout
    # The order is arbitrary and old jobs disappear; only a new job would be wrong.
    assert known_jobs(slurm) <= before
    assert not list(slurm.work.glob("outputs/*/*/*/metrics.json"))
    slurm.run("scancel", *job_ids(sweep))


def test_resume_ends_the_job_of_a_submission_that_was_killed(slurm: Cluster) -> None:
    sbatch = shutil.which("sbatch")
    killed = with_commands(slurm, sbatch=f'{sbatch} "$@"; kill -KILL $PPID')
    command = (*LONG, "batch=16", "hydra.launcher.wait=false", "+site.options.hold=true")
    before = known_jobs(slurm)
    done, first = killed.sweep(*command)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    [stray] = known_jobs(slurm) - before
    again, second = slurm.sweep(*command, f"sweep.resume={first}")
    assert re.search(rf"^jobs of .* ended .*: {stray}$", again.stdout, re.MULTILINE), again.stdout
    wait_until(
        lambda: (
            slurm.run("squeue", "-h", "-t", "all", "-j", stray, "-o", "%T").stdout.strip()
            == "CANCELLED"
        ),
        60,
        lambda: "the job is cancelled",
    )
    assert len(job_ids(second)) == 1
    slurm.run("scancel", *job_ids(second))
