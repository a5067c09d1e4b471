"""What a fault may break, in kinds that a campaign counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["lost", "doubled", "orphan", "hang", "other"]
_COUNTED: Mapping[Kind, str] = {
    "lost": "records lost", "doubled": "doubled", "orphan": "orphans", "hang": "hangs",
    "other": "other faults",
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """A promise that a fault broke."""

    kind: Kind
    """``lost``, ``doubled``: a record; ``orphan``: a process, a job or a file that is left;
    ``hang``: it did not end in time; ``other``: a wrong exit status, a traceback, a bug."""
    words: str


def lost(words: str) -> Finding:
    return Finding("lost", words)


def doubled(words: str) -> Finding:
    return Finding("doubled", words)


def orphan(words: str) -> Finding:
    return Finding("orphan", words)


def hang(words: str) -> Finding:
    return Finding("hang", words)


def other(words: str) -> Finding:
    return Finding("other", words)


def summary(kinds: Iterable[Iterable[str]]) -> str:
    """How many faults broke what.

    Args:
        kinds: of each fault, those that it broke.
    """
    sets = [set(one) for one in kinds]
    return ", ".join(
        f"{sum(kind in one for one in sets)} {words}" for kind, words in _COUNTED.items()
    )
