"""Each sweep is a fixture of its class, so that several tests read its records."""

from __future__ import annotations

import pytest

from tests.own_training.metered_training import name, sweep

__all__ = ["name", "sweep"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames and metafunc.cls is not None:
        metafunc.parametrize("name", metafunc.cls.names, indirect=True, scope="class")
