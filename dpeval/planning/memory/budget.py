"""How much memory one rank may use, and what to do if the forecast exceeds it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from dpeval.config import HardwareConfig
from dpeval.errors import NoForecast
from dpeval.record.codes import MemoryAction
from dpeval.record.machine import Machine
from dpeval.record.memory import Budget, Forecast
from dpeval.system import cgroups
from dpeval.util.display.plural import counted
from dpeval.util.display.units import GIB, MIB
from dpeval.util.frozen import Frozen


class Decision(Frozen):
    """What to do with a run, given its forecast and its budget."""

    action: MemoryAction
    micro_batches: int = 1
    forecast: Forecast
    """The forecast with `micro_batches` micro-batches."""
    budget: Budget
    devices_needed: int | None = None
    """The smallest device count at which this batch is forecast to fit; None if there is none."""
    line: str
    """The decision in one line, for the user."""


def budget(
    hardware: HardwareConfig,
    machine: Machine,
    ranks_on_node: int,
    *,
    shared_bytes: int = 0,
    gpu_free_bytes: Sequence[int] = (),
    variables: Mapping[str, str] | None = None,
    root: Path = cgroups.ROOT,
) -> Budget:
    """Memory that each of `ranks_on_node` ranks may use on `machine`.

    ``hardware.memory_gib`` takes precedence. A GPU rank may use the free memory of its GPU, or an
    equal part of it under ``hardware.oversubscribe`` if there are more ranks than GPUs. CPU ranks
    share what the host, the cgroups above this process and the scheduler currently leave free.

    Args:
        hardware: kind of device and, if the user stated one, the budget.
        machine: its GPUs.
        ranks_on_node: number of ranks that share the host's memory.
        shared_bytes: memory that ranks share with the forkserver and that therefore counts once.
        gpu_free_bytes: free memory of each GPU in use; empty if it cannot be read.
        variables: the environment; ``os.environ`` by default.
        root: the cgroup file system.
    """
    if hardware.memory_gib is not None:
        return Budget(bytes=int(hardware.memory_gib * GIB), source="hardware.memory_gib")
    if hardware.kind == "gpu":
        sharing = 1
        if hardware.oversubscribe and machine.gpus:
            sharing = math.ceil(ranks_on_node / len(machine.gpus))
        total = min((gpu.total_bytes for gpu in machine.gpus[:ranks_on_node]), default=0)
        source = "free GPU memory" if gpu_free_bytes else "GPU memory"
        each = min(total, *gpu_free_bytes) if gpu_free_bytes else total
        return Budget(bytes=each // sharing, source=source + _shared_by(sharing))
    node = node_free(variables, root)
    left = max(0, node.bytes - shared_bytes)
    each = left // ranks_on_node + min(shared_bytes, node.bytes)
    return Budget(bytes=each, source=node.source + _shared_by(ranks_on_node))


def _shared_by(ranks: int) -> str:
    return f", shared by {ranks} ranks" if ranks > 1 else ""


def node_free(variables: Mapping[str, str] | None = None, root: Path = cgroups.ROOT) -> Budget:
    """The least memory that the host, cgroups (v1, v2) or scheduler currently leaves this
    process."""
    found = [Budget(bytes=psutil.virtual_memory().available, source="free memory of the host")]
    for folder in cgroups.folders("memory", root):
        free = cgroups.memory_left(folder)
        if free is not None:
            found.append(
                Budget(bytes=free, source=f"memory limit of cgroup {cgroups.display_name(folder)}")
            )
    limit = _scheduler_limit(os.environ if variables is None else variables)
    if limit is not None:
        found.append(limit)
    return min(found, key=lambda item: item.bytes)


def _scheduler_limit(variables: Mapping[str, str]) -> Budget | None:
    """Memory that SLURM gives this job on this node; its variables are in MiB, 0 means all."""
    for name, factor in (("SLURM_MEM_PER_NODE", "1"), ("SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE")):
        try:
            mib = int(variables[name]) * int(variables.get(factor, factor))
        except (KeyError, ValueError):
            continue
        if mib > 0:
            return Budget(bytes=mib * MIB, source=name)
    return None


def decide(
    on_excess: str,
    shares: Sequence[int],
    forecast_at: Callable[[int, int], Forecast],
    budget_at: Callable[[int], Budget],
    *,
    strong: bool = True,
) -> Decision:
    """Decide what to do with a run; starts nothing.

    Args:
        on_excess: the policy, ``memory.on_excess``.
        shares: images per step of every rank.
        forecast_at: forecasts a rank from its images per step and its micro-batches.
        budget_at: budget of one rank, given the number of ranks.
        strong: whether the global batch stays the same when devices are added.

    Raises:
        NoForecast: from `forecast_at`.
    """
    images, devices = max(shares), len(shares)
    there, whole = budget_at(devices), forecast_at(images, 1)
    if whole.needed_bytes <= there.bytes:
        line = f"forecast {_gib(whole.needed_bytes)} of {_gib(there.bytes)} per rank"
        return Decision(action="run", forecast=whole, budget=there, line=line)
    excess = (
        f"batch {images} per rank is forecast to need {_gib(whole.needed_bytes)}, but only "
        f"{_gib(there.bytes)} is available ({there.source})"
    )
    needed = _devices_needed(sum(shares), devices, forecast_at, budget_at) if strong else None
    advice = (
        f"by forecast, this batch fits on {counted(needed, 'device')} or more"
        if needed
        else "a smaller batch or memory.on_excess=accumulate may fit"
    )
    if on_excess == "accumulate":
        parts = _micro_batches_needed(shares, forecast_at, there)
        if parts is not None:
            return Decision(
                action="accumulate",
                micro_batches=parts,
                forecast=forecast_at(images, parts),
                budget=there,
                devices_needed=needed,
                line=f"{excess}: accumulating over {parts} micro-batches of "
                f"{math.ceil(images / parts)}",
            )
        advice = "not even micro-batches of one image fit"
    action: MemoryAction = "skip"
    what = f"skipped; {advice}"
    if on_excess == "try":
        action, what = "try", "run anyway (memory.on_excess=try)"
    elif on_excess == "error":
        action, what = "error", advice
    return Decision(
        action=action,
        forecast=whole,
        budget=there,
        devices_needed=needed,
        line=f"{excess}: {what}",
    )


def _devices_needed(
    global_batch_size: int,
    devices: int,
    forecast_at: Callable[[int, int], Forecast],
    budget_at: Callable[[int], Budget],
) -> int | None:
    """The smallest device count above `devices` at which every rank fits; None if there is none.

    A line through two forecasts rules out counts that are far from fitting.
    """
    last = math.ceil(global_batch_size / devices)
    guess = _bytes_by_images(forecast_at, last)
    for count in range(devices + 1, global_batch_size + 1):
        images, there = math.ceil(global_batch_size / count), budget_at(count).bytes
        if guess(images) > there * 1.1:
            continue
        if _fits(forecast_at, images, 1, there):
            return count
    return None


def _micro_batches_needed(
    shares: Sequence[int], forecast_at: Callable[[int, int], Forecast], there: Budget
) -> int | None:
    """The smallest number of micro-batches that fits, of equal size if the shares allow."""
    images = max(shares)
    equal = [parts for parts in range(2, images + 1) if not any(item % parts for item in shares)]
    candidates = equal or list(range(2, images + 1))
    if not candidates:
        return None
    guess = _bytes_by_images(
        lambda size, _: forecast_at(images, math.ceil(images / size)), images // 2
    )
    for parts in candidates:
        if guess(math.ceil(images / parts)) > there.bytes * 1.1:
            continue
        if _fits(forecast_at, images, parts, there.bytes):
            return parts
    return None


def _fits(forecast_at: Callable[[int, int], Forecast], images: int, parts: int, there: int) -> bool:
    """Whether the forecast fits; a size without a forecast does not."""
    try:
        return forecast_at(images, parts).needed_bytes <= there
    except NoForecast:
        return False


def _bytes_by_images(
    forecast_at: Callable[[int, int], Forecast], large: int
) -> Callable[[int], float]:
    """Total bytes as a linear function of images, through two forecasts."""
    # Batch normalisation cannot train on one value per channel, which one image may give.
    small = min(2, large)
    if small == large:
        return lambda _: 0.0  # one point is not enough for a line: rule nothing out
    high, low = forecast_at(large, 1).needed_bytes, forecast_at(small, 1).needed_bytes
    slope = (high - low) / (large - small)
    return lambda images: low + slope * (images - small)


def _gib(nbytes: int) -> str:
    return f"{nbytes / GIB:.2f} GiB"
