"""Which configurations measure the same thing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from dpeval.config.schema import Config

OUTPUT_KEYS = ("study", "repeat", "analyze", "sweep", "site")
"""Keys that say where results go and not what is measured: no part of a run's identity."""


def to_plain(config: Config) -> dict[str, Any]:
    """The configuration as plain JSON-able containers, key for key."""
    return dataclasses.asdict(config)


def identity(config: Config) -> str:
    """Hash of everything that decides what is measured (16 hex digits of SHA-256).

    Two runs with one identity are repetitions of one another only if their `repetition` is
    equal too; keys that only say where output goes (:data:`OUTPUT_KEYS`) do not count.
    """
    plain = {key: value for key, value in to_plain(config).items() if key not in OUTPUT_KEYS}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
