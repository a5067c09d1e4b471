"""Paths in messages."""

from __future__ import annotations

from pathlib import Path


def shown(path: Path) -> Path:
    """`path` as a user would type it here: relative to the working directory if it lies below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
