"""The one place of the input that speaks to CUDA: copies that travel while the device computes.

As in PyTorch's documentation ("CUDA semantics": streams, pinned memory,
``Tensor.record_stream``) and NVIDIA's Apex prefetcher.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sent:
    """A batch on its way to the device."""

    tensors: tuple[Tensor, ...]
    done: torch.cuda.Event


class CopyAhead:
    """Copies each batch on a stream of its own while the one before it is computed."""

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
