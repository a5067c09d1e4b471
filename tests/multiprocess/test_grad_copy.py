"""What DDP does outside its all-reduces, with real DDP: copies of gradients, broadcasts."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from dpeval.components import strategies
from dpeval.config import StrategyConfig
from dpeval.devices.cpu import CpuDevice
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.instruments.step_buffer import COLUMNS
from dpeval.record.phases import PHASES
from dpeval.run import forkserver
from dpeval.util.arrays import Floats

STEPS = 12

LAYERS, WIDTH = 8, 1000
LATE_S = 0.3
"""Far longer than another process keeps a rank from its core."""


def rank_main(rank: int, case: str, port: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, None, False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    bare = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    if case == "buffers":
        bare = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))
    rows = np.zeros((STEPS, len(COLUMNS)))
    clock = PhaseClock(CpuDevice(), rows)
    config = StrategyConfig(bucket_cap_mb=10, gradient_as_bucket_view=case == "views")
    wrapped = strategies.ddp(bare, config, CpuDevice(), clock)
    for step in range(STEPS):
        clock.start_step(step, 0.0)
        if case == "buffers" and rank == 0:
            time.sleep(LATE_S)
        clock.mark("data")
        loss = wrapped.module(torch.ones(2, WIDTH)).sum()
        clock.mark("forward")
        loss.backward()
        clock.mark("backward")
        bare.zero_grad(set_to_none=True)
        clock.end_step()
    clock.drain()
    pipe.send(rows)


def steps_of(case: str) -> list[Floats]:
    """The rows of two ranks' steps."""
    context = forkserver.context()
    store, port = forkserver.serve_store("127.0.0.1")
    pipes, processes = [], []
    for rank in range(2):
        ours, theirs = context.Pipe()
        process = context.Process(target=rank_main, args=(rank, case, port, theirs))
        process.start()
        pipes.append(ours)
        processes.append(process)
    rows = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    del store
    return rows


def typical(rows: Floats, phase: str) -> float:
    return float(np.median(rows[2:, COLUMNS.index(phase)]))


def test_only_without_bucket_views_are_gradients_copied_after_communication() -> None:
    copied, viewed = steps_of("copies"), steps_of("views")
    for with_copies, without in zip(copied, viewed, strict=True):
        # 32 MB are copied: milliseconds at any memory bandwidth.
        assert typical(with_copies, "grad_copy") > 1e-3
        assert typical(without, "grad_copy") < 0.25 * typical(with_copies, "grad_copy")
        for rows in (with_copies, without):
            assert typical(rows, "comm_exposed") > 0
            parts = rows[:, [COLUMNS.index(phase) for phase in PHASES]]
            np.testing.assert_allclose(parts.sum(axis=1), rows[:, COLUMNS.index("step")])
            assert (parts >= -1e-12).all()


def test_waiting_for_rank_0_in_a_broadcast_of_buffers_is_communication_and_not_forward() -> None:
    late, waiting = steps_of("buffers")
    assert typical(late, "data") >= LATE_S
    assert typical(waiting, "comm_exposed") > 0.5 * LATE_S
    assert typical(waiting, "forward") < 0.5 * LATE_S
    for rows in (late, waiting):
        parts = rows[:, [COLUMNS.index(phase) for phase in PHASES]]
        np.testing.assert_allclose(parts.sum(axis=1), rows[:, COLUMNS.index("step")])
        assert (rows[:, COLUMNS.index("comm")] >= rows[:, COLUMNS.index("comm_exposed")]).all()
