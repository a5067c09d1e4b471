"""What dpeval's loop costs over a bare DDP loop: interleaved blocks of both in the same ranks.

    python benchmarks/overhead.py [--pairs 60]
    python benchmarks/overhead.py --pairs 900 model=calibrated dataset=calibrated \
        hardware.oversubscribe=true num_devices=8
    python benchmarks/overhead.py hardware=gpu dataset=imagenette_like batch=1 strategy=none

Each rank has one loader and two models: one in a bare wrapper, one in dpeval's. Blocks of steps of
the bare loop below and of :func:`dpeval.worker.loop.train_step` alternate, so a drift of the
machine affects both equally. A block ends when the device has done its work, and is timed as a
whole, so rare costs (checking whether to stop, reference work) are in it. Two ratios are printed,
each with a 95 % interval from a bootstrap over pairs of blocks: the median of the pairs' ratios,
which disturbances hardly move, and the ratio of all blocks' means. If ranks share cores, single
steps vary by 18 %, and 60 pairs of blocks determine the ratios to within 2 %.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import Store
from torch.nn.parallel import DistributedDataParallel

from dpeval.commands import hydra_app
from dpeval.components.models import build
from dpeval.components.optimizers import build_optimizer
from dpeval.data import prepare
from dpeval.data.loading.loaders import Loader
from dpeval.devices.base import Device
from dpeval.devices.cuda import cuda_gpus
from dpeval.devices.numerics import grad_scaler
from dpeval.devices.select import open_device
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.instruments.reference_work import ReferenceWork
from dpeval.instruments.step_buffer import COLUMNS, StepBuffer
from dpeval.instruments.stop_sync import StopSync
from dpeval.planning.rank_plan import make_plan
from dpeval.run import forkserver
from dpeval.system.conditions import ConditionSampler
from dpeval.system.topology import detect
from dpeval.worker.loop import train_step
from dpeval.worker.messages import RankTask
from dpeval.worker.rank_process import rendezvous
from dpeval.worker.trainer import SetupTimer, Trainer, build_trainer

BLOCK_S = 0.15
"""Shorter than most disturbances of a shared machine last."""
WARM_UP_STEPS = 5
Pairs = list[tuple[float, float]]
"""Mean step (s) of each block of the bare loop, and of dpeval's block beside it."""


@dataclass(frozen=True)
class BareLoop:
    """The loop as a careful user would write it."""

    model: Callable[..., Any]
    loader: Loader
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    autocast: AbstractContextManager[Any]

    def run(self, steps: int) -> None:
        criterion = nn.CrossEntropyLoss()
        for _ in range(steps):
            images, labels = self.loader.put(self.loader.next())
            with self.autocast:
                loss = criterion(self.model(images), labels)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)


def bare_loop(trainer: Trainer) -> BareLoop:
    """A second model, with the wrapper and the optimizer that `trainer` has, but no instruments."""
    config, device = trainer.config, trainer.device
    bare = build(config.model, config.dataset.image_px).to(device.torch_device)
    if config.memory_format == "channels_last":
        bare = bare.to(memory_format=torch.channels_last)
    bare.train()
    model: Callable[..., Any] = bare
    if config.strategy.name != "none":
        # Recent releases of torch warn if even the default is passed.
        buffers: dict[str, Any] = (
            {} if config.strategy.broadcast_buffers else {"broadcast_buffers": False}
        )
        model = DistributedDataParallel(
            bare,
            device_ids=[device.torch_device.index] if device.is_cuda else None,
            bucket_cap_mb=config.strategy.bucket_cap_mb,
            **buffers,
            gradient_as_bucket_view=config.strategy.gradient_as_bucket_view,
            static_graph=config.strategy.static_graph,
            find_unused_parameters=config.strategy.find_unused_parameters,
        )
    return BareLoop(
        model=torch.compile(model) if config.compile else model,
        loader=trainer.loader,
        optimizer=build_optimizer(config.optimizer, bare),
        scaler=grad_scaler(device, config.precision),
        autocast=trainer.autocast,
    )


def dpeval_steps(trainer: Trainer, stop_sync: StopSync, steps: int, done: int) -> None:
    """dpeval's steps with all instruments on."""
    for index in range(done, done + steps):
        train_step(trainer, index)
        stop_sync.go_on(index + 1)


def mean_step_s(device: Device, run: Callable[[int], None], steps: int) -> float:
    """Time of a block of `steps` steps, from an idle device to an idle device, per step."""
    device.finish()
    begin_s = time.perf_counter()
    run(steps)
    device.finish()
    return (time.perf_counter() - begin_s) / steps


def rank_main(task: RankTask, step_buffer: StepBuffer, pipe: Connection) -> None:
    config, plan, rank = task.config, task.plan, task.rank
    mine = plan.ranks[rank]
    device = open_device(mine.device, mine.cpus, mine.threads)
    store = rendezvous(task)
    clock = PhaseClock(device, step_buffer.rows(rank))
    trainer = build_trainer(task, device, clock, SetupTimer())
    reference_work = None if device.is_cuda else ReferenceWork()
    stop_sync = StopSync(rank, rank, store, step_buffer, clock, config.measure, reference_work)
    bare = bare_loop(trainer)
    done = 0

    def run_ours(steps: int) -> None:
        nonlocal done
        dpeval_steps(trainer, stop_sync, steps, done)
        done += steps

    for run in (bare.run, run_ours):
        mean_step_s(device, run, WARM_UP_STEPS)
    steps = agreed_steps(mean_step_s(device, bare.run, WARM_UP_STEPS), device, store)
    pairs: Pairs = []
    for number in range(config.repeat + 1):
        # Alternate which one goes first, because the second would benefit from the first.
        if number % 2:
            first_s = mean_step_s(device, bare.run, steps)
            pairs.append((first_s, mean_step_s(device, run_ours, steps)))
        else:
            second_s = mean_step_s(device, run_ours, steps)
            pairs.append((mean_step_s(device, bare.run, steps), second_s))
    if rank == 0:
        pipe.send(pairs[1:])


def agreed_steps(step_s: float, device: Device, store: Store | None) -> int:
    """How many steps of `step_s` seconds make a block, as rank 0 sees it."""
    agreed = torch.tensor([int(np.clip(BLOCK_S / step_s, 3, 100))], device=device.torch_device)
    if store is not None:
        dist.broadcast(agreed, 0)
    return int(agreed)


@dataclass(frozen=True)
class Ratio:
    """dpeval's steps over the bare loop's, with a bootstrapped 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f}   {self.low:.4f} … {self.high:.4f}"


def bare_step_s(pairs: Pairs) -> float:
    """Median of the bare blocks' mean steps, s."""
    return float(np.median([bare_s for bare_s, _ in pairs]))


def ratio_of_medians(pairs: Pairs) -> Ratio:
    """Median over pairs of dpeval's mean step over the bare one."""
    ratios = np.array([ours_s / bare_s for bare_s, ours_s in pairs])
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return Ratio(float(np.median(ratios)), float(low), float(high))


def ratio_of_means(pairs: Pairs) -> Ratio:
    """Mean step of all of dpeval's blocks over that of all bare ones, pairs drawn together."""
    means = np.array(pairs)
    chosen = np.random.default_rng(0).integers(len(means), size=(2000, len(means)))
    bare_s, ours_s = means[chosen].mean(axis=1).T
    low, high = np.quantile(ours_s / bare_s, (0.025, 0.975))
    bare_mean_s, ours_mean_s = means.mean(axis=0)
    return Ratio(float(ours_mean_s / bare_mean_s), float(low), float(high))


def measure(overrides: list[str]) -> Pairs:
    """The pairs of blocks of rank 0: ``repeat`` of `overrides` many."""
    config = hydra_app.compose(
        [
            "measure.rel_precision=1e-4",
            "measure.time_limit_s=1e6",
            "measure.max_steps=100000",
            *overrides,
        ]
    )
    plan = make_plan(config, detect(cuda_gpus()))
    if plan.skip is not None:
        raise SystemExit(plan.skip)
    source = prepare(config.dataset, print)
    context = forkserver.context()
    step_buffer = StepBuffer(context, plan.world_size, config.measure.max_steps)
    store, port = forkserver.serve_store("127.0.0.1")
    pipes, processes = [], []
    for rank in range(plan.world_size):
        ours, theirs = context.Pipe()
        task = RankTask(config, plan, rank, source, "127.0.0.1", port, env={})
        process = context.Process(target=rank_main, args=(task, step_buffer, theirs), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    sampler = ConditionSampler(
        {process.pid or 0: mine.cpus for process, mine in zip(processes, plan.ranks, strict=True)}
    )
    while not pipes[0].poll(0.2):
        sampler.sample()
        if dead := [process.exitcode for process in processes if process.exitcode]:
            raise SystemExit(f"a rank exited with status {dead[0]}; stopping the others")
    pairs: Pairs = pipes[0].recv()
    for process in processes:
        process.join(10)
    del store
    bad = sampler.finish().bad
    if bad:
        print("  warning:", "; ".join(bad))
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("overrides", nargs="*", help="one case of your own, as dpeval overrides")
    given = parser.parse_args()
    small = ["dataset=imagenette_like", "dataset.image_px=64", "model=densenet121", "batch=16"]
    calibrated = ["model=calibrated", "dataset=calibrated", "hardware.oversubscribe=true"]
    cases = {
        "DenseNet121, 1 rank": [*small],
        "DenseNet121, 2 ranks": [*small, "num_devices=2", "hardware.oversubscribe=true"],
        "calibrated 10 ms, 1 rank": [*calibrated],
        "calibrated 10 ms, 8 ranks": [*calibrated, "num_devices=8"],
    }
    if given.overrides:
        cases = {" ".join(given.overrides): given.overrides}
    print(
        f"{'case':28} {'bare step':>10}  {'of medians, 95 % interval':30}  "
        f"{'of means, 95 % interval':30}  columns: {len(COLUMNS)}"
    )
    for name, overrides in cases.items():
        pairs = measure([*overrides, f"repeat={given.pairs}"])
        bare_s = bare_step_s(pairs)
        medians, means = str(ratio_of_medians(pairs)), str(ratio_of_means(pairs))
        print(f"{name:28} {bare_s * 1e3:7.2f} ms  {medians:30}  {means:30}")


if __name__ == "__main__":
    main()
