"""Chooses the library that reads this machine's GPUs: NVML, or AMD SMI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dpeval.system.gpu import amd_smi, nvml
from dpeval.system.gpu.reader import GpuReader, UsedGpu

VISIBLE_DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""Variables that hide GPUs from a process; the ROCm runtime obeys all three."""


def open_reader(gpus: Mapping[int, UsedGpu]) -> GpuReader | str:
    """A reader for these GPUs, by CUDA index, or the reason why there is none."""
    if not all(gpu.uuid for gpu in gpus.values()):
        return "this version of torch does not report the UUIDs of its GPUs"
    reader = nvml.open_reader(gpus)
    # A machine with an NVIDIA GPU may have a small AMD one that torch does not use.
    if isinstance(reader, GpuReader) or not amd_smi.DRIVER.exists():
        return reader
    return amd_smi.open_reader(gpus)


def free_bytes(uuids: Sequence[str]) -> list[int]:
    """Free memory of the GPUs with these UUIDs, bytes; empty unless all can be read."""
    return nvml.free_bytes(uuids) or amd_smi.free_bytes(uuids)
