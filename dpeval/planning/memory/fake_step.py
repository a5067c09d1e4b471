"""Runs one forward and backward pass of a model on fake tensors, which have sizes but no data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from dpeval.components.tasks import forecast_task
from dpeval.config import Config
from dpeval.devices.numerics import AUTOCAST_DTYPES
from dpeval.errors import NoForecast, first_line
from dpeval.planning.memory.allocator_model import Event
from dpeval.planning.memory.storage_tracker import (
    Gradient,
    MemorySnapshot,
    StorageTracker,
    in_use,
    make_fake,
    peak_of,
)

UNTRACEABLE = (RuntimeError, NotImplementedError, TypeError, ValueError)
"""Errors of a model that reads values, which fake tensors do not have."""


@dataclass(frozen=True)
class FakeStep:
    """One pass over one micro-batch, on fake tensors."""

    parameters: tuple[int, ...]
    """Bytes of each parameter and buffer, in order."""
    gradients: tuple[int, ...]
    """Bytes of each gradient."""
    events: tuple[Event, ...]
    forward_end: int
    """Index in `events` at which the forward pass has ended."""
    completed: tuple[Gradient, ...]
    """The gradients that the backward pass completes, in order."""
    first_drop: int
    """Index in `events` from which the parameters' gradients are freed."""

    @property
    def activations(self) -> int:
        """Bytes in use between the passes, most of them saved for the backward pass."""
        return in_use(self.events[: self.forward_end])

    @property
    def peak(self) -> MemorySnapshot:
        """The moment at which the passes hold most."""
        return peak_of(self.events[: self.first_drop], self.forward_end, self.completed)


def meta_model(config: Config, build: Callable[[], nn.Module]) -> nn.Module:
    """The model on the ``meta`` device, in its memory format, ready to be trained.

    Args:
        config: determines the memory format.
        build: makes the model, on ``meta`` or elsewhere.
    """
    model = build().to("meta")
    if config.memory_format == "channels_last":
        model = model.to(memory_format=torch.channels_last)
    return model.train()


def take_fake_step(
    config: Config,
    items: int,
    build: Callable[[], nn.Module],
    device: torch.device,
    *,
    held_gradients: bool,
    backward: bool = True,
) -> FakeStep:
    """Run one forward and backward pass over fake tensors on `device`.

    Args:
        config: task, precision and memory format.
        items: size of the micro-batch: images or sequences.
        build: makes the model, on ``meta`` or elsewhere.
        device: the device to imitate; it need not exist on this machine.
        held_gradients: gradients already exist before the pass, which adds to them.
        backward: if false, stop between the passes; a fake CUDA tensor has no backward pass on a
            machine without a GPU.

    Raises:
        NoForecast: the model needs data (a value, a file, a size that depends on a value).
        ConfigError: the model's output contains no logits.
    """
    task = forecast_task(config)
    channels_last = config.memory_format == "channels_last"
    mode = FakeTensorMode()
    try:
        model = meta_model(config, build)
        make_fake(model, mode, device)
        x, y = (FakeTensor(mode, tensor, device) for tensor in task.example(items))
        trained = [item for item in model.parameters() if item.requires_grad]
        with mode:
            for item in trained if held_gradients else ():
                item.grad = torch.zeros_like(item)
        there = [*model.parameters(), *model.buffers(), x, y]
        there += [item.grad for item in trained if item.grad is not None]
        criterion = task.criterion(model, items)
        tracker = StorageTracker(
            there, None if device.type == "cuda" else onednn_scratch(channels_last)
        )
        if not held_gradients:
            for item in trained:
                item.register_post_accumulate_grad_hook(lambda p: tracker.count_gradient(p.nbytes))
        with mode, tracker:
            with _autocast(device.type, config.precision), _fused_attention(device.type):
                loss = criterion(_forward(config, model, x), y)
            tracker.end_forward()
            if backward:
                loss.backward()
        del loss
    except UNTRACEABLE as error:
        raise _no_forecast(config, error) from error
    first_drop = len(tracker.events)
    model.zero_grad(set_to_none=True)
    del x, y
    return FakeStep(
        parameters=tuple(item.nbytes for item in (*model.parameters(), *model.buffers())),
        gradients=tuple(item.nbytes for item in trained),
        events=tuple(tracker.events),
        forward_end=tracker.forward_end or 0,
        completed=tuple(tracker.gradients),
        first_drop=first_drop,
    )


def _forward(config: Config, model: nn.Module, inputs: Tensor) -> object:
    """Run the model; any error in its code is taken to mean that it needs data."""
    try:
        return model(inputs)
    except (Exception, SystemExit) as error:
        raise _no_forecast(config, error) from error


def _no_forecast(config: Config, error: BaseException) -> NoForecast:
    return NoForecast(
        f"model={config.model.name} cannot run without data ({first_line(error)}); "
        "its memory is not forecast"
    )


def onednn_scratch(channels_last: bool) -> Callable[[str, Sequence[Any], Any], list[int]]:
    """Bytes that oneDNN allocates in a convolution: weights and planar images, reordered to its
    layout.

    Measured as the peak of single operations, with every tensor in separate pages.
    """

    def scratch(name: str, arguments: Sequence[Any], result: Any) -> list[int]:
        if name == "aten::convolution":
            images, weight = arguments[:2]
            return [weight.nbytes] + ([] if channels_last else [images.nbytes, result.nbytes])
        if name == "aten::convolution_backward":
            gradient, images, weight = arguments[:3]
            own = [weight.nbytes, weight.nbytes]
            return own + ([] if channels_last else [gradient.nbytes, images.nbytes])
        return []

    return scratch


@contextlib.contextmanager
def _autocast(kind: str, precision: str) -> Iterator[None]:
    """Autocast as on a device of `kind`, even if this machine has no such device."""
    if precision not in AUTOCAST_DTYPES:
        yield
        return
    # torch.autocast("cuda") disables itself where there is no GPU.
    before = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    torch.set_autocast_enabled(kind, True)
    torch.set_autocast_dtype(kind, AUTOCAST_DTYPES[precision])
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(kind, before[0])
        torch.set_autocast_dtype(kind, before[1])


@contextlib.contextmanager
def _fused_attention(kind: str) -> Iterator[None]:
    """On CUDA, use the memory-efficient attention kernel, which saves as much as flash kernels do.

    Without a GPU, fake CUDA tensors would take the unfused path, which saves every attention matrix
    and which a real GPU uses only for unusual shapes.
    """
    functional = nn.functional
    original = functional.scaled_dot_product_attention

    def fused(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **_: Any,
    ) -> Tensor:
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            query, key, value = (item.to(dtype) for item in (query, key, value))
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        kept: Tensor = kernel(query, key, value, attn_mask, True, dropout_p, is_causal)[0]
        return kept

    if kind == "cuda":
        functional.scaled_dot_product_attention = fused  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original
