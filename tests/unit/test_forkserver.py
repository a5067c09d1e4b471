"""The server that forks ranks: what happens while it ends."""

from __future__ import annotations

import os
import subprocess
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from dpeval.run import forkserver

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess


def test_a_killed_server_that_has_not_yet_ended_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It gives back its memory first: until then it refuses connections and looks alive."""
    server = subprocess.Popen(["sleep", "0.2"])

    class Rank:
        is_started = False

        def start(self) -> None:
            if os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                raise ConnectionRefusedError
            self.is_started = True

    monkeypatch.setattr(
        "multiprocessing.forkserver._forkserver", SimpleNamespace(_forkserver_pid=server.pid)
    )
    monkeypatch.setattr(forkserver, "_start", lambda _: None)
    rank = Rank()
    forkserver.start_process(cast("BaseProcess", rank))
    assert rank.is_started
    server.wait()
