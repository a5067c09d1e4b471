"""Exports every record below some folders, each once."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from dpeval import record
from dpeval.analysis.export.contents import contents
from dpeval.analysis.frame import runs_frame
from dpeval.errors import ConfigError, MachineError, RecordError

TOOLS = ("mlflow", "tensorboard", "wandb")
DONE = "exported.txt"
"""Identifiers of the runs that were exported, one a line, beside what was written of them."""


@dataclass(frozen=True)
class Exported:
    """What an export did."""

    folder: Path
    runs: int
    earlier: int
    """Runs that an earlier export wrote."""
    problems: list[str]
    """Files that could not be read."""
    look: str
    """The command that shows the runs."""


def export(paths: Sequence[Path], tool: str, out: Path | None = None) -> Exported:
    """Write every record below `paths` as one run of `tool`.

    Args:
        paths: folders with records.
        tool: one of :data:`TOOLS`.
        out: where to write; default: ``analysis`` below the first of `paths`.

    Raises:
        ConfigError: a folder does not exist, or there is no record.
        MachineError: `tool` is not installed.
    """
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path} does not exist; give the folder of a sweep")
    writer = _writer(tool)
    folder = (out or paths[0] / "analysis") / writer.WHERE
    done = folder / DONE
    before = set(done.read_text().split()) if done.is_file() else set()
    written, earlier, problems = 0, 0, list[str]()
    for path in runs_frame.find(paths):
        try:
            run = record.read(path)
        except RecordError as error:
            problems.append(str(error))
            continue
        if run.run_id in before:
            earlier += 1
            continue
        writer.write(contents(run, path), folder)
        before.add(run.run_id)
        with done.open("a") as file:  # after each: an interrupted export goes on where it was
            file.write(f"{run.run_id}\n")
        written += 1
    if not written + earlier:
        why = f": {problems[0]}" if problems else ""
        raise ConfigError(f"there is no readable metrics.json below {paths[0]}{why}")
    return Exported(folder, written, earlier, problems, writer.LOOK.format(folder))


def _writer(tool: str) -> ModuleType:
    try:
        return importlib.import_module(f"dpeval.analysis.export.to_{tool}")
    except ImportError as error:
        raise MachineError(
            f"--to {tool} needs a package that is not installed ({error.name}); "
            "install it with: pip install 'dpeval[export]'"
        ) from error
