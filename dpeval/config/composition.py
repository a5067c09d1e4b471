"""Turns the config that Hydra composed into a checked, frozen configuration."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from typing import get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from dpeval.config.schema import Config
from dpeval.config.suggestions import suggest_key
from dpeval.config.tasks import with_content
from dpeval.config.validation import check
from dpeval.errors import ConfigError

SCHEMA_NAME = "dpeval_schema"

FORMER_TARGETS = {
    "dpeval.models.torchvision_classifier": "dpeval.components.torchvision_classifier",
    "dpeval.calibrated.build": "dpeval.components.calibrated_model",
    "dpeval.calibrated.source": "dpeval.components.calibrated_source",
    "dpeval.strategies.ddp": "dpeval.components.ddp",
    "dpeval.strategies.none": "dpeval.components.single_device",
}
"""Former ``_target_`` values, which users' YAML files may still hold."""


def register_schema() -> None:
    """Register the typed schema with Hydra as :data:`SCHEMA_NAME`."""
    schema = OmegaConf.structured(Config)
    _thaw(schema)
    ConfigStore.instance().store(name=SCHEMA_NAME, node=schema)


def _thaw(node: DictConfig) -> None:
    """Let Hydra merge YAML into the schema: OmegaConf makes frozen dataclasses read-only.

    ``args`` mappings accept any key; the callable that receives them decides.
    """
    OmegaConf.set_readonly(node, None)
    if OmegaConf.get_type(node) is dict:
        OmegaConf.set_struct(node, False)
    for key in node:
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            _thaw(node[key])


def from_hydra(composed: DictConfig) -> Config:
    """Turn a composed Hydra config into a checked, frozen :class:`Config`.

    Raises:
        ConfigError: an interpolation fails, or a type, bound or rule is violated. The message is
            one line with the key, its value and the nearest valid choice.
    """
    _check_known(composed)
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise ConfigError(describe_error(error)) from error
    if not isinstance(config, Config):
        raise TypeError(f"Hydra composed a {type(config)} instead of a Config")
    config = with_content(_with_current_targets(config))
    check(config)
    return config


def _with_current_targets(config: Config) -> Config:
    """Replace former targets with current ones, so that both give a run the same identity."""

    changed = {
        name: dataclasses.replace(group, _target_=FORMER_TARGETS[group._target_])
        for name in ("model", "dataset", "strategy")
        if (group := getattr(config, name))._target_ in FORMER_TARGETS
    }
    return dataclasses.replace(config, **changed)


_KINDS = {"Integer": "a whole number", "Float": "a number", "valid bool": "true or false"}
_UNLIKE = re.compile(
    rf"Value '(.*?)' (?:.*could not be converted to|is not a) ({'|'.join(_KINDS)})"
)
_WANTED = {
    "is not Optional": "have a value other than null",
    "is not a ListConfig": "be a list, such as [a,b]",
    " to Dict[": "be keys with values, such as {a: 1}",
}
"""What a key must do, by the words with which OmegaConf rejects a value."""


def describe_error(error: OmegaConfBaseException) -> str:
    """An OmegaConf error as one line that names the key."""
    key = error.full_key or ""
    if isinstance(error, MissingMandatoryValue):
        return f"{key} has no value; set it with {key}=…"
    if re.match(r"Key '[^']+' (?:is )?not in ", str(error)):
        siblings = map(str, error.parent_node or ())
        return f"there is no key '{key}'{suggest_key(key, list(siblings), all_keys())}"
    if "does not support deletion" in str(error):
        return f"'{key}' cannot be deleted; set it with {key}=…"
    text = str(error).strip().splitlines()[0]
    if unlike := _UNLIKE.match(text):
        return f"{key}={unlike[1]} is not {_KINDS[unlike[2]]}"
    wanted = next((wanted for words, wanted in _WANTED.items() if words in text), None)
    return f"{key}: {text}" if wanted is None else f"{key} must {wanted}"


def all_keys(node: type = Config, prefix: str = "") -> list[str]:
    """Every key that a user can set, dotted."""
    keys: list[str] = []
    for name, group in _fields(node).items():
        keys.append(f"{prefix}{name}")
        if group is not None:
            keys += all_keys(group, f"{prefix}{name}.")
    return keys


@cache
def _fields(node: type) -> dict[str, type | None]:
    """Maps each key of a dataclass to its nested dataclass, or to None if it is not a group."""
    hints = get_type_hints(node)
    return {
        item.name: hints[item.name] if dataclasses.is_dataclass(hints[item.name]) else None
        for item in dataclasses.fields(node)
    }


def _check_known(composed: DictConfig, node: type = Config, prefix: str = "") -> None:
    """Reject keys added with ``+``: only the schema defines keys.

    Args:
        composed: the composed config for `node`.
        node: the dataclass that defines the keys.
        prefix: the dotted path of `node`, with a trailing dot.

    Raises:
        ConfigError: a key is unknown.
    """
    fields = _fields(node)
    for name in map(str, composed):
        if name not in fields:
            key = f"{prefix}{name}"
            raise ConfigError(f"there is no key '{key}'{suggest_key(key, [*fields], all_keys())}")
    for name, group in fields.items():
        if group is not None:
            _check_known(composed[name], group, f"{prefix}{name}.")
