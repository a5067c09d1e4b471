"""Where a stage runs, and dpeval's real parts put together for it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpeval.commands import hydra_app
from dpeval.components import models
from dpeval.components.strategies import WrappedModel
from dpeval.components.tasks import task_of
from dpeval.config import Config
from dpeval.devices.base import Device
from dpeval.devices.cpu import CpuDevice
from dpeval.devices.cuda import CudaDevice, cuda_gpus
from dpeval.devices.numerics import grad_scaler, set_numerics
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.instruments.step_buffer import COLUMNS
from dpeval.planning.rank_plan import make_plan
from dpeval.system.topology import detect
from dpeval.util.arrays import Floats
from dpeval.worker.trainer import Trainer


@dataclass(frozen=True)
class Setting:
    """Where a stage runs."""

    folder: Path
    """For checks, records and pictures."""
    rehearse: bool
    """On the CPU, in its smallest form."""

    @property
    def hardware(self) -> str:
        return "hardware=cpu" if self.rehearse else "hardware=gpu"

    def device(self) -> Device:
        """The CPU, or the first GPU."""
        if self.rehearse:
            torch.set_num_threads(1)
            return CpuDevice()
        return CudaDevice(0)

    def config(self, *overrides: str) -> Config:
        """A configuration for one device."""
        base = ["dataset=imagenette_like", "num_devices=1", "precision=fp32"]
        return hydra_app.compose([self.hardware, *base, *overrides])


class FixedLoader:
    """Returns the same batch in every step, which already lies on the device."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self._batch, self.images_read = (images, labels), 0

    def next(self) -> tuple[Tensor, Tensor]:
        return self._batch

    def put(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return batch

    def close(self) -> None:
        pass


def random_loader(config: Config, device: Device) -> FixedLoader:
    """A loader of one random batch, the same on every device."""
    generator = torch.Generator().manual_seed(0)
    px, batch = config.dataset.image_px, config.batch
    images = torch.randn(batch, 3, px, px, generator=generator).to(device.torch_device)
    if config.memory_format == "channels_last":
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, config.dataset.num_classes, (batch,), generator=generator)
    return FixedLoader(images, labels.to(device.torch_device))


def built_model(config: Config, device: Device) -> nn.Module:
    """The model that `config` names, on `device` and in its memory format, ready to train."""
    torch.manual_seed(config.seed)
    model = models.build(config.model, config.dataset.image_px).to(device.torch_device).train()
    if config.memory_format == "channels_last":
        model = model.to(memory_format=torch.channels_last)
    return model


def trainer(
    config: Config,
    device: Device,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    loader: Any = None,
    wrapped: WrappedModel | None = None,
    clock: PhaseClock | None = None,
) -> Trainer:
    """dpeval's trainer of one rank around parts whose behaviour is known.

    Args:
        config: as for a run on one device.
        device: where `model` lies.
        model: any classifier.
        optimizer: of the model's parameters.
        loader: a random batch if absent.
        wrapped: the model without a wrapper if absent.
        clock: one of its own for 1,000 steps if absent.
    """
    set_numerics(config.precision, deterministic=config.deterministic)
    plan = make_plan(replace(config, num_devices=1), detect(cuda_gpus()))
    if plan.skip is not None:
        raise RuntimeError(plan.skip)
    return Trainer(
        config=config,
        plan=plan,
        rank=0,
        device=device,
        clock=clock or PhaseClock(device, rows(1000)),
        task=task_of(config),
        loader=loader or random_loader(config, device),
        model=model,
        wrapped=wrapped or WrappedModel(model),
        optimizer=optimizer,
        scaler=grad_scaler(device, config.precision),
    )


def rows(steps: int) -> Floats:
    """Room for the times of `steps` steps."""
    return np.zeros((steps, len(COLUMNS)))


def column(table: Floats, name: str) -> Floats:
    """One column of such a table."""
    picked: Floats = table[:, COLUMNS.index(name)]
    return picked


def project_root() -> Path:
    """The checkout that this file is in."""
    return Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    """Variables for commands of dpeval that a stage starts."""
    path = os.pathsep.join([str(project_root()), os.environ.get("PYTHONPATH", "")]).rstrip(":")
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
