"""Rejects a configuration that cannot train, before any rank starts."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from dpeval.components import strategies
from dpeval.components.optimizers import build_optimizer
from dpeval.components.tasks import ForecastTask, forecast_task
from dpeval.components.tasks.user_function import check_function
from dpeval.config import CALLABLE, CAUSAL_LM, Config, per_device_batches_of
from dpeval.errors import ConfigError, DpevalError, ModelError, first_line
from dpeval.util.display.plural import inflected

SIZES_PX = (32, 64, 96, 112, 128, 160, 192, 224, 256, 288, 299, 320, 384, 448, 512, 518)
"""Common image sizes, tried to find one that a model accepts."""
_MOST_SIZES = 3
_NO_INPUT_NEEDS_GRAD = "None of the inputs have requires_grad=True"
"""torch's warning of a reentrant checkpoint whose parameters get no gradient."""
_ONE_VALUE = "more than 1 value per channel"
"""torch's error of batch normalisation that gets one value."""


def check(config: Config) -> None:
    """Build the model and its optimizer, and compute the loss of two samples on ``meta``.

    If the forward pass needs values, only the ranks can find out whether the model can be trained.
    A user's function is not called.

    Raises:
        ConfigError: the model, the optimizer or the strategy cannot be built as configured.
        ModelError: the model does not accept images of this size, or a device's single image, its
            output contains no logits, or some of its parameters would never be trained.
    """
    strategies.check(config.strategy)
    if config.task.kind == CALLABLE:
        check_function(config)
        return
    task = forecast_task(config)
    try:
        model = task.on_meta()
    except ModelError as error:
        _check_built_size(config, error)
        raise
    _check_trainable(config, model)
    optimizer = build_optimizer(config.optimizer, model)
    on_cpu = config.hardware.kind == "cpu"
    if on_cpu and any(group.get("capturable") for group in optimizer.param_groups):
        raise ConfigError(
            "optimizer.args.capturable=true is for CUDA graphs and needs hardware=gpu; remove it"
        )
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            output, labels = _run(model, task)
        except DpevalError:
            raise
        except (Exception, SystemExit) as error:
            if config.task.kind != CAUSAL_LM:
                _check_size(config, model, error)
            return  # the model may need values, which meta tensors do not have
        loss = task.criterion(model, 2)(output, labels)
        _check_single_sample(config, model, task)
    if any(_NO_INPUT_NEEDS_GRAD in str(one.message) for one in warned):
        _check_checkpoints(model, loss)


def has_single_sample(config: Config) -> bool:
    """Whether a device gets one sample, on which batch normalisation may be unable to train."""
    return min(per_device_batches_of(config)) == 1


def _check_single_sample(config: Config, model: nn.Module, task: ForecastTask) -> None:
    """Check that the model can train on one sample if a device gets no more.

    Raises:
        ModelError: batch normalisation cannot.
    """
    if not has_single_sample(config):
        return
    try:
        _run(model, task, 1)
    except Exception as error:
        if _ONE_VALUE not in str(error):
            return  # only the ranks can find out
        is_weak, devices = config.scaling.kind == "weak", config.num_devices
        raise ModelError(
            f"{first_line(error)}: batch={config.batch} num_devices={devices} gives a device one "
            f"image, on which batch normalisation cannot train; set batch="
            f"{2 if is_weak else 2 * devices} or more"
        ) from error


def _run(model: nn.Module, task: ForecastTask, samples: int = 2) -> tuple[object, Tensor]:
    """The model's output for some samples, and their labels."""
    with torch.device("meta"):
        inputs, labels = task.example(samples)
        return model.train()(inputs), labels


def _check_trainable(config: Config, model: nn.Module) -> None:
    """Check that there is something to train.

    Raises:
        ModelError: there are no parameters, or all are frozen.
    """
    trainable = [item.requires_grad for item in model.parameters()]
    name = f"model={config.model.name}"
    if not trainable:
        raise ModelError(f"{name} has no parameters, so there is nothing to train")
    if not any(trainable):
        raise ModelError(f"{name} has frozen all of its parameters; leave requires_grad for some")


def _check_built_size(config: Config, error: ModelError) -> None:
    """Check whether a model that is built for a size of images cannot be built for this one.

    Raises:
        ModelError: it can be built for others.
    """
    px = config.dataset.image_px
    if px not in [value for value in config.model.args.values() if not isinstance(value, bool)]:
        return
    taken = _nearest_sizes(px, lambda size: _is_built(config, size))
    if taken:
        raise ModelError(
            f"model={config.model.name} cannot be built for images of {px} px "
            f"({first_line(error.__cause__ or error).rstrip('.!')}), but for "
            f"{', '.join(map(str, sorted(taken)))} px; set dataset.image_px={taken[0]}"
        ) from error


def _is_built(config: Config, px: int) -> bool:
    args = {
        name: px if value == config.dataset.image_px else value
        for name, value in config.model.args.items()
    }
    resized = replace(config, model=replace(config.model, args=args))
    try:
        model = forecast_task(resized).on_meta()
    except ModelError:
        return False
    return _runs(model, resized, px)


def _nearest_sizes(px: int, works: Callable[[int], bool]) -> list[int]:
    """The few of :data:`SIZES_PX` nearest to `px` that work, the nearest first."""
    others = sorted(SIZES_PX, key=lambda size: abs(size - px))
    return [*itertools.islice((size for size in others if works(size)), _MOST_SIZES)]


def _check_size(config: Config, model: nn.Module, error: BaseException) -> None:
    """Check whether `error` is due to the image size, in which case other sizes work.

    Raises:
        ModelError: other sizes work.
    """
    px = config.dataset.image_px
    taken = _nearest_sizes(px, lambda size: _runs(model, config, size))
    if not taken:
        return
    own = f", or +model.args.image_size={px}" if hasattr(model, "image_size") else ""
    raise ModelError(
        f"model={config.model.name} does not accept images of {px} px "
        f"({first_line(error).rstrip('.!')}), but accepts {', '.join(map(str, sorted(taken)))} "
        f"px; set dataset.image_px={taken[0]}{own}"
    ) from error


def _runs(model: nn.Module, config: Config, px: int) -> bool:
    resized = replace(config, dataset=replace(config.dataset, image_px=px))
    try:
        _run(model, forecast_task(resized))
    except (Exception, SystemExit):
        return False
    return True


def _check_checkpoints(model: nn.Module, loss: Tensor) -> None:
    """Check that all parameters get a gradient, which a reentrant checkpoint may prevent.

    Raises:
        ModelError: some parameters get none.
    """
    try:
        loss.backward()
    except Exception as error:
        if "does not require grad" not in str(error):
            return  # a failure for another reason proves nothing
    named = [name for name, item in model.named_parameters() if item.requires_grad]
    lost = [name for name in named if model.get_parameter(name).grad is None]
    model.zero_grad(set_to_none=True)
    if lost:
        shown = ", ".join(lost[:3]) + ", …" * (len(lost) > 3)
        raise ModelError(
            f"{len(lost)} of {len(named)} {inflected(len(named), 'parameter')} would never be "
            f"trained ({shown}): a reentrant torch.utils.checkpoint passes no gradient to its "
            "parameters if its input needs none; call it with use_reentrant=False"
        )
