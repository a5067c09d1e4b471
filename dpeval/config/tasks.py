"""The rules of ``task``, the hash of a script, and the arguments of a script rank."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path

from dpeval.config.schema import CALLABLE, CAUSAL_LM, SCRIPT, Config, TaskConfig
from dpeval.errors import ConfigError

PLACEHOLDERS = ("batch", "global_batch_size", "per_device_batch_size", "world_size", "seed")
"""Names that are replaced in ``task.args`` when they appear in braces."""
LEFT_TO_SCRIPT = (
    "dataset", "optimizer", "strategy", "precision", "memory_format", "compile", "deterministic",
)  # fmt: skip
"""Keys that describe training by dpeval's loop; a user's script decides these itself."""
LEFT_TO_FUNCTION = ("dataset", "memory_format")
"""Keys that a user's function decides itself."""
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
    CAUSAL_LM: ": it applies to images only",
}
_KEYS = {"script": SCRIPT, "module": SCRIPT, "args": SCRIPT, "function": CALLABLE,
         "kwargs": CALLABLE}  # fmt: skip
"""Which task each key of ``task`` belongs to."""
_IN_BRACES = re.compile(r"\{([a-z_]+)\}")


def check_task(config: Config) -> None:
    """Check the rules of ``task``.

    Raises:
        ConfigError: the script or function is missing or given twice, or a key does not apply.
    """
    task = config.task
    for key, kind in _KEYS.items():
        value = getattr(task, key)
        if value and task.kind != kind:
            raise ConfigError(f"task.{key}={value} needs task={kind}")
    if task.kind == CALLABLE and task.function is None:
        raise ConfigError(
            "task=callable trains the model that your function returns; set "
            "task.function=package.module.name"
        )
    if task.is_script:
        _check_script_keys(config)


def _check_script_keys(config: Config) -> None:
    task = config.task
    if (task.script is None) == (task.module is None):
        raise ConfigError(
            "task=script needs exactly one of task.script=train.py and task.module=package.train"
        )
    if config.baseline == "serial":
        raise ConfigError(
            "baseline=serial removes the strategy, which a script (task=script) chooses itself; "
            "use baseline=same"
        )
    for argument in task.args:
        for name in _IN_BRACES.findall(argument):
            # Other names in braces belong to the script, such as a template for checkpoint names.
            match = get_close_matches(name, PLACEHOLDERS, n=1, cutoff=0.75)
            if match and name not in PLACEHOLDERS:
                raise ConfigError(
                    f"task.args: there is no placeholder {{{name}}}; did you mean {{{match[0]}}}?"
                )


def check_script(config: Config, overrides: Iterable[str]) -> None:
    """Check, when a run is requested, that its script exists and that no override is ignored.

    Args:
        config: the run.
        overrides: the overrides on the command line.

    Raises:
        ConfigError: the script does not exist, or an override does not apply to the task.
    """
    task = config.task
    in_vain = _WITHOUT_EFFECT.get(task.kind, ())
    for override in overrides:
        key = re.split(r"[=@]", override.lstrip("+~"), maxsplit=1)[0]
        if any(key == one or key.startswith(f"{one}.") for one in in_vain):
            raise ConfigError(f"{override} has no effect with task={task.kind}{_TELL[task.kind]}")
    if task.script is not None and not Path(task.script).is_file():
        raise ConfigError(
            f"task.script={task.script}: no such file in {Path.cwd()}; "
            "give an absolute path, or one relative to this folder"
        )
    if task.script is not None:
        _check_syntax(Path(task.script))
    if task.module is not None and not _is_importable(task.module):
        raise ConfigError(
            f"task.module={task.module} was not found from {Path.cwd()}; give a module name as for "
            f"python -m, or task.{SCRIPT}=FILE"
        )


def _check_syntax(script: Path) -> None:
    """Check that `script` is Python, which the ranks would notice only after they have started.

    Raises:
        ConfigError: it is not.
    """
    if zipfile.is_zipfile(script):
        return  # Python runs its __main__.py
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the script's own run shows them
            compile(script.read_bytes(), str(script), "exec", dont_inherit=True)
    except SyntaxError as error:
        place = f", line {error.lineno}" if error.lineno else ""
        raise ConfigError(f"task.script={script}{place}: {error.msg}; is it Python?") from error
    except ValueError as error:  # null bytes, before Python 3.12
        raise ConfigError(f"task.script={script}: {error}; is it Python?") from error
    except OSError as error:
        raise ConfigError(f"task.script={script}: {error.strerror}") from error


def _is_importable(module: str) -> bool:
    # Only the top-level package: looking up a submodule would import its parents.
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
        content = b""  # check_script reports it when the run is requested
    if not content:
        return config
    task = dataclasses.replace(config.task, content=hashlib.sha256(content).hexdigest()[:16])
    return dataclasses.replace(config, task=task)


def _file_of(task: TaskConfig) -> Path | None:
    """The file of the script or module, or of the module that defines the function."""
    if task.script is not None:
        return Path(task.script)
    module = task.function.rpartition(".")[0] if task.function is not None else task.module
    return _module_file(module) if module else None


def _module_file(module: str) -> Path | None:
    """The file of `module`, found without importing its parent packages."""
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
    """`args` with ``{name}`` replaced by the value of that name; other braces are left as they
    are."""

    def replaced(match: re.Match[str]) -> str:
        return str(values.get(match[1], match[0]))

    return [_IN_BRACES.sub(replaced, argument) for argument in args]
