"""Hidden and exposed communication against all-reduces that last a known time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.gpu.checks import Check, near
from benchmarks.gpu.known_times import Sleeper, SleepingOptimizer, StubGroup, sleeping_model
from benchmarks.gpu.setting import Setting, column, rows, trainer
from dpeval.components.strategies import TimedGroup, WrappedModel, timed_all_reduce
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.worker.loop import train_step

LAYERS, BACKWARD_S = 6, 0.004
VALUES = 2**18
"""Parameters of each layer: one bucket of 1 MiB."""
REDUCES = {"hidden": 0.002, "half hidden": 0.006, "exposed": 0.012}
"""Time of one all-reduce, s; a layer's gradient follows the one before after `BACKWARD_S`."""
SKIPPED = 3


def truth(reduce_s: float) -> tuple[float, float]:
    """All-reduce time of a step and its part after the last gradient, s.

    Gradient j is ready at j · b; its all-reduce begins then, or when the one before has ended:
    the last of L ends at max(L · b + c, b + L · c).
    """
    end_s = max(LAYERS * BACKWARD_S + reduce_s, BACKWARD_S + LAYERS * reduce_s)
    busy_s = LAYERS * reduce_s
    return busy_s, end_s - LAYERS * BACKWARD_S


def run(setting: Setting) -> Iterator[Check]:
    """Three lengths of an all-reduce, with gradients as views of the buckets and without."""
    device = setting.device()
    backend = "nccl" if device.is_cuda else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    sleep = Sleeper(device)
    steps = 6 if setting.rehearse else 20
    config = setting.config("batch=4", "dataset.image_px=8")
    for name, reduce_s in REDUCES.items():
        for views in (False, True):
            model = sleeping_model(
                sleep, LAYERS, 0.001, BACKWARD_S, VALUES, config.dataset.num_classes
            ).to(device.torch_device)
            table = rows(steps)
            clock = PhaseClock(device, table)
            wrapped = DistributedDataParallel(
                model,
                device_ids=[0] if device.is_cuda else None,
                bucket_cap_mb=0.5,
                gradient_as_bucket_view=views,
            )
            group = StubGroup(device, sleep, reduce_s)
            timed = TimedGroup(clock, group)  # type: ignore[arg-type]  # has all that the hook calls
            wrapped.register_comm_hook(timed, timed_all_reduce)
            made = trainer(
                config,
                device,
                model,
                SleepingOptimizer(model, sleep, 0.001),
                wrapped=WrappedModel(wrapped, wrapped.no_sync),
                clock=clock,
            )
            for step in range(steps):
                train_step(made, step)
            device.finish()
            clock.drain()
            busy_s, exposed_s = truth(reduce_s)
            case = f"{name}, {'with' if views else 'without'} bucket views"
            kept = table[SKIPPED:]
            for column_name, truth_s in (
                ("comm_exposed", exposed_s),
                ("comm", busy_s),
                ("backward", LAYERS * BACKWARD_S),
            ):
                mean_s = float(np.median(column(kept, column_name)))
                yield near(
                    f"{column_name}: {case}",
                    mean_s * 1e3,
                    truth_s * 1e3,
                    "ms",
                    share=0.01,
                    at_least=0.1,
                    is_timing=True,
                )
    dist.destroy_process_group()
