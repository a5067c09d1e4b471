"""The device interface of the training loop; only its implementations distinguish CPU and CUDA."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor


class Device(Protocol):
    """One rank's device: where tensors are, how time is read, how much memory is used."""

    torch_device: torch.device
    is_cuda: bool

    def stamp(self) -> Any:
        """A point in the device's order of work; cheap, never waits."""

    def is_past(self, stamp: Any) -> bool:
        """Whether the device has reached `stamp`; never waits."""

    def recycle(self, stamps: Iterable[Any]) -> None:
        """Take back stamps whose times have been read; each is returned once."""

    def elapsed_s(self, begin: Any, end: Any) -> float:
        """Time between two stamps that the device has reached, s."""

    def finish(self) -> None:
        """Wait until the device has done all its work. Never inside a measured step."""

    def reset_peak(self) -> None:
        """Reset the memory peak."""

    def memory_bytes(self) -> int:
        """Memory that this rank holds now, bytes."""

    def peak_bytes(self) -> int | None:
        """Peak memory of this rank since :meth:`reset_peak`, bytes."""

    def peak_allocated_bytes(self) -> int | None:
        """The same without memory that the allocator holds unused, bytes; None on the CPU."""

    def end_tuning(self) -> int | None:
        """Wait for the first step, then discard the memory peak of its tuning.

        Returns:
            The peak until now, bytes; None on the CPU, which does not tune.
        """

    def free_bytes(self) -> int | None:
        """Memory that this rank may still take on the device now, bytes; None on the CPU."""

    def release(self) -> None:
        """Return cached memory to the device, and freed memory to the host."""

    def transfer(self) -> Transfer:
        """A new transfer of batches from the host to the device."""


class Transfer(Protocol):
    """Copies batches to the device; on CUDA ahead of time, while it computes."""

    def ahead(self, batches: Iterator[tuple[Tensor, ...]]) -> Iterator[Any]:
        """Copy `batches` from the host; each copy starts before the batch is needed."""

    def receive(self, sent: Any) -> tuple[Tensor, ...]:
        """A batch from :meth:`ahead`, usable on the device from now on; the host does not wait."""
