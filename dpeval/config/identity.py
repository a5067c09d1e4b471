"""Identifies configurations that measure the same thing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from dpeval.config.schema import (
    CALLABLE,
    CAUSAL_LM,
    SCRIPT,
    Config,
    StrategyConfig,
    TaskConfig,
)
from dpeval.config.tasks import LEFT_TO_FUNCTION, LEFT_TO_SCRIPT, OF_IMAGES, OF_TOKENS

OUTPUT_KEYS = ("study", "repeat", "baseline", "analyze", "run_spread", "sweep", "site")
"""Keys that decide where results go and which runs a sweep has, not what one run measures; they
are not part of the identity."""

_LEFT = {SCRIPT: LEFT_TO_SCRIPT, CALLABLE: LEFT_TO_FUNCTION}
_NAMED = ("dataset", "strategy")
"""Of the groups that a task leaves to the user, those whose name tables and figures show."""


def to_plain(config: Config) -> dict[str, Any]:
    """The configuration as plain containers that JSON can hold, key for key.

    Keys that do not apply are left out: the default task (so that runs recorded before there were
    other tasks keep their identity), keys of ``dataset`` that belong to other tasks, and whatever
    the user's script or function decides.
    """
    plain = dataclasses.asdict(config)
    if config.task == TaskConfig():
        del plain["task"]
    for key in OF_IMAGES if config.task.kind == CAUSAL_LM else OF_TOKENS:
        del plain["dataset"][key]
    left = _LEFT.get(config.task.kind, ())
    if left:
        plain["model"] = {"name": config.model.name}
        named = {key: {"name": plain[key]["name"]} for key in _NAMED if key in left}
        plain = {key: value for key, value in plain.items() if key not in left} | named
    return plain


def identity(config: Config) -> str:
    """Hash of everything that decides what is measured: 16 hex digits of SHA-256.

    `repetition` is part of it, so repetitions of one configuration have different identities;
    :data:`OUTPUT_KEYS` are not.
    """
    plain = {key: value for key, value in to_plain(config).items() if key not in OUTPUT_KEYS}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def curve_of(config: Config) -> Config:
    """The scaling curve of a run: its configuration without device counts and strategy.  The runs
    of one curve are compared with each other."""
    return dataclasses.replace(config, num_devices=1, num_nodes=1, strategy=StrategyConfig())
