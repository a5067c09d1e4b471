"""Open the device that the plan assigns to a rank."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from dpeval.devices.base import Device
from dpeval.devices.cpu import CpuDevice
from dpeval.devices.cuda import CudaDevice, outside_allocator
from dpeval.errors import MachineError


def open_device(
    name: str,
    cpus: Sequence[int],
    threads: int,
    *,
    budget_bytes: int | None = None,
    uses_nccl: bool = False,
) -> Device:
    """Pin this process to `cpus`, set its thread counts and select its device.

    ``set_num_threads`` is called for every device count, even one: the default of one thread per
    visible core would make a one-rank baseline faster than one rank among several.

    Args:
        name: ``cpu`` or ``cuda:<index>``.
        cpus: logical CPUs to pin to; empty: no pinning.
        threads: compute threads.
        budget_bytes: the GPU memory that the process may take. As in the forecast, it includes an
            allowance for the CUDA context and NCCL; PyTorch's allocator is limited to the rest.
        None: no limit. Not enforced on the CPU.
        uses_nccl: whether the process communicates through NCCL.

    Raises:
        MachineError: the CUDA device cannot be selected.
    """
    if cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    if name == "cpu":
        return CpuDevice()
    limit = None if budget_bytes is None else budget_bytes - outside_allocator(uses_nccl=uses_nccl)
    try:
        return CudaDevice(int(name.removeprefix("cuda:")), limit)
    except (RuntimeError, AssertionError) as error:
        raise MachineError(
            f"{name}, which the plan assigns to this rank, cannot be selected: {error}"
        ) from error
