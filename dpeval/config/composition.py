"""From what Hydra composed to a checked, frozen configuration."""

from __future__ import annotations

import dataclasses
import re

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from dpeval.config.schema import (
    Config,
    DatasetConfig,
    HardwareConfig,
    MeasureConfig,
    MemoryConfig,
    ModelConfig,
    OptimizerConfig,
    ScalingConfig,
    StrategyConfig,
    SweepConfig,
)
from dpeval.config.validation import check
from dpeval.errors import ConfigError, nearest

GROUPS: dict[str, type] = {
    "hardware": HardwareConfig,
    "model": ModelConfig,
    "dataset": DatasetConfig,
    "scaling": ScalingConfig,
    "strategy": StrategyConfig,
    "optimizer": OptimizerConfig,
    "measure": MeasureConfig,
    "memory": MemoryConfig,
    "sweep": SweepConfig,
}

SCHEMA_NAME = "dpeval_schema"


def register_schema() -> None:
    """Make the typed schema known to Hydra under :data:`SCHEMA_NAME`."""
    schema = OmegaConf.structured(Config)
    _thaw(schema)
    ConfigStore.instance().store(name=SCHEMA_NAME, node=schema)


def _thaw(node: DictConfig) -> None:
    """Let Hydra merge YAML into the schema: OmegaConf makes frozen dataclasses read-only.

    Arguments for a model or an optimizer are open: what keys they have, their callable knows.
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
        ConfigError: an interpolation, type, bound or rule does not hold; one line naming the
            key, its value and the nearest valid choice.
    """
    _check_known(composed, Config, "")
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise ConfigError(wording(error)) from error
    if not isinstance(config, Config):
        raise TypeError(f"composed onto {type(config)}, not onto the schema")
    check(config)
    return config


def wording(error: OmegaConfBaseException) -> str:
    """What OmegaConf found wrong, in one line that begins with the key."""
    key = error.full_key or ""
    if isinstance(error, MissingMandatoryValue):
        return f"{key} has no value; give one with {key}=…"
    found = re.match(r"Key '[^']+' (?:is )?not in '\w+'", str(error))
    if found:
        return f"there is no key '{key}'{nearest(key, all_keys())}"
    return f"{key}: {str(error).strip().splitlines()[0]}"


def all_keys(node: type | None = None, prefix: str = "") -> list[str]:
    """Every key that a user can write, dotted."""
    keys: list[str] = []
    for item in dataclasses.fields(node or Config):
        keys.append(f"{prefix}{item.name}")
        inner = GROUPS.get(item.name) if node is None else None
        if inner is not None:
            keys += all_keys(inner, f"{item.name}.")
    return keys


def _check_known(composed: DictConfig, node: type, prefix: str) -> None:
    """Refuse keys that were added with ``+``: the schema alone says what there is."""
    known = {item.name for item in dataclasses.fields(node)}
    for key in map(str, composed):
        name = f"{prefix}{key}"
        if key not in known:
            raise ConfigError(f"there is no key '{name}'{nearest(name, all_keys())}")
        if not prefix and key in GROUPS and not OmegaConf.is_missing(composed, key):
            _check_known(composed[key], GROUPS[key], f"{key}.")
