"""What is counted without data, against what can be counted by hand or has been measured."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dpeval.components import models
from dpeval.config import (
    Config,
    DatasetConfig,
    HardwareConfig,
    ModelConfig,
    OptimizerConfig,
    StrategyConfig,
)
from dpeval.devices.cuda import NCCL_BYTES
from dpeval.errors import ConfigError, NoForecast
from dpeval.planning.memory.allocator_model import Allocator, CachingAllocator, GlibcAllocator
from dpeval.planning.memory.fake_step import take_fake_step
from dpeval.planning.memory.forecast import forecast, optimizer_bytes
from dpeval.util.display.units import KIB, MIB

CPU = torch.device("cpu")


class Small(nn.Module):
    """8 channels of 3x3, an activation in place, an average and a head of 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.head(self.convolution(images).relu_().mean((2, 3)))
        return found


def config(**keys: object) -> Config:
    whole = {
        "dataset": DatasetConfig(image_px=16, name="x", _target_="x"),
        "model": ModelConfig(name="small"),
        **keys,
    }
    return Config(**whole)  # type: ignore[arg-type]


def resnet18() -> nn.Module:
    return models.torchvision_classifier("resnet18", 10)


def test_a_small_model_is_counted_to_the_byte() -> None:
    batch = 4
    fake_step = take_fake_step(config(), batch, Small, CPU, held_gradients=False)
    convolved = batch * 8 * 16 * 16 * 4  # once, though convolution, relu and mean share it
    pooled, logits, logs = batch * 8 * 4, batch * 10 * 4, batch * 10 * 4
    scalars = 2 * 4  # the loss and the sum of weights that its backward pass divides by
    assert sum(fake_step.parameters) == (8 * 3 * 9 + 8 * 10 + 10) * 4
    assert fake_step.activations == pytest.approx(
        convolved + pooled + logits + logs + scalars, abs=200
    )


def test_bfloat16_halves_what_a_convolutional_model_saves() -> None:
    whole = {"dataset": DatasetConfig(image_px=64, name="x", _target_="x")}
    saved = [
        take_fake_step(
            config(**whole, precision=precision), 32, resnet18, CPU, held_gradients=False
        ).activations
        for precision in ("fp32", "bf16")
    ]
    # Copies of the weights and of the images come on top; max-pooling's indices stay int64.
    indices = 32 * 64 * 16 * 16 * 8
    copies = 2 * 11_181_642 + 2 * 32 * 3 * 64 * 64
    assert saved[1] == pytest.approx((saved[0] - indices) / 2 + indices + copies, rel=0.01)


def test_parts_add_up_and_micro_batches_take_less() -> None:
    whole = config(dataset=DatasetConfig(image_px=64, name="x", _target_="x"))
    one, four = (forecast(whole, 32, resnet18, parts) for parts in (1, 4))
    for found in (one, four):
        assert sum(found.parts.values()) == found.total_bytes
        assert min(found.parts.values()) >= 0
    assert four.total_bytes < one.total_bytes
    assert four.parts["gradients"] == 11_181_642 * 4  # they stay from part to part


def test_buckets_that_are_the_gradients_cost_nothing_more() -> None:
    views = config(strategy=StrategyConfig(gradient_as_bucket_view=True))
    assert forecast(config(), 4, Small).parts["buckets"] > 0
    assert forecast(views, 4, Small).parts["buckets"] == 0
    assert forecast(config(strategy=StrategyConfig(name="none")), 4, Small).parts["buckets"] == 0


@pytest.mark.parametrize(
    ("name", "args", "copies"),
    [
        ("SGD", {"lr": 0.1}, 0.0),
        ("SGD", {"lr": 0.1, "momentum": 0.9}, 1.0),
        ("Adam", {}, 2.0),
        ("AdamW", {"amsgrad": True}, 3.0),
        ("RMSprop", {}, 1.0),
        ("ASGD", {}, 1.0),
    ],
)
@pytest.mark.parametrize("foreach", [False, True])
def test_an_optimizers_state_is_counted(
    name: str, args: dict[str, object], copies: float, foreach: bool
) -> None:
    with torch.device("meta"):
        model = nn.Linear(100, 100, bias=False)
    state, _ = optimizer_bytes(OptimizerConfig(name=name, args=args), model, foreach=foreach)
    assert state == copies * 100 * 100 * 4


def test_a_factored_optimizer_keeps_less_than_its_parameters() -> None:
    with torch.device("meta"):
        model = nn.Linear(100, 100, bias=False)
    state, _ = optimizer_bytes(OptimizerConfig(name="Adafactor"), model, foreach=False)
    assert 0 < state < 0.1 * 100 * 100 * 4


def test_an_optimizer_that_needs_a_closure_is_refused() -> None:
    with pytest.raises(ConfigError, match="LBFGS"):
        optimizer_bytes(OptimizerConfig(name="LBFGS"), nn.Linear(4, 4), foreach=False)


class Peeking(Small):
    """Decides by a value."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) if images.sum() > 0 else super().forward(-images)


def test_a_model_that_looks_at_values_is_not_forecast() -> None:
    with pytest.raises(NoForecast, match="without data"):
        forecast(config(), 4, Peeking)


Steps = st.lists(st.tuples(st.integers(1, 40 * MIB), st.integers(0, 30)), max_size=60)


@given(steps=Steps)
@pytest.mark.parametrize("make", [GlibcAllocator, CachingAllocator])
def test_a_heap_holds_at_least_what_lives(
    make: type[GlibcAllocator] | type[CachingAllocator], steps: list[tuple[int, int]]
) -> None:
    allocator: Allocator = make()
    live: dict[int, int] = {}
    most = 0
    for key, (nbytes, lifetime) in enumerate(steps):
        allocator.allocate(key, nbytes)
        live[key] = nbytes
        most = max(most, sum(live.values()))
        if len(live) > lifetime:
            oldest = next(iter(live))
            allocator.free(oldest)
            del live[oldest]
    assert allocator.peak >= most


def test_a_freed_hole_is_used_again() -> None:
    allocator = GlibcAllocator()
    for key in range(3):
        allocator.allocate(key, 100 * KIB)
    peak = allocator.peak
    allocator.free(1)
    allocator.allocate(3, 90 * KIB)
    assert allocator.peak == peak


def test_a_hole_too_small_is_not() -> None:
    allocator = GlibcAllocator()
    for key in range(3):
        allocator.allocate(key, 100 * KIB)
    allocator.free(1)
    allocator.allocate(3, 110 * KIB)
    assert allocator.peak >= 410 * KIB


def test_a_heap_that_keeps_gives_nothing_back_and_takes_nothing_anew() -> None:
    """What an untuned one maps apart, and gives back, leaves no hole for what comes next."""
    untuned, keeping = GlibcAllocator(), GlibcAllocator(keeps=True)
    for allocator in (untuned, keeping):
        allocator.allocate(0, 100 * MIB)
        allocator.allocate(1, 1 * MIB)
        allocator.free(0)
        allocator.allocate(2, 60 * MIB)
        allocator.allocate(3, 20 * MIB)
        allocator.allocate(4, 60 * MIB)
    assert keeping.peak == pytest.approx(161 * MIB, rel=1e-3)
    assert untuned.peak == pytest.approx(141 * MIB, rel=1e-3)


def test_the_caching_allocator_keeps_whole_segments() -> None:
    allocator = CachingAllocator()
    allocator.allocate(1, 3 * MIB)
    assert allocator.peak == 20 * MIB
    allocator.allocate(2, 3 * MIB)
    assert allocator.peak == 20 * MIB
    allocator.allocate(3, 30 * MIB + 1)
    assert allocator.peak == 52 * MIB


class Attending(nn.Module):
    """One layer of attention over the pixels of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.embed = nn.Linear(3, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images.flatten(2).transpose(1, 2))
        mixed = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        found: Tensor = self.head(mixed.mean(1))
        return found


def test_nccl_is_forecast_only_where_ranks_use_it() -> None:
    gpu = config(hardware=HardwareConfig(kind="gpu"), num_devices=2)
    with_nccl = forecast(gpu, 4, Attending, uses_nccl=True)
    assert with_nccl.total_bytes - forecast(gpu, 4, Attending).total_bytes == NCCL_BYTES


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_is_forecast_where_there_is_none(precision: str) -> None:
    gpu = config(hardware=HardwareConfig(kind="gpu"), precision=precision, num_devices=2)
    found = forecast(gpu, 32, Attending)
    assert sum(found.parts.values()) == found.total_bytes
    assert {"context", "workspace", "fragmentation"} <= set(found.parts)
    # 32 images, 4 heads and 256 x 256 pixels: fused attention keeps no such matrix.
    assert found.parts["activations"] < 32 * 4 * 256 * 256 * 4
    assert nn.functional.scaled_dot_product_attention.__name__ == "scaled_dot_product_attention"
