"""A Lightning module that is trained on two loaders at a time, and validated within its epochs."""

from __future__ import annotations

import argparse
import os
from typing import Any

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from dpeval.integrations.lightning import MeterCallback  # the meter
from tests.own_training.scripts.by_hand import ByHand

hand = ByHand("lightning_module")


class Rows(Dataset[torch.Tensor]):
    def __init__(self, length: int) -> None:
        self.rows = torch.randn(length, 256)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, rows: list[int]) -> torch.Tensor:
        hand.begin()
        return self.rows[rows]


def collate(rows: Any) -> Any:
    hand.mark("data")
    return rows


class Pair(lightning.LightningModule):  # type: ignore[misc]
    """Brings the two views of a row together."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.layers = nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 256))

    def training_step(self, batch: Any, _number: int) -> torch.Tensor:
        hand.mark("other")
        loss: torch.Tensor = (
            (self.layers(batch["left"]) - self.layers(batch["right"])).square().mean()
        )
        self.log("loss", loss)
        return loss

    def on_before_backward(self, loss: torch.Tensor) -> None:
        hand.mark("forward")

    def on_after_backward(self) -> None:
        hand.mark("backward")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        hand.mark("other")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        hand.mark("other")
        super().optimizer_step(*args, **kwargs)
        hand.mark("optimizer")

    def on_train_batch_end(self, *args: Any) -> None:
        hand.end()

    def validation_step(self, batch: list[torch.Tensor], _number: int) -> None:
        hand.evaluate()
        self.log("held out", self.layers(batch[0]).square().mean())

    def train_dataloader(self) -> Any:
        return {side: self.loader(4096) for side in ("left", "right")}

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.randn(64, 256)), self.batch_size)

    def loader(self, length: int) -> DataLoader[torch.Tensor]:
        return DataLoader(Rows(length), self.batch_size, shuffle=True, collate_fn=collate)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, required=True)
    given = parser.parse_args()
    ranks = int(os.environ["WORLD_SIZE"])
    metered = MeterCallback(given.batch_size * ranks, unit="pairs")  # the meter
    trainer = lightning.Trainer(
        accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto", max_epochs=1000,
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        val_check_interval=8,
        callbacks=[metered],  # the meter
    )  # fmt: skip
    trainer.fit(Pair(given.batch_size))
    hand.save()


if __name__ == "__main__":
    main()
