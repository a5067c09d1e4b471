"""Losses of 20 steps in every precision against float32 on the CPU, and crops on both devices."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.gpu.checks import Check, at_most, not_measured
from benchmarks.gpu.setting import Setting, built_model, trainer
from dpeval.components.optimizers import build_optimizer
from dpeval.data.images.device_transforms import Normaliser, crop_batch
from dpeval.devices.base import Device
from dpeval.devices.cpu import CpuDevice
from dpeval.worker.loop import train_step

STEPS, REHEARSED_STEPS = 20, 4
LIMITS = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 3e-2, "fp16": 1e-2}
"""The most by which a loss may differ, over the first loss. One operation rounds by 6e-8, 5e-4,
4e-3 and 5e-4, and training amplifies it."""


def run(setting: Setting) -> Iterator[Check]:
    """ResNet18 on random images; the same weights and the same batch everywhere."""
    device = setting.device()
    truth = _losses(setting, CpuDevice(), "fp32")
    for precision, limit in LIMITS.items():
        if setting.rehearse and precision in ("tf32", "fp16"):
            yield not_measured(f"losses in {precision}", "not on the CPU")
            continue
        losses = _losses(setting, device, precision)
        worst = max(abs(a - b) for a, b in zip(losses, truth, strict=True)) / truth[0]
        note = f"last loss {losses[-1]:.4f}, on the CPU {truth[-1]:.4f}"
        yield at_most(f"worst of {len(losses)} losses, {precision}", worst, limit, note)
    yield from _crops(device)


def _steps(setting: Setting) -> int:
    return REHEARSED_STEPS if setting.rehearse else STEPS


def _losses(setting: Setting, device: Device, precision: str) -> list[float]:
    config = setting.config(
        "model=resnet18",
        f"precision={precision}",
        f"batch={4 if setting.rehearse else 32}",
        "dataset.image_px=64",
        "optimizer=sgd",
        "optimizer.args.lr=0.001",
        "memory_format=contiguous",
    )
    model = built_model(config, device)
    made = trainer(
        config,
        device,
        model,
        build_optimizer(config.optimizer, model),
    )
    for step in range(_steps(setting)):
        train_step(made, step)
    device.finish()
    return made.step_losses()


def _crops(device: Device) -> Iterator[Check]:
    """Crops and normalised pixels of the same squares on both devices."""
    generator = torch.Generator().manual_seed(0)
    count, side, px = 16, 146, 128
    squares = torch.randint(0, 256, (count, side, side, 3), generator=generator, dtype=torch.uint8)
    corner = torch.randint(0, 30, (count, 2), generator=generator)
    extent = torch.randint(40, 116, (count, 2), generator=generator)
    flips = torch.randint(0, 2, (count, 1), generator=generator)
    where = torch.cat([corner, extent, flips], 1)
    made = []
    for place in (torch.device("cpu"), device.torch_device):
        crops = crop_batch(squares.to(place), where.to(place), px)
        made.append((crops.cpu(), Normaliser(place, channels_last=True)(crops).float().cpu()))
    (cpu_crops, cpu_images), (crops, images) = made
    worst = float((crops - cpu_crops).abs().max())
    yield at_most("crops, worst pixel", worst, 0.05, "bilinear weights in float32", unit="of 255")
    worst = float((images - cpu_images).abs().max())
    yield at_most("normalised pixels, worst", worst, 1e-3, unit="standard deviations")
