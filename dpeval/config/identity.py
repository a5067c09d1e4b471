"""Identifies configurations that measure the same thing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from dpeval.config.schema import Config

OUTPUT_KEYS = ("study", "repeat", "baseline", "analyze", "sweep", "site")
"""Keys that decide where results go and which runs a sweep has, not what one run measures; they
are not part of the identity."""


def to_plain(config: Config) -> dict[str, Any]:
    """The configuration as plain containers that JSON can hold, key for key."""
    return dataclasses.asdict(config)


def identity(config: Config) -> str:
    """Hash of everything that decides what is measured: 16 hex digits of SHA-256.

    `repetition` is part of it, so repetitions of one configuration have different identities;
    :data:`OUTPUT_KEYS` are not.
    """
    plain = {key: value for key, value in to_plain(config).items() if key not in OUTPUT_KEYS}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
