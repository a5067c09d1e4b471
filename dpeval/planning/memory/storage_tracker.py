"""Tracks the storages that a training step creates and frees, without computing the step."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dpeval.planning.memory.allocator_model import Event

Scratch = Callable[[str, Sequence[Any], Any], Sequence[int]]
"""From an operation's name, arguments and result to the bytes of its workspaces."""


@dataclass(frozen=True)
class Gradient:
    """The gradient of a parameter that is complete before the event at `index`."""

    index: int
    nbytes: int


@dataclass(frozen=True)
class MemorySnapshot:
    """Bytes in use at one moment in addition to those from before the step."""

    total: int = 0
    activations: int = 0
    """Storages that the forward pass saved for the backward pass and that are still in use."""
    gradients: int = 0
    """Parameter gradients that the step has completed so far."""

    @property
    def transient(self) -> int:
        """What only the current operations need: results, inner gradients, workspaces."""
        return self.total - self.activations - self.gradients


def peak_of(
    events: Iterable[Event], forward_end: int | None = None, gradients: Iterable[Gradient] = ()
) -> MemorySnapshot:
    """The moment of a trace at which most bytes are in use.

    Args:
        events: allocations and frees in order.
        forward_end: index of the first event after the forward pass; what is in use then counts as
            activations. None: nothing does.
        gradients: the parameters' gradients, in the order in which they are completed.
    """
    peak, live, kept = MemorySnapshot(), dict[int, int](), dict[int, int]()
    now = activations = completed = 0
    coming = deque(gradients)
    for index, event in enumerate(events):
        if index == forward_end:
            kept, activations = live.copy(), now
        while coming and coming[0].index <= index:
            completed += coming.popleft().nbytes
        if event.nbytes is None:
            now -= live.pop(event.key)
            activations -= kept.pop(event.key, 0)
            continue
        live[event.key] = event.nbytes
        now += event.nbytes
        if now > peak.total:
            peak = MemorySnapshot(now, activations, completed)
    return peak


def in_use(events: Iterable[Event]) -> int:
    """Bytes that are still in use after a trace."""
    live: dict[int, int] = {}
    for event in events:
        if event.nbytes is None:
            del live[event.key]
        else:
            live[event.key] = event.nbytes
    return sum(live.values())


class StorageTracker(TorchDispatchMode):
    """Records when storages are created and freed, each once, however many tensors view it.

    Works on tensors without data (``meta``, fake), since their storages have sizes too.
    """

    def __init__(self, there: Iterable[Tensor], scratch: Scratch | None = None) -> None:
        """`there`: tensors that exist before the step and are not counted."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[Event] = []
        """Allocations and frees in order; an :class:`Event` with a negative key is scratch."""
        self.forward_end: int | None = None
        """Index of the first event after the forward pass."""
        self.gradients: list[Gradient] = []
        self._scratch = scratch
        # Kept alive, so that no later storage can take the address of one of them.
        self._there = [tensor.untyped_storage() for tensor in there]
        self._known = {storage._cdata for storage in self._there}
        self._live: dict[int, int] = {}
        """Keys of the events that created what is in use, by address."""
        self._count = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._hold(leaf.untyped_storage())
        inner = self._scratch(func._schema.name, args, result) if self._scratch else ()
        for place, nbytes in enumerate(inner):
            self.events.append(Event(-1 - place, nbytes))
        for place in range(len(inner)):
            self.events.append(Event(-1 - place, None))
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address in self._known or address in self._live:
            return
        self._count += 1
        self._live[address] = self._count
        self.events.append(Event(self._count, storage.nbytes()))
        weakref.finalize(storage, self._drop, address).atexit = False

    def _drop(self, address: int) -> None:
        self.events.append(Event(self._live.pop(address), None))

    def end_forward(self) -> None:
        """Call between the passes."""
        self.forward_end = len(self.events)

    def count_gradient(self, nbytes: int) -> None:
        """Call when the gradient of a parameter is complete."""
        self.gradients.append(Gradient(len(self.events), nbytes))

    @property
    def peak(self) -> MemorySnapshot:
        """The moment at which most bytes were in use."""
        return peak_of(self.events, self.forward_end, self.gradients)


def make_fake(model: nn.Module, mode: FakeTensorMode, device: torch.device) -> None:
    """Replace the parameters and buffers of a ``meta`` model by fake ones on `device`.

    Fake tensors have a device but no data on it, so the choice of kernels (attention) and
    autocast are those of `device`. A tensor that is used twice stays one tensor.

    Args:
        model: on the ``meta`` device; changed in place.
        mode: the mode that the step will run under.
        device: the device to imitate; it need not exist on this machine.
    """
    parameters: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if parameter not in parameters:
                fake = FakeTensor(mode, parameter.detach(), device)
                parameters[parameter] = nn.Parameter(fake, parameter.requires_grad)
            module._parameters[name] = parameters[parameter]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = FakeTensor(mode, buffer, device)


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind `tensors`, each counted once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())
