"""What a model may return, what of it is trained on, and what is refused."""

from __future__ import annotations

import dataclasses
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dpeval.components.check import check
from dpeval.components.loss import GlobalMeanLoss, auxiliary_weight, find_logits
from dpeval.components.models import build, build_on_meta
from dpeval.config import Config, DatasetConfig, ModelConfig, OptimizerConfig
from dpeval.errors import ConfigError, NoForecast
from dpeval.planning.memory.forecast import forecast
from dpeval.worker.loop import micro_batches

BATCH, CLASSES = 4, 3
LABELS = torch.tensor([0, 1, 2, 0])


class Named(NamedTuple):
    features: Tensor
    logits: Tensor
    aux_logits: Tensor | None


@dataclasses.dataclass
class Output(OrderedDict[str, Tensor]):
    """As Hugging Face's ModelOutput: a dict and a dataclass at once, without what is None."""

    loss: Tensor | None = None
    logits: Tensor | None = None

    def __post_init__(self) -> None:
        if self.logits is not None:
            self["logits"] = self.logits


@dataclasses.dataclass
class Plain:
    main: Tensor
    aux: Tensor


def logits(seed: int) -> Tensor:
    return torch.randn(BATCH, CLASSES, generator=torch.Generator().manual_seed(seed))


MAIN, OTHER, THIRD = (logits(seed) for seed in range(3))
FEATURES = torch.zeros(BATCH, 7)


@pytest.mark.parametrize(
    ("output", "auxiliary"),
    [
        (MAIN, []),
        ((MAIN,), []),
        ([MAIN, OTHER], [OTHER]),
        ((MAIN, OTHER, THIRD), [OTHER, THIRD]),
        ((FEATURES, MAIN), []),
        (Named(FEATURES, MAIN, OTHER), [OTHER]),
        (Named(FEATURES, MAIN, None), []),
        ({"out": MAIN, "aux": OTHER, "features": FEATURES}, [OTHER]),
        ({"teacher": OTHER, "logits": MAIN}, []),
        (Output(logits=MAIN), []),
        (Plain(MAIN, OTHER), [OTHER]),
    ],
)
def test_the_main_output_is_found_and_so_are_auxiliary_ones(
    output: object, auxiliary: list[Tensor]
) -> None:
    main, found = find_logits(output, (BATCH,), CLASSES)
    assert main is MAIN
    assert [id(item) for item in found] == [id(item) for item in auxiliary]
    expected = cross_entropy(MAIN, LABELS)
    for item in auxiliary:
        expected = expected + 0.25 * cross_entropy(item, LABELS)
    torch.testing.assert_close(GlobalMeanLoss(BATCH, CLASSES, 0.25)(output, LABELS), expected)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (MAIN[:, :2], r"a tensor of shape \[4, 2\] for 4 images"),
        (MAIN.flatten(), r"\[12\]"),
        (MAIN[:2], r"\[2, 3\]"),
        (MAIN.long(), "of int64"),
        ({"boxes": FEATURES[:, :1], "note": "x"}, r"boxes a tensor of shape \[4, 1\], note a str"),
        ((), "a tuple"),
        (None, "a NoneType"),
    ],
)
def test_an_output_without_logits_is_refused_in_one_line(output: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        GlobalMeanLoss(BATCH, CLASSES)(output, LABELS)
    assert r"[batch, classes], here [4, 3]" in str(caught.value)
    assert "\n" not in str(caught.value)


@given(batch=st.integers(1, 30), parts=st.integers(1, 4), weight=st.sampled_from([0.0, 0.3, 1.0]))
def test_micro_batches_add_up_to_the_mean_over_the_global_batch(
    batch: int, parts: int, weight: float
) -> None:
    torch.manual_seed(batch)
    main, other = torch.randn(2, batch, CLASSES, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (batch,))
    whole = cross_entropy(main, labels) + weight * cross_entropy(other, labels)
    criterion = GlobalMeanLoss(batch, CLASSES, weight)
    pieces = micro_batches((torch.stack([main, other], 1), labels), min(parts, batch))
    total = sum(criterion(tuple(both.unbind(1)), some) for both, some in pieces)
    torch.testing.assert_close(total, whole)


@pytest.mark.parametrize(
    ("name", "px", "heads", "weight"), [("googlenet", 15, 2, 0.3), ("inception_v3", 299, 1, 0.4)]
)
def test_torchvisions_auxiliary_heads_weigh_what_their_papers_say(
    name: str, px: int, heads: int, weight: float
) -> None:
    target = "dpeval.components.torchvision_classifier"
    model = build_on_meta(ModelConfig(name, target, {"name": name, "num_classes": CLASSES}), px)
    assert auxiliary_weight(model) == weight
    with torch.device("meta"):
        _, auxiliary = find_logits(model.train()(torch.empty(2, 3, px, px)), (2,), CLASSES)
    assert len(auxiliary) == heads


def test_what_a_models_module_creates_on_import_keeps_its_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scaled_by_a_constant.py").write_text(
        "import torch\nSCALE = torch.ones(3)\ndef make():\n    return torch.nn.Linear(3, 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    build_on_meta(ModelConfig("own", "scaled_by_a_constant.make", {}), 8)
    assert sys.modules["scaled_by_a_constant"].SCALE.tolist() == [1, 1, 1]


class Rated(nn.Module):
    """Reads a value while it is built, as vision transformers read the rates of their paths."""

    def __init__(self, first: float = 0.0) -> None:
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(first, 1, 3)]
        self.net = nn.Linear(3, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.net(images.mean((2, 3)))
        return found


class Sized(Rated):
    """Reads a weight while it is built."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = self.net.weight.abs().max().item()


class Reading(Rated):
    """Reads a value while it trains."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * float(images.max())


class Boxed(Rated):
    """Returns no logits."""

    def forward(self, images: Tensor) -> Any:
        return {"boxes": super().forward(images).flatten()}


class Broken(Rated):
    def __init__(self) -> None:
        super().__init__()
        raise KeyError("backbone")


def lazy() -> nn.Module:
    return nn.Sequential(
        nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(CLASSES)
    )


def config(target: Callable[..., object], **args: object) -> Config:
    return Config(
        model=ModelConfig("mine", f"{__name__}.{target.__name__}", dict(args)),
        dataset=DatasetConfig(name="d", _target_="t", image_px=8, num_classes=CLASSES),
        optimizer=OptimizerConfig("SGD", {"lr": 0.1}),
    )


@pytest.mark.parametrize("target", [Rated, Sized, lazy])
def test_a_model_that_needs_data_or_images_to_be_built_is_forecast_and_trains(
    target: Callable[..., object],
) -> None:
    whole = config(target)
    check(whole)
    found = forecast(whole, 4, lambda: build(whole.model, 8))
    model = build(whole.model, 8)
    size = sum(item.nbytes for item in (*model.parameters(), *model.buffers()))
    assert found.parts["parameters"] == size
    GlobalMeanLoss(2, CLASSES)(model(torch.randn(2, 3, 8, 8)), torch.tensor([0, 1])).backward()
    assert all(item.grad is not None for item in model.parameters())


def test_a_model_that_needs_data_to_train_is_not_refused_and_not_forecast() -> None:
    whole = config(Reading)
    check(whole)
    with pytest.raises(NoForecast, match="cannot run without data"):
        forecast(whole, 4, lambda: build(whole.model, 8))


@pytest.mark.parametrize(
    ("target", "args", "words"),
    [
        (Boxed, {}, r"boxes a tensor of shape \[6\] for 2 images"),
        (Broken, {}, r"fails with model.args=\{\}: 'backbone' \(test_loss.py, line \d+\)"),
        (Rated, {"last": 1}, "rejects model.args"),
        (Rated, {"first": "x"}, "test_loss.py, line"),
        (logits, {"seed": 0}, "returned a Tensor"),
    ],
)
def test_what_cannot_train_is_refused_before_ranks_start(
    target: Callable[..., object], args: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        check(config(target, **args))
