"""A GPT trained without epochs or loader: batches cut from one array, accumulated and clipped."""

from __future__ import annotations

import argparse
import contextlib
import math

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import dpeval  # the meter
from tests.own_training.scripts.by_hand import ByHand

BLOCK, VOCABULARY, WIDTH = 64, 256, 64
ACCUMULATION = 4
EVERY = 20
"""Steps between two evaluations."""
hand = ByHand("language_model")


class Gpt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(BLOCK, WIDTH)
        block = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, "gelu", batch_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(tokens) + self.positions(torch.arange(BLOCK))
        mask = nn.Transformer.generate_square_subsequent_mask(BLOCK)
        logits = self.head(self.blocks(hidden, mask, is_causal=True))
        return cross_entropy(logits.flatten(0, 1), targets.flatten())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--max-steps", type=int, default=1_000_000)
    given = parser.parse_args()
    dist.init_process_group("gloo")
    ranks, rank = dist.get_world_size(), dist.get_rank()
    torch.manual_seed(1337 + rank)
    tokens_per_step = ACCUMULATION * ranks * given.batch_size * BLOCK
    meter = dpeval.Meter(samples_per_step=tokens_per_step, unit="tokens")  # the meter
    data = np.random.default_rng(rank).integers(0, VOCABULARY, 100_000, dtype=np.uint16)

    def get_batch() -> tuple[torch.Tensor, torch.Tensor]:
        starts = torch.randint(len(data) - BLOCK - 1, (given.batch_size,)).tolist()
        rows = np.stack([data[start : start + BLOCK + 1] for start in starts]).astype(np.int64)
        both = torch.from_numpy(rows)
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()

    model = DistributedDataParallel(Gpt())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.95))
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    @torch.no_grad()
    def estimate_loss() -> float:
        model.eval()
        mean = sum(float(model(*get_batch())) for _ in range(2)) / 2
        model.train()
        return mean

    tokens, targets = get_batch()
    number: int
    for number in meter.steps():  # the meter, which counts: `while True` before
        hand.begin()
        rate = 0.5e-3 * (1 + math.cos(math.pi * min(number, 1000) / 1000))
        for group in optimizer.param_groups:
            group["lr"] = rate
        hand.mark("other")
        if number % EVERY == 0 and rank == 0:
            with meter.pause():  # the meter
                print(f"step {number}: loss {estimate_loss():.3f}")
        hand.skip()
        for micro_step in range(ACCUMULATION):
            is_last = micro_step == ACCUMULATION - 1
            with contextlib.nullcontext() if is_last else model.no_sync():
                loss = model(tokens, targets) / ACCUMULATION
                hand.mark("forward")
                with meter.phase("data"):  # the meter
                    tokens, targets = get_batch()
                hand.mark("data")
                scaler.scale(loss).backward()
                hand.mark("backward")
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        hand.mark("other")
        scaler.step(optimizer)
        scaler.update()
        hand.mark("optimizer")
        optimizer.zero_grad(set_to_none=True)
        hand.end()
        if number >= given.max_steps:
            break
    hand.save()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
