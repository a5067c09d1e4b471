"""Every classifier of torchvision trains, and so do models that return no bare tensor."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision

from dpeval.components.loss import GlobalMeanLoss, auxiliary_weight
from dpeval.components.models import build, build_on_meta
from dpeval.components.optimizers import build_optimizer
from dpeval.config import ModelConfig, OptimizerConfig
from tests.multiprocess.conftest import Finished

Train = Callable[..., Finished]
CLASSES = 10
LARGE = 30_000_000
"""Parameters from which on a step is taken without data: it would need much time and memory."""
SMALLEST_PX = {
    "alexnet": 63,
    "convnext": 32,
    "densenet": 29,
    "googlenet": 15,
    "inception_v3": 299,  # in training, for the sake of its auxiliary head
    "maxvit": 224,
    "squeezenet1_0": 21,
    "squeezenet1_1": 17,
    "swin": 4,
    "vgg": 32,
    "vit_b_16": 16,
    "vit_b_32": 32,
    "vit_h_14": 14,
    "vit_l_16": 16,
    "vit_l_32": 32,
}
"""The smallest valid image by the beginning of a classifier's name; one pixel for the others."""


def smallest_px(name: str) -> int:
    return next((px for head, px in SMALLEST_PX.items() if name.startswith(head)), 1)


def classifier(name: str, px: int) -> ModelConfig:
    args: dict[str, object] = {"name": name, "num_classes": CLASSES}
    if name.startswith("vit"):
        args["image_size"] = px
    if name.startswith("maxvit"):
        args["input_size"] = [px, px]
    return ModelConfig(name, "dpeval.components.torchvision_classifier", args)


@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_every_classifier_of_torchvision_takes_a_step_at_its_smallest_image(name: str) -> None:
    px = smallest_px(name)
    config = classifier(name, px)
    model = build_on_meta(config, px).train()
    tied_to_its_size = name.startswith(("vit", "maxvit"))
    if px > 1 and not tied_to_its_size:
        with pytest.raises(RuntimeError), torch.device("meta"):
            model(torch.empty(2, 3, px - 1, px - 1))
    is_large = sum(item.numel() for item in model.parameters()) > LARGE
    if not is_large:
        model = build(config, px).train()
    optimizer = build_optimizer(OptimizerConfig("SGD", {"lr": 1e-3}), model)
    with torch.device("meta" if is_large else "cpu"):
        images, labels = torch.randn(2, 3, px, px), torch.zeros(2, dtype=torch.int64)
        loss = GlobalMeanLoss(2, CLASSES, auxiliary_weight(model))(model(images), labels)
    loss.backward()
    # DDP waits for the gradient of every parameter, auxiliary heads included.
    assert [key for key, item in model.named_parameters() if item.grad is None] == []
    optimizer.step()
    assert loss.is_meta == is_large
    assert is_large or math.isfinite(loss.item())


TRAIN = (
    "num_devices=2", "batch=4", "measure=quick", "measure.time_limit_s=200",
    "measure.min_steps=6", "measure.max_steps=8", "measure.rel_precision=0.9",
    "measure.conditions=false",
    "hardware.oversubscribe=true", "analyze=false",
)  # fmt: skip


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_classifiers_with_auxiliary_heads_train_on_two_ranks(train: Train, name: str) -> None:
    done = train(
        "model=torchvision", f"model.name={name}", "dataset=imagenette_like",
        "dataset.train_images=64", f"dataset.image_px={smallest_px(name)}", *TRAIN,
        "measure.ablation=false",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert done.record.memory.forecast is not None
    assert "Warning" not in done.err


OWN = """
from collections import namedtuple
import torch
from torch import nn

Output = namedtuple("Output", "features logits")

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]
        self.net = nn.Sequential(nn.Flatten(), nn.LazyLinear(5), nn.ReLU())
        self.head = nn.Linear(5, 10)
        self.further = nn.Linear(5, 10)

class Named(Own):
    def forward(self, images):
        features = self.net(images)
        return Output(features, self.head(features) + self.further(features))

class Dict(Own):
    def forward(self, images):
        features = self.net(images)
        return {"aux": self.further(features), "logits": self.head(features)}

class Reading(Dict):
    def forward(self, images):
        return super().forward(images * float(images.max()))

class Boxes(Own):
    def forward(self, images):
        return {"boxes": self.net(images)}

class LateBoxes(Boxes):
    def forward(self, images):
        return super().forward(images * float(images.max()))
"""


@pytest.fixture
def own(train: Train, tmp_path: Path) -> Train:
    """Train a model of :data:`OWN` by its name."""
    (tmp_path / "own.py").write_text(OWN)
    folder = tmp_path / "conf" / "model"
    folder.mkdir(parents=True)

    def run(name: str) -> Finished:
        (folder / "own.yaml").write_text(f"name: own\n_target_: own.{name}\nargs: {{}}\n")
        return train("model=own", "dataset=calibrated", *TRAIN)

    return run


@pytest.mark.parametrize("name", ["Named", "Dict", "Reading"])
def test_own_models_train_whatever_holds_their_logits(own: Train, name: str) -> None:
    done = own(name)
    assert done.status == 0, done.err
    memory = done.record.memory
    assert (memory.forecast is None) == (name == "Reading")
    assert ("cannot run without data" in done.out) == (name == "Reading")


def test_a_model_without_logits_is_refused_before_its_ranks_start(own: Train) -> None:
    done = own("Boxes")
    assert done.status == 2
    assert len(done.err.strip().splitlines()) == 1
    assert "boxes a tensor of shape [2, 5]" in done.err
    assert done.records == []


def test_models_that_cannot_train_fail_alone_in_a_sweep(
    own: Train, train: Train, tmp_path: Path
) -> None:
    """Boxes is known to fail before its ranks start; of LateBoxes only its ranks can tell."""
    for name in ("Boxes", "LateBoxes", "Named"):
        target = f"name: {name}\n_target_: own.{name}\nargs: {{}}\n"
        (tmp_path / "conf" / "model" / f"{name}.yaml").write_text(target)
    models = "model=Boxes,LateBoxes,Named"
    done = train("-m", models, "dataset=calibrated", "analyze=false", *TRAIN)
    assert [run.status for run in done.records] == ["failed", "failed", "ok"]
    kinds = [run.cause.kind for run in done.records if run.cause is not None]
    assert kinds == ["setup", "exception"]
    for run in done.records[:2]:
        assert run.cause is not None
        assert "boxes a tensor of shape [2, 5]" in run.cause.message
    assert done.status == 1
    assert "Traceback" not in done.err + done.out
