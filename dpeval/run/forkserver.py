"""The forkserver that starts ranks, and their rendezvous store."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import multiprocessing.process
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from multiprocessing import forkserver, resource_tracker, util
from typing import TYPE_CHECKING, Any, NoReturn

from dpeval.errors import MachineError
from dpeval.system.processes.signals import unsent_to_children
from dpeval.util.entry import children_find_parts_last

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext
    from multiprocessing.process import BaseProcess

    from torch.distributed import TCPStore

PRELOADED = ("torch", "torchvision", "scipy.special", "dpeval.worker.rank_process")
"""What ranks need and what takes seconds to import."""


def context() -> ForkServerContext:
    """The forkserver context; its server has imported torch once for all ranks.

    Starting a rank from it takes 0.03 s; ``spawn`` would import torch again (2.4-3.8 s). The server
    only imports and never computes, so it holds no CUDA context and no thread pool.
    """
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(list(PRELOADED))
    return made


def warm_up() -> None:
    """Start the server, unless it runs. Call this before anything imports torch.

    Then torch is imported here, once for this process and for the server, which is a fork of it. If
    torch was imported earlier, this process may hold what does not survive a fork, such as OpenMP's
    threads or a CUDA context. The server is then a new program, which imports torch again in the
    background."""
    shorten_temporary_folder()
    context()
    is_untouched = sys.platform == "linux" and "torch" not in sys.modules
    if not is_untouched or threading.active_count() > 1:
        _start(children_find_parts_last())
        return
    for name in PRELOADED:
        with contextlib.suppress(ImportError):  # reported by whoever needs it
            importlib.import_module(name)
    _start(_forking())


def _start(way: AbstractContextManager[None]) -> None:
    """Start the server in the context `way`, shielded from signals to the process group or job.

    If one ended the server, the ranks would end with it."""
    with _usr2_ignored():
        with unsent_to_children(), children_find_parts_last():
            resource_tracker.ensure_running()
        # Again: starting the tracker unblocks SIGINT and SIGTERM.
        with unsent_to_children(), way:
            forkserver.ensure_running()


MOST_TEMPORARY = 70
"""The longest path of the temporary folder, in characters: the path of a socket below it is limited
to 107 bytes."""


def shorten_temporary_folder() -> None:
    """Keep multiprocessing's sockets in /tmp if $TMPDIR is too long for them.

    Raises:
        MachineError: /tmp cannot be written either.
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
    util.Finalize(None, shutil.rmtree, args=(short, True), exitpriority=-100)
    config["tempdir"] = short  # ranks and their loader workers inherit it


@contextlib.contextmanager
def _usr2_ignored() -> Iterator[None]:
    """Ignore SIGUSR2, with which some schedulers warn every process of a job."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR2, handler)


_STARTS = 3
_DYING_S = 5.0
"""How long a killed server may take to end: it gives back its memory first."""


def start_process(process: BaseProcess) -> None:
    """Start `process`, a process of :func:`context`, even if somebody stops or kills the server.

    Raises:
        MachineError: the server was killed at every attempt.
    """
    for _ in range(_STARTS):
        _resume()
        # If it was killed, a new one is shielded from signals as the first was.
        _start(children_find_parts_last())
        try:
            process.start()
        except (EOFError, ConnectionError):
            _await_end()
            continue
        return
    raise MachineError(
        f"the process that starts ranks was killed {_STARTS} times in a row; look for what kills "
        "it, such as a limit of memory"
    )


def _await_end() -> None:
    """Wait for the end of a server that no longer answers: until then it looks alive."""
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    deadline_s = time.monotonic() + _DYING_S
    with contextlib.suppress(ChildProcessError):
        while pid is not None and time.monotonic() < deadline_s:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return
            time.sleep(0.01)


def _resume() -> None:
    """Resume the server if it was stopped: otherwise starting a rank would wait for it forever."""
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def _forking() -> Iterator[None]:
    """Make multiprocessing fork this process instead of executing a new Python."""
    execute = util.spawnv_passfds
    util.spawnv_passfds = _fork
    try:
        yield
    finally:
        util.spawnv_passfds = execute


def _fork(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
    """Stand in for ``multiprocessing.util.spawnv_passfds``; return the server's pid."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # it is closed
            stream.flush()  # or every rank would print what is buffered
    held, end = os.pipe()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    with warnings.catch_warnings():
        # About BLAS's threads, which survive a fork; there are no others yet.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _serve(args[-1], passfds, mask)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.close(end)
    os.read(held, 1)  # returns once the server has closed the other end, with all its files
    os.close(held)
    return pid


def _serve(program: str, passed: Sequence[int], mask: set[int | signal.Signals]) -> NoReturn:
    """Run `program`, the server, in a fork that keeps only what a new Python would inherit.

    Args:
        program: what multiprocessing would pass to ``python -c``.
        passed: the file descriptors that the server uses.
        mask: the signals to block.
    """
    try:
        _let_go(passed)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        exec(program, {})
    except SystemExit:
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def _let_go(passed: Sequence[int]) -> None:
    """Drop the files, signal handlers and forkserver that belong to the parent."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        # Not closed: objects that hold the descriptor would later close another file with its
        # number.
        if int(name) > 2 and int(name) not in passed:
            with contextlib.suppress(OSError):
                os.dup2(nothing, int(name), inheritable=False)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            is_ctrl_c = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_ctrl_c else signal.SIG_DFL)
    # The parent holds its lock, as it is starting this server.
    forkserver._forkserver.__init__()  # type: ignore[misc]


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
