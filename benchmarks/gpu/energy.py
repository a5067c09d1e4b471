"""NVML's energy counter, which records use, against the integral of sampled power."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from scipy.integrate import trapezoid

from benchmarks.gpu.checks import Check, near, not_measured, report
from benchmarks.gpu.setting import Setting

PERIOD_S, SECONDS = 0.05, 20.0


def run(setting: Setting) -> Iterator[Check]:
    """Twenty seconds of matrix products, after five that bring power to a plateau."""
    if setting.rehearse:
        yield not_measured("energy", "NVML reads GPUs only")
        return
    import pynvml

    device = setting.device()
    pynvml.nvmlInit()
    uuid = str(torch.cuda.get_device_properties(device.torch_device).uuid)
    handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    left = torch.randn(4096, 4096, device=device.torch_device, dtype=torch.bfloat16)
    end_s = time.monotonic() + 5
    while time.monotonic() < end_s:
        _work(left)
    begin_j = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
    begin_s = now_s = time.monotonic()
    times, watts = [], []
    while now_s < begin_s + SECONDS:
        times.append(now_s)
        watts.append(pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3)
        _work(left)
        now_s = time.monotonic()
    times.append(now_s)
    watts.append(pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3)
    counted_j = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3 - begin_j
    integral_j = float(trapezoid(watts, times))
    yield near(
        "energy counter",
        counted_j,
        integral_j,
        "J",
        share=0.05,
        note=f"truth: power at {len(watts) / SECONDS:.0f} Hz",
    )
    yield report("mean power", counted_j / (times[-1] - times[0]), "W")


def _work(left: torch.Tensor) -> None:
    """Matrix products for about 50 ms."""
    end_s = time.monotonic() + PERIOD_S
    while time.monotonic() < end_s:
        for _ in range(10):
            torch.mm(left, left)
        torch.cuda.synchronize()
