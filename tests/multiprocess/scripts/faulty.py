"""Scripts that do one thing wrong; none of them needs the ranks to communicate."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

import dpeval

RANK = int(os.environ["RANK"])
ENDLESS = 10**9


def train(meter: dpeval.Meter, batches: int) -> Iterator[int]:
    """Train on so many batches; yield after every step."""
    model = nn.Linear(256, 256)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for number in meter.steps(range(batches)):
        model(torch.randn(64, 256)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        yield number


def main(fault: str) -> None:
    if fault == "never":
        return
    if fault == "exit":
        sys.exit(3)
    if fault == "hangs":
        time.sleep(3600)
    if fault == "asks":
        input("learning rate? ")
    if fault == "prints":
        for _ in range(48):
            print("x" * 2**20)
    if fault == "helper":
        helper = subprocess.Popen(["sleep", "3600"])
        Path(f"helper-{RANK}").write_text(str(helper.pid))
    meter = dpeval.Meter(unit="rows")
    if fault == "two meters":
        dpeval.Meter()
    batches = {"early": 40, "short": 3, "uneven": 30 + RANK}.get(fault, ENDLESS)
    for number in train(meter, batches):
        if fault == "nested" and number == 2:
            next(train(meter, 1))
        if fault == "raises" and number == 3 and RANK == 1:
            raise ValueError("no such class: 11")
    if fault == "goes on":
        time.sleep(3600)
    while fault == "ignores the end":
        for _ in train(meter, ENDLESS):
            pass
    if fault == "fails late" and RANK == 0:
        raise ValueError("cannot save the model")


if __name__ == "__main__":
    main(sys.argv[1])
