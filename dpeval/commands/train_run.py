"""Training from the command line: one run, or a sweep through a launcher."""

from __future__ import annotations

import contextlib
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from dpeval.commands import hydra_app
from dpeval.commands.main import raise_for_status
from dpeval.config import check_script, from_hydra
from dpeval.errors import ConfigError, DpevalError, RunFailed
from dpeval.launchers.dry_run import describe_local
from dpeval.launchers.in_job.plugin_job import run_plugin_job
from dpeval.launchers.tracking.local_process import LocalSweep
from dpeval.record.schema import Record
from dpeval.run import forkserver
from dpeval.system import limits
from dpeval.util.paths import shown


def train() -> None:
    """Run what the command line specifies.

    Raises:
        DpevalError: nothing could be started, or some runs failed.
    """
    records: list[Record] = []
    errors: list[DpevalError] = []

    def task(composed: DictConfig) -> None:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            # dpeval's launchers execute runs themselves and never call this.
            run_plugin_job(composed)
            return
        # Hydra prints a traceback for anything that a task raises, so user errors must not leave
        # it.
        try:
            records.extend(run_one(composed))
        except DpevalError as error:
            errors.append(error)

    hydra_app.run(task)
    if errors:
        raise errors[0]
    raise_for_status(records)


def run_one(composed: DictConfig) -> list[Record]:
    """Run the one composed configuration in Hydra's output folder.

    Returns:
        Its record; nothing for a dry run.

    Raises:
        ConfigError, MachineError, DataError: before anything starts.
        RunFailed: the record could not be written to its folder.
    """
    config = from_hydra(composed)
    hydra_config = HydraConfig.get()
    check_script(config, hydra_config.overrides.task)
    if config.repeat > 1 and hydra_config.mode == RunMode.RUN:
        raise ConfigError(
            f"repeat={config.repeat} repeats every configuration of a sweep, interleaved; "
            "add -m to make this a sweep"
        )
    launcher = hydra_config.runtime.choices["hydra/launcher"]
    if launcher != "local":
        raise ConfigError(
            f"hydra/launcher={launcher} launches sweeps, but this is a single run; add -m to "
            "make it a sweep of one run, or leave the launcher out"
        )
    limits.check()
    # Late: this imports torch, which takes seconds; mistakes must be reported at once.
    forkserver.warm_up()
    from dpeval.run import console
    from dpeval.run.session import Session

    reporter = console.make_reporter()
    folder = Path(hydra_config.runtime.output_dir)
    # With hydra.job.chdir=true, this is the run's folder, not that of the user's paths.
    with contextlib.chdir(hydra_config.runtime.cwd):
        session = Session(reporter)
        job = session.job(config, folder, list(hydra_config.overrides.task))
        if hydra_config.launcher.get("dry_run", False):
            reporter.say(describe_local([job]))
            return []
        session.require_any([job])
        session.prepare_all([job])
    overrides = list(map(str, hydra_config.overrides.task))
    label = " ".join(overrides) or "run"
    own = LocalSweep({folder: config}, {folder: overrides}, folder, {folder: label}, {})
    own.start([folder])
    with reporter:
        record = session.execute(job)
        reporter.one(record, job.folder)
    if session.files.elsewhere:
        own.note_elsewhere(session.files.elsewhere)
        raise RunFailed(f"no record in {shown(folder)}; what was measured is shown above")
    return [record]
