"""A time limit for the commands with which submitit submits jobs; submitit sets none."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import psutil

from dpeval.errors import LaunchError

LIMIT_S = 180.0
"""How long one command may take; a controller that is down keeps sbatch waiting for a minute."""
_LOOK_EVERY_S = 0.2


@contextlib.contextmanager
def commands_limited(limit_s: float = LIMIT_S) -> Iterator[None]:
    """Kill a command that this process starts in this context and that takes longer.

    Args:
        limit_s: how long each command may take, s.

    Raises:
        LaunchError: a command had to be killed.
    """
    ours, ended = psutil.Process(), threading.Event()
    earlier = {child.pid for child in ours.children()}
    killed: list[str] = []

    def watch() -> None:
        seen_s: dict[int, float] = {}
        while not ended.wait(_LOOK_EVERY_S):
            now_s = time.monotonic()
            for child in ours.children():
                if child.pid in earlier or now_s - seen_s.setdefault(child.pid, now_s) < limit_s:
                    continue
                with contextlib.suppress(psutil.NoSuchProcess):
                    killed.append(child.name())
                    child.kill()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        if killed:
            raise LaunchError(
                f"{killed[0]} did not answer within {limit_s:g} s and was killed; it may have "
                "submitted its jobs: check before you submit again"
            )
