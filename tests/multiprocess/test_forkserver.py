"""The server of ranks is a fork of the program that starts it, and keeps nothing of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil

from dpeval.system.processes.signals import STOP_SIGNALS
from tests.multiprocess.conftest import wait_for_none

PROGRAM = """
import fcntl, json, os, signal, sys
from dpeval.run import forkserver

def look(pipe):
    import torch
    below = forkserver.context().Process(target=print, args=("from a server of its own",))
    below.start()
    below.join()
    pipe.send({
        "handlers": [repr(signal.getsignal(one)) for one in (
            signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "threads": torch.get_num_threads(),
        "below": below.exitcode,
    })

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, print)
    signal.signal(signal.SIGUSR2, print)
    print("printed once", end=" ")
    locked = open("locked", "w")
    fcntl.flock(locked, fcntl.LOCK_EX)
    forkserver.warm_up()
    assert signal.getsignal(signal.SIGUSR2) is print
    locked.close()
    fcntl.flock(open("locked"), fcntl.LOCK_EX | fcntl.LOCK_NB)  # the server does not hold it
    from multiprocessing.forkserver import _forkserver
    ours, theirs = forkserver.context().Pipe()
    rank = forkserver.context().Process(target=look, args=(theirs,))
    rank.start()
    seen = ours.recv()
    rank.join()
    server = _forkserver._forkserver_pid
    command = open(f"/proc/{server}/cmdline").read()
    print(json.dumps({**seen, "server": server, "command": command}), flush=True)
    sys.stdin.read()
"""


def test_the_server_is_a_fork_without_files_handlers_and_locks(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, str(program)],
        cwd=tmp_path, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        first, last = process.stdout.readline(), process.stdout.readline()
        assert first == "printed once from a server of its own\n"
        seen = json.loads(last)
        assert str(program) in seen["command"], "not a new Python"
        assert seen["below"] == 0
        assert seen["blocked"] == sorted(STOP_SIGNALS), "those for its process group"
        ctrl_c, terminate, warning = seen["handlers"]
        assert "default_int_handler" in ctrl_c
        assert "SIG_DFL" in terminate
        assert "SIG_IGN" in warning
        server = psutil.Process(seen["server"])
        process.kill()
    wait_for_none([server])
