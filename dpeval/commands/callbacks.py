"""The start and the end of a run or sweep, whichever launcher runs it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from dpeval import record
from dpeval.commands.main import raise_for_status
from dpeval.errors import LaunchError, RunFailed
from dpeval.launchers.folders import claim_run, claim_sweep
from dpeval.launchers.in_job.run_job import rebuild
from dpeval.launchers.sweeper import is_own
from dpeval.launchers.tracking import manifest as manifests
from dpeval.run.console import summary_table
from dpeval.util.display.plural import some_of
from dpeval.util.display.tables import make_console
from dpeval.util.paths import shown


class LeaveHydra(BaseException):
    """Carries an error out of a callback, because Hydra turns Exceptions there into warnings."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@contextlib.contextmanager
def leaving_hydra() -> Iterator[None]:
    """Carry an exception raised here out of Hydra unchanged.

    Raises:
        LeaveHydra: carries the exception.
    """
    try:
        yield
    except Exception as error:
        raise LeaveHydra(error) from error


class SweepEnd(Callback):
    """Hydra's callback of every run and sweep (``hydra.callbacks`` in ``conf/config.yaml``)."""

    def __init__(self) -> None:
        self._lock: int | None = None
        """Keeps the folder claimed until this process ends."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Claim the folder of a single run.

        Raises:
            LeaveHydra: carries a DpevalError: the folder cannot be used.
        """
        with leaving_hydra():
            self._lock = claim_run(config)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Claim the folder of a sweep.

        Raises:
            LeaveHydra: carries a DpevalError: the folder cannot be used.
        """
        with leaving_hydra():
            self._lock = claim_sweep(config)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Analyse the sweep, unless jobs of it have yet to run.

        Raises:
            LeaveHydra: carries a DpevalError (some runs failed, records cannot be analysed) or a
                bug.
        """
        launcher = config.hydra.launcher
        if launcher.get("dry_run", False) or not launcher.get("wait", True):
            return
        with leaving_hydra():
            end_sweep(
                Path(str(config.hydra.sweep.dir)),
                bool(config.analyze),
                show=not is_own(launcher),
                spread=config.get("run_spread"),
            )


def end_sweep(sweep_dir: Path, analyze: bool, show: bool, spread: float | None = None) -> None:
    """Analyse the records below `sweep_dir`, then raise if not all runs were measured.

    Args:
        sweep_dir: the sweep's folder.
        analyze: draw figures and write the report.
        show: print what was measured if nothing is analysed, as dpeval's own launchers do.
        spread: between runs, where repetitions do not show it; None: the assumed one.

    Raises:
        RunFailed, RunInterrupted: see :func:`dpeval.commands.main.raise_for_status`.
    """
    paths = sorted(record.below(sweep_dir), key=lambda path: (len(path.parent.name), path))
    records = [record.read(path) for path in paths]
    missing = without_record(sweep_dir)
    if not records and not missing:
        return  # every run was left out, since an earlier sweep had measured it
    if show and not analyze:
        console = make_console()
        console.print(summary_table([rebuild(one.config) for one in records], records))
        console.print(f"records: {shown(sweep_dir)}", markup=False)
    if analyze and records:
        # Late: pandas and matplotlib take a second to import.
        from dpeval.analysis import pipeline

        pipeline.analyze([shown(sweep_dir)], options=pipeline.Options(spread=spread))
    raise_for_status(records, are_told=analyze)
    if missing:
        raise RunFailed(
            f"{some_of(len(missing), len(records) + len(missing), 'run')} left no record in "
            f"{' '.join(str(shown(folder)) for folder in missing)}; the messages above say where "
            "what was measured is"
        )


def without_record(sweep_dir: Path) -> list[Path]:
    """The folders of a local sweep's runs that should hold a record and do not."""
    try:
        manifest = manifests.read(sweep_dir)
    except LaunchError:
        return []
    if manifest.process is None:
        return []
    folders = [sweep_dir / run.folder for run in manifest.runs if run.left_out is None]
    return [folder for folder in folders if not (folder / record.FILE_NAME).exists()]
