"""What a ``_target_`` may name, and what a wrong name is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from dpeval.components import models
from dpeval.config import ModelConfig
from dpeval.errors import ConfigError
from dpeval.util.importing import locate


class Sized(nn.Module):
    def __init__(self, width: int, layer: nn.Module) -> None:
        super().__init__()
        self.width, self.layer = width, layer

    @classmethod
    def from_config(cls, config: nn.Module, width: int) -> Sized:
        return cls(width, config)


def test_a_method_of_a_class_can_be_named() -> None:
    assert locate("pathlib.Path.home", key="model._target_") == Path.home


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("pathlib.Path.hme", r"class 'pathlib\.Path' has no 'hme'; did you mean 'home'\?"),
        ("pathlib.Paht.home", r"there is no module 'pathlib\.Paht'"),
        ("pathlib.sep.home", r"there is no module 'pathlib\.sep'"),
        ("no_such.Path.home", r"there is no module 'no_such'"),
    ],
)
def test_a_wrong_method_is_told(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        locate(path, key="model._target_")


def test_an_argument_of_a_model_may_be_an_object() -> None:
    layer = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}
    config = ModelConfig(
        name="sized",
        _target_=f"{__name__}.Sized.from_config",
        args={"width": 4, "config": {"_target_": "torch.nn.Sequential.copy", "x": 1}},
    )
    with pytest.raises(ConfigError, match=r"model\.args\.config\._target_=.*has no 'copy'"):
        models.build(config, None)
    config.args["config"] = layer
    made = models.build(config, None)
    assert isinstance(made, Sized)
    assert made.width == 4
    assert isinstance(made.layer, nn.Linear)
