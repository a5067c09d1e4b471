"""Uneven shares train as one device would: equality to float64 rounding, with real DDP."""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from dpeval.components import strategies
from dpeval.components.loss import GlobalMeanLoss
from dpeval.config import StrategyConfig, split_evenly
from dpeval.devices.cpu import CpuDevice
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.instruments.step_buffer import COLUMNS
from dpeval.run import forkserver
from dpeval.worker.loop import micro_batches


def model() -> nn.Module:
    """No batch statistics, so that one big batch and several small ones mean the same."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.LayerNorm(144), nn.Linear(144, 10)
    ).double()


def data(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, 8, 8, dtype=torch.float64, generator=generator)
    return images, torch.randint(0, 10, (batch,), generator=generator)


def parameters_after(
    wrapped: strategies.WrappedModel, bare: nn.Module, criterion: nn.Module, steps: list[Any]
) -> list[Any]:
    """Train `steps` lists of (images, labels) and return the parameters."""
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1, momentum=0.9)
    for parts in steps:
        for number, (images, labels) in enumerate(parts):
            with wrapped.no_sync() if number < len(parts) - 1 else torch.enable_grad():
                criterion(wrapped.module(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach().numpy() for parameter in bare.parameters()]


def rank_main(rank: int, world: int, batch: int, micro: int, port: int, pipe: Connection) -> None:
    store = dist.TCPStore("127.0.0.1", port, None, False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    bare = model()
    clock = PhaseClock(CpuDevice(), np.zeros((1, len(COLUMNS))))
    wrapped = strategies.ddp(bare, StrategyConfig(bucket_cap_mb=0.001), CpuDevice(), clock)
    shares = split_evenly(batch, world)
    begin = sum(shares[:rank])
    images, labels = (tensor[begin : begin + shares[rank]] for tensor in data(batch))
    parts = micro_batches((images, labels), micro)
    clock.start_step(0, 0.0)
    pipe.send(parameters_after(wrapped, bare, GlobalMeanLoss(batch, 10), [parts] * 3))


@pytest.mark.parametrize(
    ("world", "batch", "micro"), [(3, 16, 1), (3, 128, 1), (2, 15, 1), (2, 15, 3), (3, 16, 2)]
)
def test_the_update_is_the_one_device_update(world: int, batch: int, micro: int) -> None:
    bare = model()
    images, labels = data(batch)
    alone = strategies.single_device(bare, StrategyConfig(), CpuDevice(), None)  # type: ignore[arg-type]
    whole = [[(images, labels)]]
    expected = parameters_after(alone, bare, nn.CrossEntropyLoss(), whole * 3)
    context = forkserver.context()
    store, port = forkserver.serve_store("127.0.0.1")
    pipes, processes = [], []
    for rank in range(world):
        ours, theirs = context.Pipe()
        process = context.Process(
            target=rank_main, args=(rank, world, batch, micro, port, theirs), daemon=True
        )
        process.start()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        assert pipe.poll(400), "a rank did not answer"
        for got, want in zip(pipe.recv(), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)
    for process in processes:
        process.join(120)
    del store
