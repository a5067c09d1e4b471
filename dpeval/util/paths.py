"""Paths in messages, and of the package's own files."""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> Path:
    """The folder of the packaged YAML files: inside an installed package, beside it in a clone."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def shown(path: Path) -> Path:
    """`path` as a user would type it: relative to the working directory if it is below it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
