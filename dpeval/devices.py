"""The only file that knows CPU from CUDA.

Everything here that touches ``torch.cuda`` follows PyTorch's documentation ("CUDA semantics",
``torch.cuda.Event``, "CUDA Best Practices") and is short on purpose: it has to be checkable by
eye. Tests drive :class:`CudaDevice` with a recording stand-in for ``torch.cuda``.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dpeval.errors import MachineError
from dpeval.machine import resident
from dpeval.record.machine import Gpu

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Device(Protocol):
    """One rank's device: where tensors live, how its time is read, how much memory it took."""

    torch_device: torch.device
    is_cuda: bool

    def stamp(self) -> Any:
        """A moment in the device's own order of work; cheap, never waits."""

    def is_past(self, stamp: Any) -> bool:
        """Whether the device has reached `stamp`; never waits."""

    def elapsed_s(self, begin: Any, end: Any) -> float:
        """Seconds from `begin` to `end`, both of them past."""

    def finish(self) -> None:
        """Wait until the device has done all that was asked of it. Not for measured steps."""

    def reset_peak(self) -> None:
        """Forget the peak of memory so far."""

    def memory_bytes(self) -> int:
        """Memory that this rank holds now, in bytes."""

    def peak_bytes(self) -> int | None:
        """Most memory that this rank held since :meth:`reset_peak`, in bytes."""

    def free_bytes(self) -> int | None:
        """Memory that is free on the device now, in bytes; None where the host decides."""

    def release(self) -> None:
        """Give cached memory back to the device."""

    def sender(self) -> Sender:
        """What brings a row of batches from the host to the device."""


class Sender(Protocol):
    """Brings batches to the device; on CUDA ahead of time, while it computes."""

    def ahead(self, batches: Iterator[tuple[Tensor, ...]]) -> Iterator[Any]:
        """`batches` of the host, each on its way before it is asked for."""

    def receive(self, sent: Any) -> tuple[Tensor, ...]:
        """One of them, usable on the device from here on; the host does not wait."""


class CpuDevice:
    """A process with its own cores."""

    is_cuda = False

    def __init__(self) -> None:
        self.torch_device = torch.device("cpu")

    stamp = staticmethod(time.perf_counter)

    def is_past(self, stamp: float) -> bool:
        return True

    def elapsed_s(self, begin: float, end: float) -> float:
        return end - begin

    def finish(self) -> None:
        pass

    def reset_peak(self) -> None:
        # Writing 5 resets VmHWM (proc(5), /proc/pid/clear_refs); elsewhere the peak is whole-life.
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

    def free_bytes(self) -> int | None:
        return None

    def release(self) -> None:
        pass

    def sender(self) -> Sender:
        return _There()


class _There:
    """Batches are where they are needed."""

    def ahead(self, batches: Iterator[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
        return batches

    def receive(self, sent: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return sent


class CudaDevice:
    """One CUDA GPU; times are read from events on the current stream."""

    is_cuda = True

    def __init__(self, index: int) -> None:
        torch.cuda.set_device(index)
        self.torch_device = torch.device("cuda", index)

    def stamp(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def is_past(self, stamp: Any) -> bool:
        return bool(stamp.query())

    def elapsed_s(self, begin: Any, end: Any) -> float:
        return float(begin.elapsed_time(end)) / 1e3

    def finish(self) -> None:
        torch.cuda.synchronize()

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def memory_bytes(self) -> int:
        return int(torch.cuda.memory_reserved())

    def peak_bytes(self) -> int | None:
        return int(torch.cuda.max_memory_reserved())

    def free_bytes(self) -> int | None:
        return int(torch.cuda.mem_get_info()[0])

    def release(self) -> None:
        torch.cuda.empty_cache()

    def sender(self) -> Sender:
        return CopyAhead(self.torch_device)


@dataclass(frozen=True)
class Sent:
    """A batch on its way to the device."""

    tensors: tuple[Tensor, ...]
    done: torch.cuda.Event


class CopyAhead:
    """Copies each batch on a stream of its own while the one before it is computed.

    As in PyTorch's documentation ("CUDA semantics": streams, pinned memory,
    ``Tensor.record_stream``) and NVIDIA's Apex prefetcher.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def ahead(self, batches: Iterator[tuple[Tensor, ...]]) -> Iterator[Sent]:
        """`batches`, which lie in pinned memory, each sent before the one before it is used."""
        before: Sent | None = None
        for batch in batches:
            sent = self._send(batch)
            if before is not None:
                yield before
            before = sent

    def _send(self, batch: tuple[Tensor, ...]) -> Sent:
        with torch.cuda.stream(self._stream):
            tensors = tuple(part.to(self._device, non_blocking=True) for part in batch)
            done = torch.cuda.Event()
            done.record()
        return Sent(tensors, done)

    def receive(self, sent: Sent) -> tuple[Tensor, ...]:
        """The batch, usable on the current stream from here on; the host does not wait."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(sent.done)
        for part in sent.tensors:
            # Its memory came from the other stream: not to be given away before this one is done.
            part.record_stream(current)
        return sent.tensors


def open_device(name: str, cpus: Sequence[int], threads: int) -> Device:
    """Pin this process to `cpus`, set its thread counts, select device `name`.

    ``set_num_threads`` is called at every device count, one included: the default is one thread
    per visible core, which makes a one-rank baseline faster than a rank among several.

    Raises:
        MachineError: the CUDA device cannot be selected.
    """
    if cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    if name == "cpu":
        return CpuDevice()
    try:
        return CudaDevice(int(name.removeprefix("cuda:")))
    except (RuntimeError, AssertionError) as error:
        raise MachineError(
            f"{name} was planned for this rank and cannot be selected: {error}"
        ) from error


def cuda_gpus() -> list[Gpu]:
    """The CUDA GPUs that this process sees, without creating a context on any of them."""
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            Gpu(
                index=index,
                name=properties.name,
                total_bytes=properties.total_memory,
                uuid=str(getattr(properties, "uuid", "")),
            )
        )
    return found


def library_versions() -> dict[str, str]:
    """Versions of CUDA, cuDNN and NCCL that torch was built with."""
    versions = {"cuda": torch.version.cuda or ""}
    if torch.cuda.is_available():
        versions["cudnn"] = str(torch.backends.cudnn.version() or "")
        versions["nccl"] = ".".join(str(part) for part in torch.cuda.nccl.version())
    return {name: version for name, version in versions.items() if version}


def set_numerics(precision: str, *, deterministic: bool) -> None:
    """Set this process' arithmetic: TF32 only where asked for, determinism where asked for."""
    tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        # Without this variable cuBLAS refuses to be deterministic (PyTorch, "Reproducibility").
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def autocast(device: Device, precision: str) -> AbstractContextManager[Any]:
    """Mixed precision for the forward pass; does nothing for fp32 and tf32."""
    dtype = AUTOCAST_DTYPES.get(precision)
    # Entering torch.autocast costs 20 µs of every step even where it is not enabled.
    return torch.autocast(device.torch_device.type, dtype=dtype) if dtype else nullcontext()


def grad_scaler(device: Device, precision: str) -> torch.amp.GradScaler:
    """The gradient scaler that fp16 needs; a pass-through for every other precision."""
    return torch.amp.GradScaler(device.torch_device.type, enabled=precision == "fp16")
