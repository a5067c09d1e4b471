"""CUDA devices: the only module that calls ``torch.cuda`` for timing, memory and copies.

Everything here follows PyTorch's documentation ("CUDA semantics", ``torch.cuda.Event``, "CUDA
Best Practices") and is short enough to check by eye. Tests run :class:`CudaDevice` against a
recording stand-in for ``torch.cuda``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpeval.devices.base import Transfer
from dpeval.record.machine import Gpu
from dpeval.system.processes.process import trim_freed_memory
from dpeval.util.display.units import MIB

CONTEXT_BYTES = 512 * MIB
"""CUDA context and loaded kernels of a rank (300-520 MiB by generation of GPU)."""
NCCL_BYTES = 256 * MIB
"""Channels and buffers of a rank that communicates through NCCL."""


class CudaDevice:
    """One CUDA GPU; times are read from events on the current stream."""

    is_cuda = True

    def __init__(self, index: int, allocator_bytes: int | None = None) -> None:
        """Select the GPU.

        Args:
            index: the index that CUDA gives it.
            allocator_bytes: the most that PyTorch's allocator may reserve; None: no limit.
        """
        torch.cuda.set_device(index)
        self.torch_device = torch.device("cuda", index)
        self._allocator_bytes = allocator_bytes
        self._events: list[torch.cuda.Event] = []
        self._streams: dict[tuple[int, int, int], torch.cuda.Stream] = {}
        if allocator_bytes is not None:
            total_bytes = torch.cuda.mem_get_info()[1]
            share = min(1.0, max(0.0, allocator_bytes / total_bytes))
            torch.cuda.set_per_process_memory_fraction(share)

    def stamp(self) -> Any:
        # A step makes a dozen stamps, between launches that take 5 µs each, so events and stream
        # objects are reused.
        try:
            event = self._events.pop()
        except IndexError:
            event = torch.cuda.Event(enable_timing=True)
        event.record(self._current_stream())
        return event

    def recycle(self, stamps: Iterable[Any]) -> None:
        self._events.extend(stamps)

    def _current_stream(self) -> torch.cuda.Stream:
        """``torch.cuda.current_stream`` of this device without a new object every time.

        The device is named because gloo's threads, which call hooks, have not selected it.
        """
        key = torch._C._cuda_getCurrentStream(self.torch_device.index)
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = torch.cuda.current_stream(self.torch_device)
        return stream

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

    def peak_allocated_bytes(self) -> int | None:
        return int(torch.cuda.max_memory_allocated())

    def end_tuning(self) -> int | None:
        # cuDNN's benchmark mode tries algorithms with large workspaces, which stay cached.
        self.finish()
        peak_bytes = self.peak_bytes()
        self.release()
        self.reset_peak()
        return peak_bytes

    def free_bytes(self) -> int | None:
        free_bytes = int(torch.cuda.mem_get_info()[0])
        if self._allocator_bytes is None:
            return free_bytes
        # The allocator's limit applies before the device is full.
        return max(0, min(free_bytes, self._allocator_bytes - torch.cuda.memory_reserved()))

    def release(self) -> None:
        torch.cuda.empty_cache()
        trim_freed_memory()

    def transfer(self) -> Transfer:
        return CopyPrefetcher(self.torch_device)


@dataclass(frozen=True)
class BatchInFlight:
    """A batch that is being copied to the device."""

    tensors: tuple[Tensor, ...]
    done: torch.cuda.Event


class CopyPrefetcher:
    """Copies each batch on a separate stream while the previous one is computed.

    As in PyTorch's documentation ("CUDA semantics": streams, pinned memory,
    ``Tensor.record_stream``) and NVIDIA's Apex prefetcher.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # High-priority streams come from a separate pool. Streams of the default pool are handed
        # out in turn, also to NCCL and to the callbacks of its futures, for which a copy would then
        # wait.
        self._stream = torch.cuda.Stream(device, priority=-1)

    def ahead(self, batches: Iterator[tuple[Tensor, ...]]) -> Iterator[BatchInFlight]:
        """`batches`, which are in pinned memory; each is sent before the previous one is used."""
        previous: BatchInFlight | None = None
        for batch in batches:
            sent = self._send(batch)
            if previous is not None:
                yield previous
            previous = sent

    def _send(self, batch: tuple[Tensor, ...]) -> BatchInFlight:
        with torch.cuda.stream(self._stream):
            tensors = tuple(part.to(self._device, non_blocking=True) for part in batch)
            done = torch.cuda.Event()
            done.record()
        return BatchInFlight(tensors, done)

    def receive(self, sent: BatchInFlight) -> tuple[Tensor, ...]:
        """The batch, usable on the current stream from now on; the host does not wait."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(sent.done)
        for part in sent.tensors:
            # Allocated on the other stream: not to be reused until the current one is done.
            part.record_stream(current)
        return sent.tensors


def outside_allocator(*, uses_nccl: bool) -> int:
    """GPU memory that a rank takes outside PyTorch's allocator, bytes: an allowance."""
    return CONTEXT_BYTES + (NCCL_BYTES if uses_nccl else 0)


def cuda_gpus() -> list[Gpu]:
    """The CUDA GPUs visible to this process; creates no context on any of them."""
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
    """Versions of the libraries that torch was built with: CUDA, cuDNN and NCCL, or HIP, MIOpen and
    RCCL, which have the same names in torch."""
    hip = torch.version.hip
    names = ("hip", "miopen", "rccl") if hip else ("cuda", "cudnn", "nccl")
    versions = {names[0]: hip or torch.version.cuda or ""}
    if torch.cuda.is_available():
        versions[names[1]] = str(torch.backends.cudnn.version() or "")
        versions[names[2]] = ".".join(str(part) for part in torch.cuda.nccl.version())
    return {name: version for name, version in versions.items() if version}


def why_no_gpus(host: str) -> str:
    """Why dpeval finds no GPU on `host`."""
    others = {"MPS": torch.backends.mps, "XPU": torch.xpu}
    for name, interface in others.items():
        if interface.is_available():
            return (
                f"{host} has none: dpeval times GPUs with CUDA events, so its {name} device is not "
                "supported"
            )
    return f"{host} has none that this process can use"
