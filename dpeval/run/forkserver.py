"""The forkserver that starts ranks, and their rendezvous store."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
from datetime import timedelta
from typing import TYPE_CHECKING

from dpeval.system.signals import unsent_to_children

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

    context()
    with unsent_to_children():
        resource_tracker.ensure_running()
    with unsent_to_children():  # again: starting the tracker unblocks SIGINT and SIGTERM
        forkserver.ensure_running()


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
