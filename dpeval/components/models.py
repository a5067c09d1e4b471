"""What is trained: a torchvision classifier by name, or any importable callable."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from dpeval.config import ModelConfig
from dpeval.errors import ConfigError, DpevalError, nearest
from dpeval.system.oom import is_out_of_memory
from dpeval.util.importing import locate

AUXILIARY_WEIGHTS = {"inception_v3": 0.4}
"""Where torchvision's classifiers differ from the usual weight of auxiliary losses: as TF-Slim
trained Inception v3 (tensorflow/models, research/slim/train_image_classifier.py) and as PyTorch's
tutorial on fine-tuning torchvision models trains it."""

OWN_WEIGHTS = ("googlenet", "inception_v3")
"""Classifiers that warn, on every rank, unless told to initialise their weights as they do."""


def build(config: ModelConfig, image_px: int) -> nn.Module:
    """Build the model that `config` names, with freshly initialised weights.

    Args:
        config: the callable and its arguments.
        image_px: side of the images, from which lazy layers take their shapes.

    Raises:
        ConfigError: the target cannot be imported, refuses its arguments, fails, or returns
            something else than a module.
    """
    target = locate(config._target_, key="model._target_")
    try:
        model = target(**config.args)
        if isinstance(model, nn.Module):
            _give_lazy_layers_shapes(model, image_px)
    except DpevalError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        refuses = "refuses" if isinstance(error, TypeError) else "fails with"
        raise ConfigError(
            f"{config._target_} {refuses} model.args={dict(config.args)}: {error or repr(error)}"
            f"{_raised_at(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model={config.name}: {config._target_} returned a {type(model).__name__}; "
            "it must return a torch.nn.Module"
        )
    return model


def build_on_meta(config: ModelConfig, image_px: int) -> nn.Module:
    """Build the model on the ``meta`` device, where weights take neither memory nor time.

    A model that looks at its weights while it is built is built in earnest, and then moved there.

    Args:
        config: the callable and its arguments.
        image_px: side of the images, from which lazy layers take their shapes.

    Raises:
        ConfigError: see :func:`build`.
    """
    try:
        with _WeightsOnMeta():
            model = build(config, image_px)
    except ConfigError:
        # For want of data or altogether? Without the mode, the error is the model's own.
        model = build(config, image_px)
    return model.to("meta")


class _WeightsOnMeta(TorchFunctionMode):
    """Makes on ``meta`` what weights are made of, and all else with its values.

    Under ``torch.device("meta")`` nothing has values, and ``torch.linspace(…)[0].item()`` fails:
    so torchvision's RegNets and many a vision transformer cannot be built.
    """

    FACTORIES = frozenset({torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn})

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func in self.FACTORIES and given.get("device") is None:
            given["device"] = "meta"
        return func(*args, **given)


def torchvision_classifier(name: str, num_classes: int, **args: Any) -> nn.Module:
    """An untrained classifier of torchvision.

    Args:
        name: as ``torchvision.models.list_models`` spells it.
        num_classes: columns of its logits.
        args: further arguments of its builder.

    Raises:
        ConfigError: torchvision has no classifier of that name.
    """
    # Late, because torchvision takes a second to import and only a rank builds models.
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        hint = nearest(name, known) or "; torchvision.models.list_models() names them"
        raise ConfigError(f"model.name={name} is not a torchvision classifier{hint}")
    if name in OWN_WEIGHTS:
        args.setdefault("init_weights", True)
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **args)
    if name in AUXILIARY_WEIGHTS:
        model.aux_loss_weight = AUXILIARY_WEIGHTS[name]
    return cast(nn.Module, model)


def _give_lazy_layers_shapes(model: nn.Module, image_px: int) -> None:
    """Run two blank images through a model with lazy layers; do nothing to any other.

    DDP and optimizers need every parameter's shape. In training mode, because auxiliary heads may
    run in no other; two images, because batch normalisation cannot train on one.
    """
    if any(is_lazy(item) for item in (*model.parameters(), *model.buffers())):
        with torch.no_grad():
            model.train()(torch.zeros(2, 3, image_px, image_px))


def _raised_at(error: Exception) -> str:
    """File and line where a model's own code failed; "" where it was never entered."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    own = Path(frame.filename) == Path(__file__)
    return "" if own else f" ({Path(frame.filename).name}, line {frame.lineno})"
