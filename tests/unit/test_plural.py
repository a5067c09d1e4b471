"""Counts read as English does."""

from __future__ import annotations

import pytest

from dpeval.util.display.plural import counted, some_of


@pytest.mark.parametrize(
    ("count", "total", "said"),
    [
        (0, 1, "no run"),
        (1, 1, "the run"),
        (1, 2, "1 of 2 runs"),
        (2, 2, "both runs"),
        (3, 3, "all 3 runs"),
    ],
)
def test_how_many_of_them(count: int, total: int, said: str) -> None:
    assert some_of(count, total, "run") == said


def test_counted() -> None:
    assert [counted(count, "run") for count in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]
    assert counted(2, "batch", plural="batches") == "2 batches"
