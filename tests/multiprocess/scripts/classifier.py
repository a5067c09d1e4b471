"""An image classifier with a loop of its own, as an example of DistributedDataParallel has it.

What the meter needs is marked; ``--marks`` also times every step by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import dpeval  # the meter


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--marks", type=Path)
    given = parser.parse_args()
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    samples = given.batch_size * given.accumulate * dist.get_world_size()
    meter = dpeval.Meter(samples_per_step=samples, unit="crops")  # the meter
    data = TensorDataset(torch.randn(256, 3, 32, 32), torch.randint(0, 10, (256,)))
    loader = DataLoader(data, given.batch_size, sampler=DistributedSampler(data), drop_last=True)
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    model = DistributedDataParallel(layers)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    rows: list[dict[str, float]] = []
    row: dict[str, float] = {}
    for epoch in range(1000):
        losses = []
        for number, (images, labels) in enumerate(meter.steps(loader)):  # the meter
            begin_s = time.perf_counter()
            row.setdefault("at", time.monotonic())
            with meter.phase("h2d"):  # the meter
                images, labels = images.clone(), labels.clone()
            copied_s = time.perf_counter()
            is_last = (number + 1) % given.accumulate == 0
            model.require_backward_grad_sync = is_last
            loss = criterion(model(images), labels) / given.accumulate
            forward_s = time.perf_counter()
            loss.backward()
            backward_s = time.perf_counter()
            row["h2d"] = row.get("h2d", 0.0) + copied_s - begin_s
            row["forward"] = row.get("forward", 0.0) + forward_s - copied_s
            row["backward"] = row.get("backward", 0.0) + backward_s - forward_s
            if is_last:
                optimizer.step()
                row["optimizer"] = time.perf_counter() - backward_s
                optimizer.zero_grad()
                rows.append(row)
                row = {}
            losses.append(float(loss.detach()))
        if not losses:
            break
        row = {}  # batches of a last step that is not complete
        print(f"epoch {epoch}: loss {sum(losses) / len(losses):.3f}")
    if given.marks is not None:
        name = f"{given.accumulate}-{dist.get_world_size()}-{dist.get_rank()}.json"
        (given.marks / name).write_text(json.dumps({"rows": rows, "env": dict(os.environ)}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
