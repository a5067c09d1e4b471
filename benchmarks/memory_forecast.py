"""Compares forecasts with measured peak resident memory, each model in a new process.

    python benchmarks/memory_forecast.py [--memtracker] [model ...]

Every case takes a few training steps (DDP over one gloo rank, SGD with momentum) in a new process,
forked like a rank of a run, and prints its peak memory next to the forecast, which runs nothing.
Pixels are random: memory does not depend on what images show.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException

from dpeval.commands import hydra_app
from dpeval.components import models, strategies
from dpeval.components.optimizers import build_optimizer
from dpeval.components.tasks import task_of
from dpeval.config import Config
from dpeval.devices.numerics import grad_scaler, set_numerics
from dpeval.devices.select import open_device
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.instruments.step_buffer import COLUMNS, StepBuffer
from dpeval.planning.memory.forecast import forecast
from dpeval.planning.rank_plan import make_plan
from dpeval.record.plan import Plan
from dpeval.run import forkserver
from dpeval.system.topology import detect
from dpeval.util.cpus import allowed_cpus
from dpeval.worker.loop import train_step
from dpeval.worker.trainer import Trainer

MIB = 2**20
STEPS = 4
TARGET = 0.10
CASES = {
    "densenet121": (128, (8, 24)),
    "resnet18": (224, (8, 24)),
    "resnet50": (128, (8, 32)),
    "mobilenet_v3_large": (128, (16, 48)),
    "vit_b_16": (96, (4, 16)),
    "swin_b": (96, (2, 6)),
}
"""Per model: side of the images (px) and two batches."""


@dataclass
class RandomLoader:
    """Returns batches of random pixels, as dpeval's loaders do."""

    batch: int
    px: int
    channels_last: bool
    images_read: int = 0

    def next(self) -> tuple[Tensor, Tensor]:
        shape = (self.batch, self.px, self.px, 3)
        return torch.randint(0, 255, shape, dtype=torch.uint8), torch.zeros(self.batch).long()

    def put(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        shift = torch.zeros(1, 3, 1, 1)
        images = torch.addcmul(shift, batch[0].permute(0, 3, 1, 2).float(), shift + 1 / 255)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.contiguous(memory_format=layout), batch[1]

    def close(self) -> None:
        pass


def rank(config: Config, plan: Plan, pipe: Connection) -> None:
    """Train for a few steps as a rank does, and send (baseline, peak) in bytes."""
    device = open_device("cpu", [allowed_cpus()[-1]], 1)
    baseline = device.memory_bytes()
    device.reset_peak()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    set_numerics(config.precision, deterministic=False)
    model = models.build(config.model, config.dataset.image_px)
    channels_last = config.memory_format == "channels_last"
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    step_buffer = StepBuffer(forkserver.context(), 1, STEPS)
    clock = PhaseClock(device, step_buffer.rows(0))
    assert step_buffer.rows(0).shape == (STEPS, len(COLUMNS))
    trainer = Trainer(
        config=config,
        plan=plan,
        rank=0,
        device=device,
        clock=clock,
        task=task_of(config),
        loader=RandomLoader(plan.global_batch_size, config.dataset.image_px, channels_last),
        model=model.train(),
        wrapped=strategies.ddp(model, config.strategy, device, clock),
        optimizer=build_optimizer(config.optimizer, model),
        scaler=grad_scaler(device, config.precision),
    )
    for step in range(STEPS):
        train_step(trainer, step)
    pipe.send((baseline, device.peak_bytes()))
    pipe.close()
    os._exit(0)


def measure(config: Config, plan: Plan) -> tuple[int, int]:
    """(baseline, peak) of a fresh process that trains `config`, in bytes."""
    ours, theirs = forkserver.context().Pipe(duplex=False)
    process = forkserver.context().Process(target=rank, args=(config, plan, theirs))
    process.start()
    theirs.close()
    try:
        baseline, peak = ours.recv()
    finally:
        process.join()
    return int(baseline), int(peak)


def memtracker_bytes(config: Config, batch: int) -> int:
    """What torch's MemTracker counts for one step under FakeTensorMode, without an optimizer."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    px = config.dataset.image_px
    with FakeTensorMode():
        model = models.build(config.model, config.dataset.image_px)
        images, labels = torch.randn(batch, 3, px, px), torch.zeros(batch).long()
        tracker = MemTracker()
        tracker.track_external(model)
        mixed = config.precision == "bf16"
        with tracker, torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
        snapshot = tracker.get_tracker_snapshot("peak")
    return max(int(sizes["Total"]) for sizes in snapshot.values())


def cases(names: list[str]) -> list[tuple[Config, int]]:
    """Configurations and batches, fp32 and bf16."""
    found = []
    for name in names:
        px, batches = CASES[name]
        for precision in ("fp32", "bf16"):
            for batch in batches:
                overrides = [f"model={name}", f"batch={batch}", f"precision={precision}"]
                config = hydra_app.compose([*overrides, f"dataset.image_px={px}"])
                found.append((config, batch))
    return found


def line(config: Config, batch: int, memtracker: Callable[[Config, int], int] | None) -> float:
    """Print one row; return the relative error of the total."""
    build = lambda: models.build(config.model, config.dataset.image_px)  # noqa: E731
    begin_s = time.perf_counter()
    ahead = forecast(config, batch, build)
    took_s = time.perf_counter() - begin_s
    baseline, peak = measure(config, make_plan(config, detect()))
    process = ahead.parts["process"]
    error = ahead.total_bytes / peak - 1
    rise_error = (ahead.total_bytes - process) / (peak - baseline) - 1
    print(
        f"{config.model.name:20}{config.dataset.image_px:4} px {batch:4}  {config.precision}"
        f"{ahead.total_bytes / MIB:9.0f}{peak / MIB:9.0f}{error:+8.1%}"
        f"{(ahead.total_bytes - process) / MIB:9.0f}{(peak - baseline) / MIB:9.0f}"
        f"{rise_error:+8.1%}{took_s:7.1f} s",
        end="",
    )
    if memtracker is not None:
        counted = ahead.counted_bytes - ahead.parts["optimizer"] - ahead.parts["buckets"]
        try:
            tracked = f"{memtracker(config, batch) / MIB:9.0f}"
        except DataDependentOutputException:
            tracked = f"{'cannot':>9}"  # the model reads a value of a tensor without data
        print(f"{counted / MIB:9.0f}{tracked}", end="")
    print(flush=True)
    return error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(CASES))
    parser.add_argument("--memtracker", action="store_true", help="count with MemTracker too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "                                    whole process [MiB]       training alone [MiB]\n"
        "model                   px batch prec forecast     peak   error forecast     peak   "
        "error  forecast took" + ("  counted MemTracker" if arguments.memtracker else "")
    )
    tracker = memtracker_bytes if arguments.memtracker else None
    errors = [line(config, batch, tracker) for config, batch in cases(arguments.models)]
    worst = max(errors, key=abs)
    print(f"worst error of the whole: {worst:+.1%} (target: {TARGET:.0%})")
    return 0 if abs(worst) <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
