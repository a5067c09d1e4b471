"""Checks, before anything starts, what ranks need from the system besides cores and memory."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from pathlib import Path

from dpeval.errors import MachineError
from dpeval.system import cgroups
from dpeval.util.display.plural import counted
from dpeval.util.display.units import GIB, MIB

_OPEN_FILES = 256
"""For pipes, sockets and shared memory of the parent and its ranks, and for torch's libraries."""
_WANTED_OPEN_FILES = 4096
_LEAST_ADDRESS_BYTES = 4 * GIB
"""Importing torch maps 3.5 GiB (2.14 for CPUs)."""
_LEAST_SHARED_BYTES = 64 * 1024  # the loader worker reports a batch that does not fit
_SHARED = "/dev/shm"
_LEAST_PORTS = 16
"""A store, and a few connections of every rank."""
_LEAST_MEMORY_BYTES = 512 * MIB
"""For this process and the forkserver, which have both imported torch."""


def check() -> None:
    """Raise the limit of open files as far as allowed, and check what every run needs.

    Raises:
        MachineError: something is missing that would make a library hang or crash.
    """
    _check_open_files()
    _check_address_space()
    _check_cgroups()
    _check_shared_memory()
    _check_loopback()
    _check_ports()


def _check_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_OPEN_FILES if hard == resource.RLIM_INFINITY else min(_WANTED_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft != resource.RLIM_INFINITY and soft < _OPEN_FILES:
        raise MachineError(
            f"a process may open only {soft} files here, too few for ranks' pipes and libraries; "
            f"raise the limit with ulimit -n {_WANTED_OPEN_FILES}"
        )


def _check_address_space() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY and soft < _LEAST_ADDRESS_BYTES:
        raise MachineError(
            f"a process may map only {soft / GIB:.1f} GiB here, but torch alone takes 3.5; raise "
            "the limit with ulimit -v unlimited (hardware.memory_gib limits the memory of a run)"
        )


def _check_cgroups(root: Path = cgroups.ROOT) -> None:
    for folder in cgroups.folders("memory", root):
        left = cgroups.memory_left(folder)
        if left is not None and left < _LEAST_MEMORY_BYTES:
            raise MachineError(
                f"cgroup {folder} leaves {left / MIB:.0f} MiB of memory, too little to start: "
                f"torch alone takes {_LEAST_MEMORY_BYTES / MIB:.0f} MiB; request more memory"
            )


def _check_shared_memory() -> None:
    try:
        space = os.statvfs(_SHARED)
    except OSError:
        return  # not Linux: the first use will show
    free = space.f_bavail * space.f_frsize
    if free < _LEAST_SHARED_BYTES:
        raise MachineError(
            f"{_SHARED} has {free} bytes left, but ranks need it for shared memory; enlarge it "
            f"(mount -o remount,size=1G {_SHARED}; in a container, --shm-size=1g)"
        )


def _check_loopback() -> None:
    """Ranks of one machine meet on its loopback interface."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(5.0)
            with socket.create_connection(server.getsockname(), timeout=5.0):
                pass
    except OSError as error:
        raise MachineError(
            f"this machine cannot connect to itself on 127.0.0.1 ({error}), as ranks must; "
            "bring its loopback interface up: ip link set lo up"
        ) from error


def _check_ports() -> None:
    with contextlib.ExitStack() as stack:
        for free in range(_LEAST_PORTS):
            probe = stack.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", 0))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                raise MachineError(
                    f"only {counted(free, 'port')} free on 127.0.0.1, too few for ranks to find "
                    "each other; end other programs, or widen the range with sysctl "
                    "net.ipv4.ip_local_port_range"
                ) from error
