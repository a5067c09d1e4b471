"""What ranks need of the system is checked before anything starts."""

from __future__ import annotations

import errno
import os
import re
import resource
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from dpeval.errors import MachineError
from dpeval.system import cgroups, limits


def test_this_machine_has_what_ranks_need() -> None:
    limits.check()


@pytest.mark.parametrize(
    ("name", "soft", "hard", "words"),
    [
        ("RLIMIT_NOFILE", 24, 24, r"24 files .* ulimit -n 4096"),
        ("RLIMIT_AS", 2 << 30, 2 << 30, r"map only 2\.0 GiB .* ulimit -v unlimited"),
        ("RLIMIT_NOFILE", 24, 1024, ""),
    ],
)
def test_a_limit_that_is_too_low_is_one_line_and_one_that_can_be_raised_is_raised(
    name: str, soft: int, hard: int, words: str
) -> None:
    code = f"""
import resource
from dpeval.errors import MachineError
from dpeval.system import limits
resource.setrlimit(resource.{name}, ({soft}, {hard}))
try:
    limits.check()
except MachineError as error:
    print(error)
print(resource.getrlimit(resource.{name})[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *told, left = done.stdout.splitlines()
    assert int(left) == hard
    if words:
        (line,) = told
        assert re.search(words, line)
    else:
        assert told == []


def test_shared_memory_without_space_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    space = SimpleNamespace(f_bavail=2, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _: space)
    with pytest.raises(MachineError, match=r"/dev/shm has 8192 bytes left.*--shm-size=1g"):
        limits.check()


def test_a_loopback_interface_that_is_down_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(MachineError, match=r"127\.0\.0\.1 .*unreachable.*ip link set lo up"):
        limits.check()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 256


def test_a_cgroup_too_small_to_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "folders", lambda *_: ["/sys/fs/cgroup/memory/mine"])
    monkeypatch.setattr(cgroups, "memory_left", lambda _: 250 << 20)
    with pytest.raises(MachineError, match=r"cgroup .*/mine leaves 250 MiB of memory"):
        limits.check()


def test_too_few_free_ports_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_LEAST_PORTS", 3)
    taken: list[int] = []

    class Probe(socket.socket):
        def bind(self, address: object) -> None:
            if len(taken) == 2:
                raise OSError(errno.EADDRINUSE, "Address already in use")
            super().bind(address)  # type: ignore[arg-type]
            taken.append(self.getsockname()[1])

    monkeypatch.setattr(socket, "socket", Probe)
    with pytest.raises(MachineError, match=r"only 2 ports free on 127\.0\.0\.1"):
        limits._check_ports()
