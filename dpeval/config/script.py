"""What ``task=script`` runs: its rules, and the arguments of one rank."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path

from dpeval.config.identity import LEFT_TO_SCRIPT
from dpeval.config.schema import SCRIPT, Config
from dpeval.errors import ConfigError

PLACEHOLDERS = ("batch", "global_batch_size", "per_device_batch_size", "world_size", "seed")
"""What may stand in braces in ``task.args``."""
_WITHOUT_EFFECT = frozenset(["model", "memory", *LEFT_TO_SCRIPT])
_IN_BRACES = re.compile(r"\{([a-z_]+)\}")


def check_task(config: Config) -> None:
    """Check the rules of ``task``.

    Raises:
        ConfigError: the script is named twice or not at all, or a key does not apply to it.
    """
    task = config.task
    if not task.is_script:
        for key in ("script", "module"):
            value = getattr(task, key)
            if value is not None:
                raise ConfigError(f"task.{key}={value} needs task=script")
        return
    if (task.script is None) == (task.module is None):
        raise ConfigError(
            "task=script runs one script; set task.script=train.py, or task.module=package.train"
        )
    if config.baseline == "serial":
        raise ConfigError(
            "baseline=serial leaves out the strategy, which task=script does not know; "
            "use baseline=same"
        )
    for argument in task.args:
        for name in _IN_BRACES.findall(argument):
            # Other braces are the script's own: a template for the names of checkpoints.
            match = get_close_matches(name, PLACEHOLDERS, n=1, cutoff=0.75)
            if match and name not in PLACEHOLDERS:
                raise ConfigError(
                    f"task.args: there is no placeholder {{{name}}}; did you mean {{{match[0]}}}?"
                )


def check_script(config: Config, overrides: Iterable[str]) -> None:
    """Check, where a run is asked for, that its script is there and that no key is in vain.

    Args:
        config: the run.
        overrides: the user's overrides of the defaults.

    Raises:
        ConfigError: there is no such script, or an override does not apply to scripts.
    """
    task = config.task
    if not task.is_script:
        return
    for override in overrides:
        key = re.split(r"[=.@]", override.lstrip("+~"), maxsplit=1)[0]
        if key in _WITHOUT_EFFECT:
            raise ConfigError(
                f"{override} has no effect with task=script: the script decides that itself; "
                "tell it with task.args"
            )
    if task.script is not None and not Path(task.script).is_file():
        raise ConfigError(
            f"task.script={task.script}: there is no such file in {Path.cwd()}; "
            "give a path relative to it, or an absolute one"
        )
    if task.module is not None and not _is_importable(task.module):
        raise ConfigError(
            f"task.module={task.module} cannot be found from {Path.cwd()}; give the name that "
            f"python -m takes, or task.{SCRIPT}=FILE"
        )


def _is_importable(module: str) -> bool:
    # The outermost package alone: finding what is inside would import it.
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def fill_in(args: Iterable[str], values: Mapping[str, int]) -> list[str]:
    """`args` with ``{name}`` replaced by the value of that name; other braces stay."""

    def replaced(match: re.Match[str]) -> str:
        return str(values.get(match[1], match[0]))

    return [_IN_BRACES.sub(replaced, argument) for argument in args]
