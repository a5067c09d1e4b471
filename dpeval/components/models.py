"""Builds the model, with any importable callable, such as the builders of torchvision."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from dpeval.config import ModelConfig
from dpeval.errors import ConfigError, DpevalError, ModelError, nearest, raised_at
from dpeval.system.oom import is_out_of_memory
from dpeval.util.importing import locate

AUXILIARY_WEIGHTS = {"inception_v3": 0.4}
"""Weights of auxiliary losses that differ from the default. TF-Slim trained Inception v3 with 0.4
(tensorflow/models, research/slim/train_image_classifier.py), as does PyTorch's tutorial on
fine-tuning torchvision models. The training script of torchvision uses no auxiliary losses."""

OWN_WEIGHTS = ("googlenet", "inception_v3")
"""Classifiers that print a warning on every rank unless ``init_weights`` is given."""


def build(config: ModelConfig, image_px: int | None) -> nn.Module:
    """Build the model that `config` names, with newly initialised weights.

    Args:
        config: the callable and its arguments.
        image_px: side of the images in pixels, which fixes the shapes of lazy layers; None: the
            model does not receive images.

    Raises:
        ConfigError: the target cannot be imported.
        ModelError: it rejects its arguments, fails, or does not return a module.
    """
    target = locate(config._target_, key="model._target_")
    try:
        model = target(**_instantiated(config.args))
        if isinstance(model, nn.Module) and image_px is not None:
            _give_lazy_layers_shapes(model, image_px)
    except DpevalError:
        raise
    except (Exception, SystemExit) as error:  # SystemExit: from a model that parses sys.argv
        if is_out_of_memory(error):
            raise
        rejects = "rejects" if isinstance(error, TypeError) else "fails with"
        raise ModelError(
            f"{config._target_} {rejects} model.args={dict(config.args)}: "
            f"{' '.join(str(error).split()) or repr(error)}"
            f"{raised_at(error, __file__)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model={config.name}: {config._target_} returned a {type(model).__name__}; "
            "it must return a torch.nn.Module"
        )
    return model


def _instantiated(args: Mapping[str, Any]) -> dict[str, Any]:
    """`args` with every mapping that has a ``_target_`` replaced by what that returns, as Hydra's
    ``instantiate`` does: an argument may be an object, such as a configuration of transformers.

    Raises:
        ConfigError: such a target cannot be imported.
    """
    made: dict[str, Any] = {}
    for name, value in args.items():
        if isinstance(value, Mapping) and "_target_" in value:
            inner = _instantiated(value)
            value = locate(inner.pop("_target_"), key=f"model.args.{name}._target_")(**inner)
        made[name] = value
    return made


def build_on_meta(config: ModelConfig, image_px: int | None) -> nn.Module:
    """Build the model on the ``meta`` device, where weights take neither memory nor time.

    A model that reads its weights during construction is built on the CPU and then moved.

    Args:
        config: the callable and its arguments.
        image_px: side of the images in pixels, which fixes the shapes of lazy layers; None: the
            model does not receive images.

    Raises:
        ConfigError: see :func:`build`.
    """
    # What the import of a module creates must keep its values, so import first. torch 2.6's
    # torch._dynamo reads tensors while it is imported, which importing torchvision may do.
    importlib.import_module("torch._dynamo")
    locate(config._target_, key="model._target_")
    try:
        with _WeightsOnMeta():
            model = build(config, image_px)
    except ConfigError:
        # It may have failed only because meta tensors have no values. If it fails again without
        # them, the model itself is at fault.
        model = build(config, image_px)
    return model.to("meta")


class _WeightsOnMeta(TorchFunctionMode):
    """Creates weights on ``meta`` and all other tensors with their values.

    Under ``torch.device("meta")`` no tensor has values and ``torch.linspace(…)[0].item()`` fails,
    so torchvision's RegNets and many vision transformers cannot be built.
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
    """An untrained torchvision classifier.

    Args:
        name: a name that ``torchvision.models.list_models`` lists.
        num_classes: columns of the logits.
        args: other arguments of the model's builder.

    Raises:
        ConfigError: torchvision has no classifier of that name.
    """
    # Late: torchvision takes a second to import, and only ranks build models.
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        hint = nearest(name, known) or "; torchvision.models.list_models() lists them"
        raise ConfigError(f"model.name={name} is not a torchvision classifier{hint}")
    if name in OWN_WEIGHTS:
        args.setdefault("init_weights", True)
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **args)
    if name in AUXILIARY_WEIGHTS:
        model.aux_loss_weight = AUXILIARY_WEIGHTS[name]
    return cast(nn.Module, model)


def _give_lazy_layers_shapes(model: nn.Module, image_px: int) -> None:
    """If a model has lazy layers, run two blank images through it.

    DDP and optimizers need the shape of every parameter. The model is in training mode because
    auxiliary heads may not run otherwise. Two images, because batch normalisation cannot train on
    one.
    """
    if any(is_lazy(item) for item in (*model.parameters(), *model.buffers())):
        with torch.no_grad():
            model.train()(torch.zeros(2, 3, image_px, image_px))
