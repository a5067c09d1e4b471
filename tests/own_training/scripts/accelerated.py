"""A script of Accelerate that accumulates gradients over four batches."""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dpeval  # the meter
from tests.own_training.scripts.by_hand import ByHand

ACCUMULATION = 4
hand = ByHand("accelerated")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--epochs", type=int, default=1000)
    given = parser.parse_args()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION)
    samples = ACCUMULATION * given.batch_size * accelerator.num_processes
    meter = dpeval.Meter(samples_per_step=samples, unit="rows")  # the meter
    layers = nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.Linear(512, 1))
    data = TensorDataset(torch.randn(4096, 256), torch.randn(4096, 1))
    model, optimizer, loader = accelerator.prepare(
        layers,
        torch.optim.AdamW(layers.parameters()),
        DataLoader(data, given.batch_size, shuffle=True, drop_last=True),
    )
    for epoch in range(given.epochs):
        losses = []
        for inputs, targets in meter.steps(hand.fetches(loader)):  # the meter
            with accelerator.accumulate(model):
                loss = nn.functional.mse_loss(model(inputs), targets)
                hand.mark("forward")
                accelerator.backward(loss)
                hand.mark("backward")
                optimizer.step()
                hand.mark("optimizer" if accelerator.sync_gradients else "other")
                optimizer.zero_grad()
            losses.append(loss.item())
            if accelerator.sync_gradients:
                hand.end()
        if meter.is_over:  # the meter
            break  # the meter
        accelerator.print(f"epoch {epoch}: loss {sum(losses) / len(losses):.3f}")
    hand.save()
    accelerator.end_training()


if __name__ == "__main__":
    main()
