"""Paths in messages."""

from __future__ import annotations

from pathlib import Path


def shown(path: Path) -> Path:
    """`path` as a user would type it: relative to the working directory if it is below it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
