"""The rules of ``task``, the content of a script, and the arguments of one of its ranks."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path

from dpeval.config.schema import CALLABLE, CAUSAL_LM, SCRIPT, Config, TaskConfig
from dpeval.errors import ConfigError

PLACEHOLDERS = ("batch", "global_batch_size", "per_device_batch_size", "world_size", "seed")
"""What may stand in braces in ``task.args``."""
LEFT_TO_SCRIPT = (
    "dataset", "optimizer", "strategy", "precision", "memory_format", "compile", "deterministic",
)  # fmt: skip
"""Keys that describe dpeval's own training; a script decides for itself."""
LEFT_TO_FUNCTION = ("dataset", "memory_format")
"""Those that a function of the user decides as well."""
OF_IMAGES = (
    "image_px", "size", "train_images", "loader", "loader_args", "augment", "delay_s",
)  # fmt: skip
"""Keys of ``dataset`` that describe images."""
OF_TOKENS = ("seq_len",)
"""Keys of ``dataset`` that describe tokens."""
_WITHOUT_EFFECT = {
    SCRIPT: ("model", "memory", *LEFT_TO_SCRIPT),
    CALLABLE: ("model", "memory", *LEFT_TO_FUNCTION),
    CAUSAL_LM: ("memory_format", *(f"dataset.{key}" for key in OF_IMAGES)),
}
_TELL = {
    SCRIPT: ": the script decides that itself; tell it with task.args",
    CALLABLE: ": the function decides that itself; tell it with task.kwargs",
    CAUSAL_LM: ": it is about images",
}
_KEYS = {"script": SCRIPT, "module": SCRIPT, "args": SCRIPT, "function": CALLABLE,
         "kwargs": CALLABLE}  # fmt: skip
"""Which task each key of ``task`` belongs to."""
_IN_BRACES = re.compile(r"\{([a-z_]+)\}")


def check_task(config: Config) -> None:
    """Check the rules of ``task``.

    Raises:
        ConfigError: what is to be run is named twice or not at all, or a key does not apply to it.
    """
    task = config.task
    for key, kind in _KEYS.items():
        value = getattr(task, key)
        if value and task.kind != kind:
            raise ConfigError(f"task.{key}={value} needs task={kind}")
    if task.kind == CALLABLE and task.function is None:
        raise ConfigError(
            "task=callable trains what a function of yours returns; set "
            "task.function=package.module.name"
        )
    if task.is_script:
        _check_script_keys(config)


def _check_script_keys(config: Config) -> None:
    task = config.task
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
        ConfigError: there is no such script, or an override does not apply to the task.
    """
    task = config.task
    in_vain = _WITHOUT_EFFECT.get(task.kind, ())
    for override in overrides:
        key = re.split(r"[=@]", override.lstrip("+~"), maxsplit=1)[0]
        if any(key == one or key.startswith(f"{one}.") for one in in_vain):
            raise ConfigError(f"{override} has no effect with task={task.kind}{_TELL[task.kind]}")
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


def with_content(config: Config) -> Config:
    """`config` with the hash of the file that its task runs, if there is one."""
    file = _file_of(config.task)
    try:
        content = file.read_bytes() if file is not None else b""
    except OSError:
        content = b""  # told when the run is asked for
    if not content:
        return config
    task = dataclasses.replace(config.task, content=hashlib.sha256(content).hexdigest()[:16])
    return dataclasses.replace(config, task=task)


def _file_of(task: TaskConfig) -> Path | None:
    """The file of a script, of a module, or of a function's module."""
    if task.script is not None:
        return Path(task.script)
    module = task.function.rpartition(".")[0] if task.function is not None else task.module
    return _module_file(module) if module else None


def _module_file(module: str) -> Path | None:
    """The file of `module`, found without importing the packages that it is in."""
    outermost, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(outermost)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    if not inner:
        return Path(spec.origin)
    path = Path(spec.origin).parent.joinpath(*inner)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def fill_in(args: Iterable[str], values: Mapping[str, int]) -> list[str]:
    """`args` with ``{name}`` replaced by the value of that name; other braces stay."""

    def replaced(match: re.Match[str]) -> str:
        return str(values.get(match[1], match[0]))

    return [_IN_BRACES.sub(replaced, argument) for argument in args]
