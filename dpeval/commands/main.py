"""Reports errors in one line and turns them into the exit status of a command."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches

from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import OmegaConfBaseException

from dpeval.config import describe_error
from dpeval.config.suggestions import suggest_value
from dpeval.errors import ConfigError, DpevalError, RunFailed, RunInterrupted
from dpeval.record.schema import Record
from dpeval.system.faults import of_system
from dpeval.system.processes.signals import interrupting
from dpeval.util import entry
from dpeval.util.cpus import allowed_cpus
from dpeval.util.display import output
from dpeval.util.display.plural import counted, some_of
from dpeval.util.paths import conf_dir


def run_main(function: Callable[[], object]) -> int:
    """Run a command; return its exit status. A user's mistake gives one line, a bug a traceback."""
    output.protect()
    entry.find_own_parts()
    # Otherwise Hydra prints errors itself and exits with status 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with interrupting():
            function()
    except KeyboardInterrupt:
        print("dpeval: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        told = explain(error)
        if told is None:
            raise
        print(f"dpeval: {told}", file=sys.stderr)
        return told.exit_status
    return 0


def explain(error: Exception) -> DpevalError | None:
    """The one-line message for `error`; None if it is a bug."""
    if isinstance(error, DpevalError):
        return error
    # First, because Hydra's MissingConfigException is an OSError too.
    if isinstance(error, HydraException | OmegaConfBaseException):
        cause = error.__cause__ or error.__context__
        return (of_system(cause) if isinstance(cause, OSError) else None) or translate(error)
    if isinstance(error, OSError):
        return of_system(error)
    if isinstance(error, ValueError) and is_users_mistake(error):
        return translate(error)
    return None


_WRONG_OPTION = "Config group override must be"
"""A value that cannot name an option of a group: hardware=3 or null."""
_TWO_FLAGS = "Only one of --run"
"""Two Hydra flags that exclude each other, such as -m --cfg job."""


def is_users_mistake(error: ValueError) -> bool:
    """Whether Hydra objects to the command line: for some mistakes it raises a plain exception."""
    return str(error).startswith((_WRONG_OPTION, _TWO_FLAGS, "The --resolve flag"))


def translate(error: Exception) -> ConfigError:
    """Turn an error of Hydra or OmegaConf into one line with the nearest valid choice."""
    chained = error.__cause__ or error.__context__
    cause = error if isinstance(error, OmegaConfBaseException) else chained
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    if isinstance(cause, DpevalError):
        return ConfigError(str(cause))  # from a launcher, which Hydra instantiates
    if isinstance(error, InstantiationException) and isinstance(chained, TypeError):
        return ConfigError(f"hydra/launcher does not accept its keys: {chained}")
    if isinstance(error, MissingConfigException):
        return ConfigError(_missing_option(error))
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"'{error.override}' is not of the form key=value{_form(error.override)}"
        )
    if first.startswith("Ambiguous value for argument"):
        asked = first.split("'")[1]
        return ConfigError(f"{asked} lists several values; add -m to sweep over them")
    if isinstance(cause, OmegaConfBaseException):
        place = re.search(r"In '([^']+)'", text)
        asked = first.removeprefix("Error merging override ")
        if place:
            return ConfigError(f"{describe_error(cause)} (in {place[1]}.yaml)")
        told = describe_error(cause)
        if cause.full_key == "num_devices":
            told += _available()
        given = f" (given: {asked})" if asked != first and asked not in told else ""
        return ConfigError(told + given)
    if first.startswith(_TWO_FLAGS):
        return ConfigError(f"{first}; -m is --multirun: to see one run with --cfg, leave it out")
    if first.startswith(_WRONG_OPTION):
        kind = first.rpartition(" ")[2]
        return ConfigError(
            f"a group, such as hardware, takes the name of an option, not a value of type {kind}; "
            "name an option, as in hardware=cpu"
        )
    if first.startswith(("Could not append to config", "Multiple values for", "force-add of")):
        return ConfigError(f"{first.rstrip('.')}; leave out the + before the key")
    if first.startswith("Could not delete from config"):
        return ConfigError(f"{first.rstrip('.')}; leave out the ~, or correct the key")
    return ConfigError(first)


_PLAIN = str.maketrans("“”„‟″‘’‚‛′–—−", '"' * 5 + "'" * 5 + "---")
"""What word processors and web pages make of quotes and dashes, and what the shell needs."""


def _form(override: str) -> str:
    """What to change in an override that Hydra cannot parse, if it can be determined."""
    plain = override.translate(_PLAIN)
    if plain != override:
        return f"; type its quotes and dashes on the keyboard: {plain}"
    key, equals, value = override.partition("=")
    if not equals:
        changed = override.replace(":", "=", 1)
        return f"; write {changed}" if ":" in override else _as_option(override)
    if key != key.rstrip() or value.startswith("="):
        return f"; write {key.rstrip()}={value.lstrip('= ')}"
    if re.fullmatch(r"[^\s\[{(\"']+(\s+[~+]*[a-z][\w./@]*=\S+)+", value):
        return f"; write each override as a word of its own: {override}, without quotes"
    if not key.isascii():
        return "; keys only contain the letters a to z"
    if value.endswith(","):
        return f"; remove the comma at its end: {override.rstrip(',')}"
    if value.count("(") != value.count(")") or value.count("[") != value.count("]"):
        return "; a bracket is not closed"
    # The shell removes one pair of quotes, and Hydra needs another.
    return f"""; put two pairs of quotes around the value: "{key}='{value}'\""""


def _as_option(word: str) -> str:
    """A hint if `word` is the name of an option of a group: densenet121, gpu."""
    groups = {path.stem: path.parent.name for path in conf_dir().glob("*/*.yaml")}
    near = get_close_matches(word, groups, n=1, cutoff=0.85)
    return f"; write {groups[near[0]]}={near[0]}" if near else ""


def _available() -> str:
    """How many devices num_devices can ask for here."""
    if any("hardware=gpu" in word for word in sys.argv):
        from dpeval.devices import cuda  # late: it imports torch

        count, what = len(cuda.cuda_gpus()), "GPU"
    else:
        count, what = len(allowed_cpus()), "CPU"
    return f"; give a number: this process may use {counted(count, what)}"


_NOT_OFFERED = {("hydra/launcher", "basic"), ("hydra/launcher", "scheduler")}
"""Options that exist for Hydra's sake: its own launcher, and what schedulers have in common."""


def _missing_option(error: MissingConfigException) -> str:
    wanted = str(error.missing_cfg_file or "?").removesuffix(".yaml")
    group, _, option = wanted.rpartition("/")
    options = [name for name in error.options or [] if (group, name) not in _NOT_OFFERED]
    if not group:
        return str(error).strip().splitlines()[0]
    message = f"{group}={option} is not one of {', '.join(options)}{suggest_value(option, options)}"
    if group == "optimizer":
        message += f" (any class of torch.optim: optimizer=torch optimizer.name={option})"
    if group == "model":
        message += f" (any torchvision classifier: model=torchvision model.name={option})"
    return message


_MOST_CAUSES = 3


def _is_stopped_by_user(record: Record) -> bool:
    # A provisional record (lost) is there because the final one could not be written.
    is_provisional = record.cause is not None and record.cause.kind == "lost"
    return record.status == "interrupted" and record.scheduler is None and not is_provisional


def raise_for_status(records: Sequence[Record], *, are_told: bool = False) -> None:
    """Raise if any of `records` has no measurement, so that the exit status shows it.

    Args:
        records: of all runs.
        are_told: whether the causes of failures stand in a table above.

    Raises:
        RunInterrupted: the user interrupted the work.
        RunFailed: runs failed, ran out of memory, or were killed by their scheduler.
    """
    if any(map(_is_stopped_by_user, records)):
        count = len(records)
        raise RunInterrupted(
            f"interrupted; what was measured is recorded ({counted(count, 'run')})"
        )
    bad = [record for record in records if record.status in ("failed", "oom", "interrupted")]
    if bad:
        failed = f"{some_of(len(bad), len(records), 'run')} failed"
        causes = sorted({record.cause.message for record in bad if record.cause is not None})
        if are_told or not causes:
            raise RunFailed(f"{failed}; the table above says why" * are_told or failed)
        more = len(causes) - _MOST_CAUSES
        shown = causes[:_MOST_CAUSES] + [counted(more, "more cause")] * (more > 0)
        raise RunFailed(f"{failed}: {'; '.join(shown)}")
