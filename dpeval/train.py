"""``python -m dpeval.train``: train with data parallelism, measure it, leave a record."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from dpeval.record.schema import Record


def run_one(composed: DictConfig) -> Record:
    """Run the one composed configuration in Hydra's output folder and return its record.

    Raises:
        ConfigError, MachineError, DataError: before anything starts.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from dpeval.config import from_hydra
    from dpeval.errors import ConfigError
    from dpeval.run import console
    from dpeval.run.session import Session

    config = from_hydra(composed)
    hydra_config = HydraConfig.get()
    if config.repeat > 1 and hydra_config.mode == RunMode.RUN:
        raise ConfigError(
            f"repeat={config.repeat} repeats every configuration of a sweep, interleaved; "
            "add -m to make this a sweep"
        )
    reporter = console.make_reporter()
    session = Session(reporter)
    folder = Path(hydra_config.runtime.output_dir)
    job = session.job(config, folder, list(hydra_config.overrides.task))
    session.require_any([job])
    session.prepare_all([job])
    with reporter:
        record = session.execute(job)
        reporter.one(record, job.folder)
    return record


def main() -> int:
    """The command line; returns the exit status."""
    import hydra

    from dpeval import cli
    from dpeval.errors import DpevalError
    from dpeval.run import console

    def command() -> None:
        records: list[Record] = []
        errors: list[DpevalError] = []

        def task(composed: DictConfig) -> None:
            # Hydra prints a trace of what a task raises, so nothing a user caused may leave it.
            try:
                records.append(run_one(composed))
            except DpevalError as error:
                errors.append(error)

        cli.register()
        start = hydra.main(
            version_base="1.3", config_path=str(cli.conf_dir()), config_name="config"
        )
        start(task)()
        if errors:
            raise errors[0]
        console.raise_for(records, len(records))

    return cli.run_main(command)


if __name__ == "__main__":
    sys.exit(main())
