"""A small GPT-2, made of its configuration and trained by the Trainer of transformers."""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from dpeval.integrations.transformers import MeterCallback  # the meter
from tests.own_training.scripts.by_hand import ByHand

ACCUMULATION, BLOCK, VOCABULARY = 4, 64, 256
hand = ByHand("hf_trainer")


class Tokens(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self, length: int, is_held_out: bool = False) -> None:
        self.tokens = torch.randint(0, VOCABULARY, (length, BLOCK))
        self.is_held_out = is_held_out

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitems__(self, rows: list[int]) -> torch.Tensor:
        if not self.is_held_out:
            hand.begin()
        return self.tokens[rows]


def collate(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    hand.mark("data")
    return {"input_ids": tokens, "labels": tokens}


class TimedTrainer(Trainer):  # type: ignore[misc]
    """Marks the passes."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        hand.mark("other")
        loss = super().compute_loss(*args, **kwargs)
        hand.mark("forward")
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        hand.mark("backward")
        return loss


class TimedUpdate(TrainerCallback):  # type: ignore[misc]
    """Marks the updates."""

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        hand.mark("other")

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        hand.mark("optimizer")

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        hand.end()

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        hand.evaluate()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, required=True)
    given = parser.parse_args()
    config = GPT2Config(
        n_layer=2, n_head=4, n_embd=64, vocab_size=VOCABULARY, n_positions=BLOCK,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    arguments = TrainingArguments(
        tempfile.mkdtemp(), per_device_train_batch_size=given.batch_size, num_train_epochs=1000,
        gradient_accumulation_steps=ACCUMULATION, use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True, eval_strategy="steps", eval_steps=6,
        remove_unused_columns=False,
    )  # fmt: skip
    tokens_per_step = ACCUMULATION * given.batch_size * BLOCK * arguments.world_size
    metered = MeterCallback(tokens_per_step, unit="tokens")  # the meter
    trainer = TimedTrainer(
        GPT2LMHeadModel(config), arguments, data_collator=collate,
        train_dataset=Tokens(4096), eval_dataset=Tokens(32, is_held_out=True),
        callbacks=[TimedUpdate(), metered],  # the meter
    )  # fmt: skip
    trainer.train()
    hand.save()


if __name__ == "__main__":
    main()
