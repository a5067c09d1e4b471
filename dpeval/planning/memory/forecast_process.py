"""Computes forecasts in a separate process that sees no GPU.

Fake tensors on ``cuda`` create a real CUDA context if there is a GPU (``FakeTensorMode``, torch
2.11). In the parent, it would take memory from the ranks, appear as a foreign process in every run,
and lock the ranks out of a GPU in exclusive mode.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import ParamSpec, TypeVar

from dpeval.errors import NoForecast
from dpeval.system.gpu.libraries import VISIBLE_DEVICES

Given = ParamSpec("Given")
Made = TypeVar("Made")


class ForecastProcess:
    """Calls functions in a child process, which starts at the first call and lives as long as this
    one.

    It comes from the same forkserver as the ranks, which has already imported torch.
    """

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def call(
        self, function: Callable[Given, Made], *args: Given.args, **kwargs: Given.kwargs
    ) -> Made:
        """The result of `function` in the child; what it raises is raised here.

        Args:
            function: importable by name; it, its arguments and its result must pickle.
            args: its positional arguments.
            kwargs: its keyword arguments.

        Raises:
            NoForecast: the child died.
        """
        return self.begin(function, *args, **kwargs)()

    def begin(
        self, function: Callable[Given, Made], *args: Given.args, **kwargs: Given.kwargs
    ) -> Callable[[], Made]:
        """Begin :meth:`call`; what is returned waits for its result.

        Args:
            function: importable by name; it, its arguments and its result must pickle.
            args: its positional arguments.
            kwargs: its keyword arguments.

        Raises:
            NoForecast: the child died.
        """
        if self._pool is None:
            context = multiprocessing.get_context("forkserver")
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_enter)
            # A pool that goes out of scope shuts down in a thread; if the interpreter exits
            # meanwhile, Python 3.11 may print a traceback about the pipe that this thread has just
            # closed.
            weakref.finalize(self, self._pool.shutdown)
        try:
            submitted = self._pool.submit(function, *args, **kwargs)
        except (BrokenProcessPool, EOFError, ConnectionError) as error:
            raise self._lost() from error  # the forkserver was killed

        def result() -> Made:
            try:
                return submitted.result()
            except BrokenProcessPool as error:
                raise self._lost() from error

        return result

    def _lost(self) -> NoForecast:
        """The error to raise; the next call starts a new child."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None
        return NoForecast("the forecast process was killed; memory is not forecast")


def _enter() -> None:
    """Prepare the child: it sees no GPU, ignores Ctrl-C, and ends with its parent."""
    os.environ.update(dict.fromkeys(VISIBLE_DEVICES, ""))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # It logs the traceback of an error that it also raises; users get one line.
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in a child
    parent.join()
    os._exit(1)
