"""What the training loop asks of a device; CPU and CUDA differ behind this interface alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor


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

    def transfer(self) -> Transfer:
        """What brings a row of batches from the host to the device."""


class Transfer(Protocol):
    """Brings batches to the device; on CUDA ahead of time, while it computes."""

    def ahead(self, batches: Iterator[tuple[Tensor, ...]]) -> Iterator[Any]:
        """`batches` of the host, each on its way before it is asked for."""

    def receive(self, sent: Any) -> tuple[Tensor, ...]:
        """One of them, usable on the device from here on; the host does not wait."""
