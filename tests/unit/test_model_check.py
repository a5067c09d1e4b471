"""What cannot be trained is refused before any rank starts, with what to change."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpeval.commands.hydra_app import compose
from dpeval.components.check import check
from dpeval.errors import ModelError


def refused(builder: str, px: int) -> str:
    overrides = ["model=calibrated", f"model._target_={__name__}.{builder}", "model.args.faults={}"]
    with pytest.raises(ModelError) as caught:
        check(compose([*overrides, f"dataset.image_px={px}"]))
    return str(caught.value)


def passes(builder: str, px: int) -> None:
    overrides = ["model=calibrated", f"model._target_={__name__}.{builder}"]
    check(compose([*overrides, f"dataset.image_px={px}"]))


class Flat(nn.Module):
    """Takes images of 64 px alone, as a vision transformer takes those of its own size."""

    def __init__(self, num_classes: int, **_: object) -> None:
        super().__init__()
        self.image_size = 64
        self.head = nn.Linear(3 * 64 * 64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(images.flatten(1))
        return out


class Patched(nn.Module):
    """Built for images of one size, which its patches must divide."""

    def __init__(self, num_classes: int, side: int, **_: object) -> None:
        super().__init__()
        if side % 16:
            raise RuntimeError("patches of 16 do not fit!")
        self.parts = nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.parts(images)
        return out


class Deep(nn.Module):
    """Takes no image below 96 px."""

    def __init__(self, num_classes: int, **_: object) -> None:
        super().__init__()
        self.parts = nn.Sequential(
            nn.Conv2d(3, 2, 96), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.parts(images)
        return out


class Checkpointed(nn.Module):
    """A checkpoint right at the images, which need no gradient."""

    def __init__(self, num_classes: int, reentrant: bool, frozen: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
        self.head = nn.Linear(4, num_classes)
        self.stem.requires_grad_(not frozen)
        self.reentrant = reentrant

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(checkpoint(self.stem, images, use_reentrant=self.reentrant))
        return out


class Whole(Checkpointed):
    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = checkpoint(
            nn.Sequential(self.stem, self.head), images, use_reentrant=self.reentrant
        )
        return out


def reentrant(num_classes: int, **_: object) -> nn.Module:
    return Checkpointed(num_classes, reentrant=True)


def reentrant_and_frozen(num_classes: int, **_: object) -> nn.Module:
    return Checkpointed(num_classes, reentrant=True, frozen=True)


def whole(num_classes: int, **_: object) -> nn.Module:
    return Whole(num_classes, reentrant=True)


def not_reentrant(num_classes: int, **_: object) -> nn.Module:
    return Checkpointed(num_classes, reentrant=False)


class Reading(Flat):
    """Reads a value, which meta tensors lack."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * images.mean().item()


def leaving(**_: object) -> nn.Module:
    sys.exit("bye")


class Leaving(Flat):
    def forward(self, images: Tensor) -> Tensor:
        sys.exit("bye")


def frozen(num_classes: int, **_: object) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes)).requires_grad_(False)


def plain(**_: object) -> nn.Module:
    return nn.Flatten()


def test_a_model_with_nothing_to_train_is_refused() -> None:
    assert "frozen all of its parameters" in refused("frozen", 32)
    assert "has no parameters" in refused("plain", 32)


def normalised(num_classes: int, **_: object) -> nn.Module:
    pooled = (nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Flatten())
    return nn.Sequential(*pooled, nn.Linear(4, num_classes))


@pytest.mark.parametrize(
    ("words", "batch"),
    [("batch=3 num_devices=2", 4), ("batch=1 num_devices=4 scaling=weak", 2), ("batch=1", 2)],
)
def test_one_image_per_device_is_refused_for_batch_normalisation(words: str, batch: int) -> None:
    model = ["model=calibrated", f"model._target_={__name__}.normalised"]
    with pytest.raises(ModelError, match=rf"one image, .* set batch={batch} or more"):
        check(compose([*model, *words.split()]))
    check(compose(["model=calibrated", *words.split()]))  # it normalises nothing
    check(compose([*model, *words.split(), f"batch={batch}"]))


def test_a_size_for_which_a_model_cannot_be_built_is_refused_with_those_it_can() -> None:
    target = f"model._target_={__name__}.Patched"
    with pytest.raises(ModelError) as caught:
        check(compose(["model=calibrated", target, "+model.args.side=100", "dataset.image_px=100"]))
    assert str(caught.value) == (
        "model=calibrated cannot be built for images of 100 px (patches of 16 do not fit), but for "
        "96, 112, 128 px; set dataset.image_px=96"
    )
    check(compose(["model=calibrated", target, "+model.args.side=96", "dataset.image_px=96"]))


def test_a_size_that_a_model_does_not_take_is_refused_with_those_it_takes() -> None:
    line = refused("Flat", 100)
    assert "does not accept images of 100 px" in line
    assert line.endswith("but accepts 64 px; set dataset.image_px=64, or "
                         "+model.args.image_size=100")  # fmt: skip
    assert "but accepts 96, 112, 128 px; set dataset.image_px=96" in refused("Deep", 32)


@pytest.mark.parametrize("builder", ["reentrant", "whole"])
def test_a_reentrant_checkpoint_that_hides_parameters_is_named(builder: str) -> None:
    line = refused(builder, 8)
    assert "would never be trained (stem.2.weight, stem.2.bias" in line
    assert line.endswith("use_reentrant=False")


@pytest.mark.parametrize("builder", ["not_reentrant", "reentrant_and_frozen"])
def test_other_checkpoints_are_not_refused(builder: str) -> None:
    passes(builder, 8)


@pytest.mark.parametrize("builder", ["Reading", "Leaving"])
def test_what_needs_values_is_left_to_the_ranks(builder: str) -> None:
    passes(builder, 64)


def test_a_model_that_ends_the_program_when_it_is_built_is_one_line() -> None:
    assert "fails with model.args=" in refused("leaving", 8)
    assert torch.is_grad_enabled()
