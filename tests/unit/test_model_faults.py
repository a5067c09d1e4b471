"""Faults of users' models are one line that says what to change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dpeval.worker.faults import HINTS, MOST_MESSAGE, told


def failing(model: nn.Module, images: torch.Tensor) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # torch's own, whatever they are
        model.train()(images)
    return told(caught.value)


@pytest.mark.parametrize(
    ("model", "px", "words"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)), 64, "dataset.image_px"),
        (nn.Conv2d(3, 8, 64), 32, "dataset.image_px"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)), 8, "at least 2 per device"),
    ],
)
def test_what_torch_raises_has_a_hint(model: nn.Module, px: int, words: str) -> None:
    line = failing(model, torch.zeros(1, 3, px, px))
    assert words in line
    assert "\n" not in line


def test_labels_beyond_the_models_classes_have_a_hint() -> None:
    with pytest.raises(IndexError) as caught:
        nn.functional.cross_entropy(torch.zeros(1, 3), torch.tensor([7]))
    assert HINTS["is out of bounds"] in told(caught.value)


UNUSED = """Expected to have finished reduction in the prior iteration before starting a new one.
This error indicates that your module has parameters that were not used in producing loss."""


def test_unused_parameters_name_the_keys_that_help() -> None:
    line = told(RuntimeError(UNUSED))
    assert line.startswith(
        "RuntimeError: Expected to have finished reduction in the prior iteration before"
    )
    assert "strategy.find_unused_parameters=true" in line
    assert "strategy.static_graph=true" in line


def test_other_messages_stay_on_one_line_of_bearable_length() -> None:
    assert told(RuntimeError("a\n  b")) == "RuntimeError: a b"
    assert told(RuntimeError()) == "RuntimeError"
    assert told(KeyError("key")) == "KeyError: 'key'"
    assert told(SystemExit("bye")) == "SystemExit: bye"
    assert len(told(RuntimeError("x" * 9_999))) == MOST_MESSAGE + 1


def test_the_line_of_the_model_is_named_and_not_that_of_torch() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.head(images.flatten(1))
            return found

    line = failing(Model(), torch.zeros(1, 3, 8, 8))
    number = Model.forward.__code__.co_firstlineno + 1
    assert line.startswith("RuntimeError: ")
    assert "mat1 and mat2 shapes cannot be multiplied (1x192 and 8x10)" in line
    assert line.endswith(f"(test_model_faults.py, line {number}); {HINTS['Wrong image height']}")
