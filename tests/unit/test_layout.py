"""Packages and modules stay small enough to be read at a glance."""

from __future__ import annotations

from pathlib import Path

import dpeval

ROOT = Path(dpeval.__file__).parent
MOST_MODULES = 10
MOST_LINES = 400


def test_no_package_holds_more_than_ten_modules() -> None:
    packages = [ROOT, *(path.parent for path in ROOT.rglob("__init__.py"))]
    counts = {
        str(package.relative_to(ROOT)): len(set(package.glob("*.py")) - {package / "__init__.py"})
        for package in packages
    }
    assert len(counts) > 20
    assert {name: count for name, count in counts.items() if count > MOST_MODULES} == {}


def test_no_module_is_longer_than_400_lines() -> None:
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in ROOT.rglob("*.py")
    }
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}
