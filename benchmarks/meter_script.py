"""A classification of dpeval's as a script: the parts of its own loop, and the meter.

Its arguments are the overrides of the classification.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import dpeval
from dpeval.commands import hydra_app
from dpeval.components import models
from dpeval.components.optimizers import build_optimizer
from dpeval.config import SERIAL, per_device_batches_of
from dpeval.data import prepare
from dpeval.data.loading.loaders import make_loader
from dpeval.devices.cpu import CpuDevice
from dpeval.devices.numerics import set_numerics


def main() -> None:
    config = hydra_app.compose(sys.argv[1:])
    rank, shares = int(os.environ["RANK"]), per_device_batches_of(config)
    meter = dpeval.Meter(samples_per_step=sum(shares))
    set_numerics(config.precision, deterministic=config.deterministic)
    torch.manual_seed(config.seed)
    model = models.build(config.model, config.dataset.image_px)
    channels_last = config.memory_format == "channels_last"
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    loader = make_loader(
        prepare(config.dataset, print), config.dataset, shares=shares, rank=rank,
        seed=config.seed, device=CpuDevice(), channels_last=channels_last, spare_cpus=[],
    )  # fmt: skip
    optimizer = build_optimizer(config.optimizer, model)
    if config.strategy.name != SERIAL:
        dist.init_process_group("gloo")
        strategy = config.strategy
        model = DistributedDataParallel(
            model,
            bucket_cap_mb=strategy.bucket_cap_mb,
            broadcast_buffers=strategy.broadcast_buffers,
            gradient_as_bucket_view=strategy.gradient_as_bucket_view,
            static_graph=strategy.static_graph,
            find_unused_parameters=strategy.find_unused_parameters,
        )
    criterion = torch.nn.CrossEntropyLoss()

    def batches() -> Iterator[Any]:
        while True:
            yield loader.next()

    for batch in meter.steps(batches()):
        with meter.phase("h2d"):
            images, labels = loader.put(batch)
        criterion(model(images), labels).backward()
        optimizer.step()
        with meter.phase("optimizer"):
            optimizer.zero_grad(set_to_none=True)
    loader.close()


if __name__ == "__main__":
    main()
