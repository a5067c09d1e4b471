"""Steps that are scaled from two others are those that would have been taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dpeval.commands import hydra_app
from dpeval.components.tasks import forecast_task
from dpeval.config import Config
from dpeval.planning.memory.fake_step import FakeStep
from dpeval.planning.memory.training_trace import TrainingTrace, scaled

CPU = torch.device("cpu")
IMAGES = ["dataset=imagenette_like", "dataset.image_px=32", "num_devices=1", "batch=1"]


class Contrasting(nn.Module):
    """Compares each image with every other: some sizes grow with the square of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3 * 32 * 32, 10)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.inner(images.flatten(1))
        return (found @ found.T) @ found


class Choosing(nn.Module):
    """Takes another way for large batches."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3 * 32 * 32, 10)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.inner(images.flatten(1))
        return found if len(images) < 8 else found.tanh().exp()


def step(config: Config, items: int, trace: TrainingTrace, *, held: bool = False) -> FakeStep:
    return trace.step(config, items, forecast_task(config).on_meta, CPU, held_gradients=held)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize(
    "overrides",
    [
        [*IMAGES, "model.name=squeezenet1_1"],
        [*IMAGES, "model=resnet18", "precision=bf16", "memory_format=channels_last"],
        ["task=causal_lm", "num_devices=1", "batch=1"],
    ],
)
def test_a_scaled_step_is_the_one_that_would_be_taken(overrides: list[str], held: bool) -> None:
    config = hydra_app.compose(overrides)
    two, six, nine = (step(config, items, TrainingTrace(), held=held) for items in (2, 6, 9))
    assert scaled(two, 2, six, 6, 9) == nine
    assert scaled(six, 6, nine, 9, 2) == two
    assert two.peak.total < nine.peak.total


@pytest.mark.parametrize("model", [Contrasting, Choosing])
def test_what_is_not_in_proportion_is_not_scaled(model: type[nn.Module]) -> None:
    config, trace = hydra_app.compose(IMAGES), TrainingTrace()
    two, nine = (trace.step(config, items, model, CPU, held_gradients=False) for items in (2, 9))
    assert scaled(two, 2, nine, 9, 5) is None
    taken = TrainingTrace().step(config, 5, model, CPU, held_gradients=False)
    assert trace.step(config, 5, model, CPU, held_gradients=False) == taken


@pytest.mark.parametrize(("items", "is_built"), [(3, False), (16, False), (17, True), (1, True)])
def test_a_step_is_taken_where_others_are_too_far(items: int, is_built: bool) -> None:
    config, trace, built = hydra_app.compose(IMAGES), TrainingTrace(), list[int]()

    def build() -> nn.Module:
        built.append(items)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))

    for taken in (2, 4):
        trace.step(config, taken, build, CPU, held_gradients=False)
    trace.step(config, items, build, CPU, held_gradients=False)
    assert len(built) == 2 + is_built
