"""A job whose runs take turns: each leaves a record, however the job ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from dpeval.commands.hydra_app import compose
from dpeval.launchers.tracking import job_spec
from dpeval.launchers.tracking.job_spec import JobSpec
from dpeval.record.io import FILE_NAME, read
from tests.multiprocess.conftest import ANNOUNCING, ranks_of, wait_for_none

ENDLESS = (
    *ANNOUNCING, "hardware.oversubscribe=true", "measure.rel_precision=4e-5",
    "measure.time_limit_s=250", "measure.max_steps=90000",
)  # fmt: skip
RUNS: Mapping[str, tuple[str, ...]] = {
    "endless": (*ENDLESS, "num_devices=1"),
    "failing": (*ENDLESS, "num_devices=2", "model.args.faults.fail_at_step=7"),
    "refused": (*ENDLESS, "hardware.memory_gib=0.001", "memory.on_excess=error"),
    "waiting": (*ENDLESS, "hardware.keep_memory=true"),  # on other hardware: a sitting of its own
}


def test_every_run_of_a_job_that_is_warned_leaves_a_record(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    for name, overrides in RUNS.items():
        spec = JobSpec.of("slurm", compose([*overrides]), overrides, requeue=0)
        job_spec.write(spec, tmp_path / name)
    command = [sys.executable, "-m", "dpeval.launchers.in_job.run_job", *RUNS]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=log, text=True
        )
        try:
            ranks = ranks_of(process, tmp_path, 1)
            process.send_signal(signal.SIGUSR2)  # the warning before the time limit
            status = process.wait(timeout=300)
        finally:
            process.kill()
    text = (tmp_path / "log").read_text()
    wait_for_none(ranks)
    assert status == 1, text
    assert "Traceback" not in text
    made = {name: read(tmp_path / name / FILE_NAME) for name in RUNS}
    assert {name: run.status for name, run in made.items()} == {
        "endless": "interrupted", "failing": "failed", "refused": "failed",
        "waiting": "interrupted",
    }  # fmt: skip
    causes = {name: run.cause.message for name, run in made.items() if run.cause is not None}
    assert made["endless"].throughput is not None, "what was measured is kept"
    assert "injected failure" in causes["failing"]
    assert "memory" in causes["refused"]
    assert causes["waiting"].startswith("not started")
    assert all(run.scheduler and run.scheduler.kind == "slurm" for run in made.values())
    assert not list(tmp_path.glob("*/progress.json"))
