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

OUTPUT_KEYS = ("study", "repeat", "baseline", "analyze", "sweep", "site")
"""Keys that decide where results go and which runs a sweep has, not what one run measures; they
are not part of the identity."""

_LEFT = {SCRIPT: LEFT_TO_SCRIPT, CALLABLE: LEFT_TO_FUNCTION}
_NAMED = ("dataset", "strategy")
"""Groups that are left to the user, of which tables and figures show the name."""


def to_plain(config: Config) -> dict[str, Any]:
    """The configuration as plain containers that JSON can hold, key for key.

    Without what does not apply: the task, if it is the default one (so the identity of such a run
    stays what it was before there were others), keys of ``dataset`` for other tasks, and what a
    script or a function decides for itself.
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
    """The scaling curve of a run: all but its devices and strategy. Its runs are compared."""
    return dataclasses.replace(config, num_devices=1, num_nodes=1, strategy=StrategyConfig())
