"""An image classifier in the shape of the usual example: epochs, meters, accuracy, validation."""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

import dpeval  # the meter
from tests.own_training.scripts.by_hand import ByHand

hand = ByHand("image_classifier")


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """Generated pictures, cropped and mirrored at random."""

    def __init__(self, length: int) -> None:
        self.images = torch.randint(0, 256, (64, 3, 72, 72), dtype=torch.uint8)
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        top, left = torch.randint(0, 8, (2,)).tolist()
        image = self.images[index % 64, :, top : top + 64, left : left + 64].float() / 255
        return (image.flip(-1) if index % 2 else image), index % 10


class Average:
    """The mean of what it is told, each value by its weight."""

    def __init__(self) -> None:
        self.sum = self.count = 0.0

    def update(self, value: float, count: int) -> None:
        self.sum += value * count
        self.count += count

    def __str__(self) -> str:
        return f"{self.sum / max(1.0, self.count):.3f}"


def network() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 64)):
        layers += [
            nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()
        ]  # fmt: skip
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def accuracy(output: torch.Tensor, target: torch.Tensor) -> float:
    return float((output.argmax(1) == target).float().mean())


def validate(model: nn.Module, loader: DataLoader[tuple[torch.Tensor, int]]) -> str:
    model.eval()
    top1 = Average()
    with torch.no_grad():
        for images, target in loader:
            top1.update(accuracy(model(images), target), len(target))
    return str(top1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--epochs", type=int, default=1000)
    given = parser.parse_args()
    dist.init_process_group("gloo")
    samples = given.batch_size * dist.get_world_size()
    meter = dpeval.Meter(samples_per_step=samples, unit="img")  # the meter
    # Broadcasting BatchNorm's buffers would be communication within the forward pass.
    model = DistributedDataParallel(network(), broadcast_buffers=False)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.1)
    data = Pictures(2048)
    sampler: DistributedSampler[Any] = DistributedSampler(data)
    loader = DataLoader(data, given.batch_size, sampler=sampler, drop_last=True)
    held_out = DataLoader(Pictures(64), given.batch_size)
    for epoch in range(given.epochs):
        sampler.set_epoch(epoch)
        losses, top1 = Average(), Average()
        model.train()
        for images, target in meter.steps(hand.fetches(loader)):  # the meter
            with meter.phase("h2d"):  # the meter
                images = images.to(memory_format=torch.channels_last, copy=True)
            hand.mark("h2d")
            output = model(images)
            loss = criterion(output, target)
            losses.update(loss.item(), len(target))
            top1.update(accuracy(output, target), len(target))
            optimizer.zero_grad()
            hand.mark("forward")
            loss.backward()
            hand.mark("backward")
            optimizer.step()
            hand.mark("optimizer")
            hand.end()
        if meter.is_over:  # the meter
            break  # the meter
        scheduler.step()
        held = validate(model, held_out)
        if int(os.environ["RANK"]) == 0:
            print(f"epoch {epoch}: loss {losses}, accuracy {top1}, held out {held}")
    hand.save()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
