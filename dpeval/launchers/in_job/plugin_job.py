"""Run one job of a launcher that is not dpeval's, such as hydra-submitit-launcher's or Hydra's."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dpeval.config import from_hydra, nodes_asked
from dpeval.launchers.in_job.data_folder import point_at_scratch
from dpeval.launchers.in_job.execution import execute
from dpeval.launchers.in_job.job_signals import stop_on_warning
from dpeval.launchers.schedulers.registry import SCHEDULERS, scheduler
from dpeval.launchers.tracking.job_spec import JobSpec
from dpeval.record import schema
from dpeval.run.recording.record_files import RecordFiles


def run_plugin_job(composed: DictConfig) -> None:
    """Run one configuration in its output folder, and write its record there.

    Raises:
        ConfigError: the configuration is wrong.
    """
    hydra_config = HydraConfig.get()
    launcher = str(hydra_config.runtime.choices["hydra/launcher"])
    config = from_hydra(composed)
    point_at_scratch(config)
    folder = Path(hydra_config.runtime.output_dir)
    spec = JobSpec.of(launcher, config, tuple(hydra_config.overrides.task), requeue=0)
    job = _job(launcher, os.environ)
    if job is not None:
        asked = nodes_asked(
            dataclasses.asdict(config.site),
            cast("dict[str, object]", OmegaConf.to_container(hydra_config.launcher)),
        )
        job = job.model_copy(update={"nodes_asked": asked})
    # The user's paths start where the command was given, also with hydra.job.chdir=true.
    start = contextlib.chdir(hydra_config.runtime.cwd)
    with start, one_at_a_time(), _stop_before_time_limit(os.environ):
        made = execute(config, folder, spec, job)
    RecordFiles().keep(made.model_copy(update={"scheduler": job}), folder)


def _job(launcher: str, environment: Mapping[str, str]) -> schema.Scheduler | None:
    """The scheduler's job that this process belongs to, if ``submitit_<scheduler>`` started it."""
    name = launcher.removeprefix("submitit_")
    return scheduler(name).describe_job(environment) if name in SCHEDULERS else None


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Lock this machine: these launchers start several jobs at once, even on the same cores."""
    # Not $TMPDIR, which may differ from job to job.
    lock = FileLock(f"/tmp/dpeval-{os.getuid()}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("waiting: another run is being measured on this machine", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _stop_before_time_limit(environment: Mapping[str, str]) -> Iterator[None]:
    """In a job of submitit, stop the run in time to write its record."""
    if "SUBMITIT_EXECUTOR" not in environment:
        yield
        return
    with stop_on_warning():
        yield
