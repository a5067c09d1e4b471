"""Layers, an optimizer and an all-reduce that take a known time on their device."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from dpeval.devices.base import Device


class Sleeper:
    """Occupies a device for a given time; on CUDA a kernel that counts clock cycles."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.cycles_per_s = self._overhead_s = 0.0
        if device.is_cuda:
            self.calibrate()

    def calibrate(self) -> float:
        """Read the rate of the kernel's clock from events; returns cycles per second."""
        short, long = 2_000_000, 20_000_000
        self._train_s(long)  # raises the clock
        short_s, long_s = self._train_s(short), self._train_s(long)
        self.cycles_per_s = (long - short) / (long_s - short_s)
        self._overhead_s = short_s - short / self.cycles_per_s
        return self.cycles_per_s

    def _train_s(self, cycles: int, kernels: int = 10) -> float:
        """Mean time of one of several such kernels in a row, s."""
        begin = self._device.stamp()
        for _ in range(kernels):
            torch.cuda._sleep(cycles)
        end = self._device.stamp()
        self._device.finish()
        return self._device.elapsed_s(begin, end) / kernels

    def __call__(self, seconds: float) -> None:
        if self._device.is_cuda:
            torch.cuda._sleep(int((seconds - self._overhead_s) * self.cycles_per_s))
            return
        end_s = time.perf_counter() + seconds
        while time.perf_counter() < end_s:
            pass


class _Slept(torch.autograd.Function):
    """Passes its input on after a while, in both directions."""

    @staticmethod
    def forward(
        context: Any,
        features: Tensor,
        weight: Tensor,
        sleep: Sleeper,
        forward_s: float,
        backward_s: float,
    ) -> Tensor:
        context.sleep, context.backward_s = sleep, backward_s
        context.save_for_backward(weight)
        sleep(forward_s)
        return features.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        (weight,) = context.saved_tensors
        context.sleep(context.backward_s)
        return gradients[0], torch.zeros_like(weight), None, None, None


class SleepingLayer(nn.Module):
    """Takes `forward_s` and `backward_s`; has `values` parameters."""

    def __init__(self, sleep: Sleeper, forward_s: float, backward_s: float, values: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(values))
        self._sleep, self._forward_s, self._backward_s = sleep, forward_s, backward_s

    def forward(self, features: Tensor) -> Tensor:
        slept: Tensor = _Slept.apply(
            features, self.weight, self._sleep, self._forward_s, self._backward_s
        )
        return slept


class Pooled(nn.Module):
    """Images [b, 3, px, px] to features [b, 3]; nothing to train."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def sleeping_model(
    sleep: Sleeper, layers: int, forward_s: float, backward_s: float, values: int, classes: int
) -> nn.Sequential:
    """A classifier whose layers take known times.

    Args:
        sleep: occupies the device.
        layers: number of layers.
        forward_s: of each layer, s.
        backward_s: of each layer, s.
        values: parameters of each layer.
        classes: columns of the logits.
    """
    # The head comes first, so that the layers' gradients are the last to be ready.
    head = nn.Linear(3, classes)
    chain = [SleepingLayer(sleep, forward_s, backward_s, values) for _ in range(layers)]
    for parameter in head.parameters():
        parameter.requires_grad_(False)
    return nn.Sequential(Pooled(), head, *chain)


class SleepingOptimizer(torch.optim.Optimizer):
    """Changes nothing, in a known time."""

    def __init__(self, model: nn.Module, sleep: Sleeper, seconds: float) -> None:
        trained = [item for item in model.parameters() if item.requires_grad]
        super().__init__(trained, {})
        self._sleep, self._seconds = sleep, seconds

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self._sleep(self._seconds)


class _StubWork:
    """One all-reduce of :class:`StubGroup` in progress."""

    def __init__(self, wait: Callable[[], None], future: torch.futures.Future[list[Tensor]]):
        self.wait, self._future = wait, future

    def get_future(self) -> torch.futures.Future[list[Tensor]]:
        return self._future


class StubGroup:
    """Stands in for a process group: every all-reduce takes `seconds`, one after another.

    On CUDA they run on a stream of their own, as NCCL's do; on the CPU in a thread, as gloo's do.
    """

    def __init__(self, device: Device, sleep: Sleeper, seconds: float) -> None:
        self._device, self._sleep, self._seconds = device, sleep, seconds
        self._thread = ThreadPoolExecutor(1)
        self._stream = torch.cuda.Stream() if device.is_cuda else None

    def allreduce(self, tensors: list[Tensor]) -> _StubWork:
        return self._on_cpu(tensors) if self._stream is None else self._on_stream(tensors)

    def _on_stream(self, tensors: list[Tensor]) -> _StubWork:
        stream = self._stream
        assert stream is not None
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._sleep(self._seconds)
            done = torch.cuda.Event()
            done.record()
            future: torch.futures.Future[list[Tensor]] = torch.futures.Future(
                devices=[self._device.torch_device]
            )
            future.set_result(tensors)
        return _StubWork(lambda: torch.cuda.current_stream().wait_event(done), future)

    def _on_cpu(self, tensors: list[Tensor]) -> _StubWork:
        future: torch.futures.Future[list[Tensor]] = torch.futures.Future()
        ended = threading.Event()

        def reduce() -> None:
            time.sleep(self._seconds)
            ended.set()
            future.set_result(tensors)

        self._thread.submit(reduce)

        def wait() -> None:
            ended.wait()

        return _StubWork(wait, future)
