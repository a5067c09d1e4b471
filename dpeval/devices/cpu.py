"""CPU devices: a process pinned to cores."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from dpeval.devices.base import Transfer
from dpeval.system.processes.process import resident, trim_freed_memory


class CpuDevice:
    """A process pinned to cores."""

    is_cuda = False

    def __init__(self) -> None:
        self.torch_device = torch.device("cpu")

    stamp = staticmethod(time.perf_counter)

    def is_past(self, stamp: float) -> bool:
        return True

    def recycle(self, stamps: Iterable[float]) -> None:
        pass

    def elapsed_s(self, begin: float, end: float) -> float:
        return end - begin

    def finish(self) -> None:
        pass

    def reset_peak(self) -> None:
        # Writing 5 resets VmHWM (proc(5), /proc/pid/clear_refs); elsewhere the peak is since start.
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return

    def memory_bytes(self) -> int:
        held = resident()
        return held.now_bytes if held is not None else self.peak_bytes()

    def peak_bytes(self) -> int:
        held = resident()
        if held is not None:
            return held.peak_bytes
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def peak_allocated_bytes(self) -> int | None:
        return None

    def end_tuning(self) -> int | None:
        return None

    def free_bytes(self) -> int | None:
        return None

    def release(self) -> None:
        trim_freed_memory()

    def transfer(self) -> Transfer:
        return _NoCopy()


class _NoCopy:
    """Passes batches on: they are already where they are needed."""

    def ahead(self, batches: Iterator[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
        return batches

    def receive(self, sent: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return sent
