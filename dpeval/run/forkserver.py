"""The forkserver that starts ranks, and their rendezvous store."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.process
import multiprocessing.util
import os
import shutil
import signal
import socket
import tempfile
from datetime import timedelta
from typing import TYPE_CHECKING

from dpeval.errors import MachineError
from dpeval.system.signals import unsent_to_children
from dpeval.util.entry import children_find_parts_last

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

    from torch.distributed import TCPStore


def context() -> ForkServerContext:
    """The forkserver context; its server imports torch once for all ranks.

    Starting a rank from it takes 0.03 s; ``spawn`` would import torch again (2.4-3.8 s). The server
    only imports and never computes, so it holds no CUDA context and no thread pool.
    """
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(
        ["torch", "torchvision", "scipy.special", "dpeval.worker.rank_process"]
    )
    return forkserver


def warm_up() -> None:
    """Start the server in the background, so that its imports overlap the parent's own work.

    A signal for the whole process group must not end it: the ranks would end with it.
    """
    from multiprocessing import forkserver, resource_tracker

    shorten_temporary_folder()
    context()
    with unsent_to_children(), children_find_parts_last():
        resource_tracker.ensure_running()
    with (
        unsent_to_children(),
        children_find_parts_last(),
    ):  # again: starting the tracker unblocks SIGINT and SIGTERM
        forkserver.ensure_running()


MOST_TEMPORARY = 70
"""Characters that the temporary folder may have: the path of a socket in a folder there ends at
107 bytes."""


def shorten_temporary_folder() -> None:
    """Keep multiprocessing's sockets in /tmp if $TMPDIR is too long for them.

    Raises:
        MachineError: nothing can be written there, either.
    """
    given = tempfile.gettempdir()
    process = multiprocessing.process.current_process()
    config: dict[str, object] = process._config  # type: ignore[attr-defined]
    if len(os.fsencode(given)) <= MOST_TEMPORARY or config.get("tempdir"):
        return
    try:
        short = tempfile.mkdtemp(prefix="dpeval-", dir="/tmp")
    except OSError as error:
        raise MachineError(
            f"TMPDIR={given} is longer than the {MOST_TEMPORARY} characters that sockets there "
            f"allow, and /tmp cannot be written ({error.strerror}); set TMPDIR to a shorter path"
        ) from error
    multiprocessing.util.Finalize(None, shutil.rmtree, args=(short, True), exitpriority=-100)
    config["tempdir"] = short  # ranks and their loader workers inherit it


def resume() -> None:
    """Let the server go on if it was stopped: starting a rank would wait for it for ever."""
    from multiprocessing import forkserver

    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def serve_store(host: str) -> tuple[TCPStore, int]:
    """Serve a rendezvous store on `host`, on a free port.

    The socket is bound and listening before the port number is published, so no other process can
    take the port in between. It listens on `host` only.
    """
    from torch.distributed import TCPStore

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((host, 0))
    listener.listen(1024)
    port = listener.getsockname()[1]
    store = TCPStore(
        host,
        port,
        None,
        True,
        timedelta(seconds=30),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    return store, port
