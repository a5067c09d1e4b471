"""One rank of a calibrated training in a network namespace; prints its step rows as JSON.

python -m tests.multiprocess.shaped_rank RANK HOST PORT BACKWARD_S GRADIENT_MIB BUCKET_MB STEPS
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dpeval.components import calibrated, strategies
from dpeval.config import StrategyConfig
from dpeval.devices.cpu import CpuDevice
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.instruments.step_buffer import COLUMNS


def ddps_own_times(
    model: nn.Module, bucket_mb: float, images: Tensor, labels: Tensor
) -> dict[str, Any]:
    """What DDP's own timers say of the same training without dpeval's hook (ns, averages of the
    first ten iterations; our hook waits for the last bucket, which DDP takes for computing)."""
    plain = DistributedDataParallel(model, bucket_cap_mb=bucket_mb)
    for _ in range(11):
        torch.nn.functional.cross_entropy(plain(images), labels).backward()
    log: dict[str, Any] = plain._get_ddp_logging_data()
    return log


def main() -> None:
    rank, host, port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    backward_s, gradient_mib, bucket_mb = (float(word) for word in sys.argv[4:7])
    steps = int(sys.argv[7])
    torch.set_num_threads(1)
    store = dist.TCPStore(host, port, 2, rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    rows = np.zeros((steps, len(COLUMNS)))
    clock = PhaseClock(CpuDevice(), rows)
    model = calibrated.calibrated_model(
        forward_s=0.01, backward_s=backward_s, gradient_mib=gradient_mib
    )
    config = StrategyConfig(bucket_cap_mb=bucket_mb)
    wrapped = strategies.ddp(model, config, CpuDevice(), clock)
    images, labels = torch.zeros(2, 3, 1, 1), torch.tensor([0, 1])
    for step in range(steps):
        clock.start_step(step, 0.0)
        loss = torch.nn.functional.cross_entropy(wrapped.module(images), labels)
        clock.mark("forward")
        loss.backward()
        clock.mark("backward")
        clock.end_step()
    clock.drain()
    log = ddps_own_times(model, bucket_mb, images, labels)
    dist.barrier()
    times = {name: rows[:, index].tolist() for index, name in enumerate(COLUMNS)}
    buckets = [(nbytes, series[2:]) for nbytes, series in clock.bucket_s.values()]
    kept = {key: value for key, value in log.items() if isinstance(value, int | float | str)}
    print(json.dumps({"times": times, "buckets": buckets, "ddp": kept}))


if __name__ == "__main__":
    main()
