"""Open the device that the plan names for a rank."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from dpeval.devices.base import Device
from dpeval.devices.cpu import CpuDevice
from dpeval.devices.cuda import CudaDevice
from dpeval.errors import MachineError


def open_device(name: str, cpus: Sequence[int], threads: int) -> Device:
    """Pin this process to `cpus`, set its thread counts, select device `name`.

    ``set_num_threads`` is called at every device count, one included: the default is one thread
    per visible core, which makes a one-rank baseline faster than a rank among several.

    Raises:
        MachineError: the CUDA device cannot be selected.
    """
    if cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    if name == "cpu":
        return CpuDevice()
    try:
        return CudaDevice(int(name.removeprefix("cuda:")))
    except (RuntimeError, AssertionError) as error:
        raise MachineError(
            f"{name} was planned for this rank and cannot be selected: {error}"
        ) from error
