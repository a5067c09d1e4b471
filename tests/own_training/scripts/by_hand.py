"""Marks by which a script times its own steps, whether or not dpeval measures them, too."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

Batch = TypeVar("Batch")
EVALUATION_S = 0.2
"""How much longer than its computation an evaluation takes."""


class ByHand:
    """The seconds of every step by the names that a script gives them.

    They are written to the folder in ``BY_HAND``, one file a rank.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._rows: list[dict[str, float]] = []
        self._row: dict[str, float] = {}
        self._last_s = 0.0

    def fetches(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """`batches`, each fetch timed as `data`."""
        iterator: Iterator[Batch] | None = None
        while True:
            is_accumulating = bool(self._row)
            self.begin()
            try:
                iterator = iterator or iter(batches)
                batch = next(iterator)
            except StopIteration:
                if not is_accumulating:
                    self._row = {}
                return
            self.mark("data")
            yield batch

    def begin(self) -> None:
        """Begin a step, or the fetch of another batch of it."""
        if self._row:
            self.mark("other")
        else:
            self._row = {"at": time.monotonic()}
            self._last_s = time.perf_counter()

    def mark(self, name: str) -> None:
        """Count the time since the previous mark as `name`."""
        if not self._row:
            return  # an evaluation, say
        now_s = time.perf_counter()
        self._row[name] = self._row.get(name, 0.0) + now_s - self._last_s
        self._last_s = now_s

    def skip(self) -> None:
        """Count the time since the previous mark as nothing."""
        self._last_s = time.perf_counter()

    def end(self) -> None:
        """End the step."""
        self.mark("other")
        self._rows.append(self._row)
        self._row = {}

    def evaluate(self) -> None:
        """Note that an evaluation follows the latest step, and make it a slow one."""
        if self._rows:
            self._rows[-1]["evaluation"] = EVALUATION_S
            time.sleep(EVALUATION_S)

    def save(self) -> None:
        folder = os.environ.get("BY_HAND")
        if folder is not None:
            name = f"{self._name}-{os.environ['WORLD_SIZE']}-{os.environ['RANK']}.json"
            Path(folder, name).write_text(json.dumps(self._rows))
