"""Forecasts the peak memory of one rank by counting what its steps would hold; computes nothing.

The training step runs on fake tensors, which have sizes but no data, and every live storage is
counted once: what autograd saves for the backward pass, gradients, results. The trace of
allocations is then replayed on a model of the allocator to find what it would take from the system.
The constants at the top of this file are allowances for memory that cannot be counted.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion
from torch.utils._pytree import tree_leaves

from dpeval.components.optimizers import build_optimizer
from dpeval.components.tasks import forecast_task
from dpeval.config import SERIAL, Config, OptimizerConfig, StrategyConfig
from dpeval.data.loading.device_memory import InputMemory
from dpeval.devices.cuda import outside_allocator
from dpeval.errors import ConfigError, first_line
from dpeval.planning.memory.allocator_model import (
    Allocator,
    CachingAllocator,
    GlibcAllocator,
    replay,
)
from dpeval.planning.memory.fake_step import FakeStep, meta_model
from dpeval.planning.memory.storage_tracker import StorageTracker, tensor_bytes
from dpeval.planning.memory.training_trace import TrainingTrace
from dpeval.record.memory import Forecast
from dpeval.util.display.units import MIB

PROCESS_BYTES = (390 if torch.version.cuda else 200) * MIB
"""CPU rank: interpreter and libraries before anything is built, without file-backed pages (390 MiB
measured with the CUDA build of torch 2.14). Ranks share most of it with the forkserver."""
RUNTIME_BYTES = 40 * MIB
"""CPU rank: oneDNN's compiled kernels and descriptors, autograd's graph, gloo's buffers."""
FRAGMENTATION_SHARE = 0.12
"""CPU rank: fragmentation that the replay misses (small objects between tensors), as a share of
what a step allocates; see ``benchmarks/memory_forecast.py``."""
WORKSPACE_BYTES = 96 * MIB
"""GPU rank: workspaces of cuBLAS (8 MiB, 32 MiB on Hopper) and cuDNN."""
FAKE_CUDA_SINCE = "2.10"
"""Earlier versions abort if a fake CUDA tensor needs a gradient and no GPU is visible."""
REPLAYED_STEPS = 3
"""The first creates the optimizer's state, the second meets the fragmentation that this leaves, and
the third is in equilibrium."""


def forecast(
    config: Config,
    per_device_batch: int,
    build: Callable[[], nn.Module],
    micro_batches: int = 1,
    process_bytes: int | None = None,
    *,
    uses_nccl: bool = False,
    train_images: int | None = None,
    trace: TrainingTrace | None = None,
) -> Forecast:
    """Forecast the peak memory of one rank of a run.

    With cpu, `total_bytes` is the peak resident memory of the rank's process, interpreter and
    libraries included and file-backed pages excluded, like ``RankRecord.peak_bytes``. With gpu, it
    is the GPU memory that the rank takes, the CUDA context included; ``peak_bytes`` excludes
    ``parts["context"]``. A run with ``compile=true`` is forecast as if it were not compiled.

    Args:
        config: task, model, optimizer, strategy, precision and kind of device.
        per_device_batch: images, or sequences, per step of the rank with the largest batch.
        build: makes the model, on ``meta`` or elsewhere.
        micro_batches: number of micro-batches into which that batch is divided.
        process_bytes: baseline of a CPU rank in bytes, if it has been measured.
        uses_nccl: whether GPU ranks communicate through NCCL, which takes memory on each GPU.
        train_images: size of the dataset, which ``dataset.loader=resident`` keeps on each GPU;
            None: as configured.
        trace: what earlier forecasts found about the same training; this one adds to it.

    Raises:
        NoForecast: the model cannot run on fake tensors.
        ConfigError: the model or the optimizer cannot be built or trained as configured.
    """
    gpu = config.hardware.kind == "gpu"
    items = math.ceil(per_device_batch / micro_batches)
    ddp = config.strategy.name != SERIAL
    views = ddp and config.strategy.gradient_as_bucket_view
    held = micro_batches > 1 or views
    trace = trace or TrainingTrace()
    if trace.optimizer is None:
        trace.optimizer = optimizer_bytes(config.optimizer, meta_model(config, build), foreach=gpu)
    state, update = trace.optimizer
    fake_step = trace.step(config, items, build, torch.device("cpu"), held_gradients=held)
    gradients = sum(fake_step.gradients)
    batches = forecast_task(config).input_memory(
        per_device_batch, gpu=gpu, train_items=train_images
    )
    static = {
        "parameters": sum(fake_step.parameters),
        "optimizer": state,
        "buckets": gradients if ddp and not views else 0,
        "input": batches.held,
    }
    in_step = _peak_parts(fake_step, gradients, update, held=held)
    counted = sum(static.values()) + sum(in_step.values())
    setting = _Setting(
        fake_step, state, batches, _buckets(config.strategy, fake_step.gradients), held
    )
    if gpu:
        growth = _cuda_growth(trace, config, items, build, held_gradients=held)
        in_step["activations"] += growth
        taken = _taken(CachingAllocator(), setting)
        allowances = {
            "fragmentation": max(0, taken - counted),
            "workspace": WORKSPACE_BYTES,
            "context": outside_allocator(uses_nccl=uses_nccl),
        }
    else:
        taken = _taken(GlibcAllocator(keeps=config.hardware.keep_memory), setting)
        dynamic = max(0, taken - static["parameters"])
        allowances = {
            "fragmentation": max(0, taken - counted) + int(FRAGMENTATION_SHARE * dynamic),
            "runtime": RUNTIME_BYTES,
            "process": PROCESS_BYTES if process_bytes is None else process_bytes,
        }
    parts = static | in_step | allowances
    return Forecast(total_bytes=sum(parts.values()), parts=parts, source="model")


def _peak_parts(fake_step: FakeStep, gradients: int, update: int, *, held: bool) -> dict[str, int]:
    """The parts in use at the peak: within the two passes, or in the optimizer's update."""
    passes = fake_step.peak.total + (gradients if held else 0)
    if gradients + update > passes:
        return {"gradients": gradients, "activations": 0, "transient": update}
    return {
        "gradients": gradients if held else fake_step.peak.gradients,
        "activations": fake_step.peak.activations,
        "transient": fake_step.peak.transient,
    }


def _cuda_growth(
    trace: TrainingTrace,
    config: Config,
    items: int,
    build: Callable[[], nn.Module],
    *,
    held_gradients: bool,
) -> int:
    """How much more CUDA's kernels and autocast rules save for the backward pass, in bytes.

    0 with a torch that cannot tell (``FAKE_CUDA_SINCE``): right for convolutional models, but up to
    3 % of the total too low for vision transformers, whose attention differs.
    """
    if TorchVersion(torch.__version__) < FAKE_CUDA_SINCE:
        return 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        on_cuda = trace.step(
            config,
            items,
            build,
            torch.device("cuda", 0),
            held_gradients=held_gradients,
            backward=False,
        )
    on_cpu = trace.step(config, items, build, torch.device("cpu"), held_gradients=held_gradients)
    return on_cuda.activations - on_cpu.activations


def optimizer_bytes(config: OptimizerConfig, model: nn.Module, *, foreach: bool) -> tuple[int, int]:
    """What an optimizer keeps between steps, and what a step needs in addition, in bytes.

    Counted over two steps on the ``meta`` device. An optimizer that reads values runs on a small
    matrix instead, and its needs are scaled to the model.

    Args:
        config: the optimizer and its arguments.
        model: on the ``meta`` device.
        foreach: assume the multi-tensor implementation, the default on CUDA.

    Raises:
        ConfigError: the optimizer cannot take a plain step.
    """
    try:
        return _optimizer_bytes(config, model, foreach=foreach)
    except (RuntimeError, NotImplementedError):
        sample = nn.Linear(64, 64, bias=False)
        try:
            state, update = _optimizer_bytes(config, sample, foreach=foreach)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(_no_plain_step(config, error)) from error
        share = tensor_bytes(model.parameters()) / tensor_bytes(sample.parameters())
        return int(state * share), int(update * share)
    except TypeError as error:
        raise ConfigError(_no_plain_step(config, error)) from error


def _no_plain_step(config: OptimizerConfig, error: Exception) -> str:
    return (
        f"optimizer.name={config.name} cannot take a plain training step "
        f"({first_line(error)}); use one that needs neither a closure nor special parameters"
    )


def _optimizer_bytes(
    config: OptimizerConfig, model: nn.Module, *, foreach: bool
) -> tuple[int, int]:
    optimizer = build_optimizer(config, model)
    for group in optimizer.param_groups:
        if foreach and "foreach" in group and group["foreach"] is None and not group.get("fused"):
            group["foreach"] = True
        # Every device but a GPU rejects it, and it only moves the step count (one number).
        if "capturable" in group:
            group["capturable"] = False
    trained = [item for item in model.parameters() if item.requires_grad]
    for item in trained:
        item.grad = torch.zeros_like(item)
    try:
        optimizer.step()
        kept = [leaf for leaf in tree_leaves(dict(optimizer.state)) if isinstance(leaf, Tensor)]
        kept = [leaf for leaf in kept if leaf.numel() > 1]
        gradients = [item.grad for item in trained if item.grad is not None]
        tracker = StorageTracker([*trained, *gradients, *kept])
        with tracker:
            optimizer.step()
    finally:
        model.zero_grad(set_to_none=True)
    return tensor_bytes(kept), tracker.peak.total


@dataclass(frozen=True)
class _Setting:
    """What real training holds besides the pass; sizes in bytes."""

    fake_step: FakeStep
    optimizer: int
    input: InputMemory
    buckets: tuple[int, ...]
    held: bool


def _buckets(strategy: StrategyConfig, gradients: Sequence[int]) -> tuple[int, ...]:
    """Sizes of DDP's buckets: filled from the last parameter, the first holds 1 MiB."""
    if strategy.name == SERIAL:
        return ()
    sizes, filled, limit = [], 0, 1 * MIB
    for nbytes in reversed(gradients):
        filled += nbytes
        if filled >= limit:
            sizes.append(filled)
            filled, limit = 0, int(strategy.bucket_cap_mb * MIB)
    return tuple([*sizes, filled] if filled else sizes)


def _taken(allocator: Allocator, setting: _Setting) -> int:
    """Peak memory of the allocator over the first steps of a training, in bytes."""
    fake_step = setting.fake_step
    counter = iter(range(10**12, 2 * 10**12))

    def new(nbytes: int) -> int:
        key = next(counter)
        allocator.allocate(key, nbytes)
        return key

    for nbytes in fake_step.parameters:
        new(nbytes)
    for nbytes in setting.buckets:
        new(nbytes)
    if setting.held and not setting.buckets:
        for nbytes in fake_step.gradients:
            new(nbytes)
    made = fake_step.events[: fake_step.first_drop]
    dropped = fake_step.events[fake_step.first_drop :]
    batches = setting.input
    for nbytes in (batches.resident, *batches.in_flight):
        if nbytes:
            new(nbytes)
    for step in range(REPLAYED_STEPS):
        shift = (step + 1) * 10**8
        pixels = [new(batches.pixels)] if batches.pixels else []
        images = _make_images(batches, new, allocator.free)
        replay(allocator, made, shift)
        if step == 0:
            for share in _split(setting.optimizer, fake_step.gradients):
                new(share)
        replay(allocator, dropped, shift)
        for key in (*pixels, images):
            allocator.free(key)
    return allocator.peak


def _make_images(
    batches: InputMemory, new: Callable[[int], int], free: Callable[[int], None]
) -> int:
    """Allocate the images of one step, with all intermediate tensors; return their key."""
    made: list[int] = []
    for place, nbytes in enumerate([*(size for size, _ in batches.passing), batches.images]):
        made.append(new(nbytes))
        for begin, (_, following) in enumerate(batches.passing):
            if begin + following == place:
                free(made[begin])
    return made[-1]


def _split(total: int, like: Sequence[int]) -> list[int]:
    """`total` bytes in pieces whose sizes are proportional to `like`."""
    whole = sum(like)
    return [total * nbytes // whole for nbytes in like] if whole else []
