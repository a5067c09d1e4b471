"""Checks a configuration: the bounds of its keys and the rules that relate them."""

from __future__ import annotations

from dpeval.config.bounds import check_bounds
from dpeval.config.schema import SERIAL, Config, MeasureConfig
from dpeval.config.tasks import check_task
from dpeval.errors import ConfigError


def check(config: Config) -> None:
    """Check every bound, and every rule that relates several keys.

    Raises:
        ConfigError: the first violation.
    """
    check_bounds(config)
    check_task(config)
    _check_batch(config)
    _check_precision(config)
    _check_measure(config.measure)
    if config.strategy.name == SERIAL and config.num_devices > 1:
        raise ConfigError(
            f"strategy=none trains on one device, not on num_devices={config.num_devices}; "
            "use strategy=ddp or num_devices=1"
        )
    if config.repetition >= config.repeat:
        raise ConfigError(
            f"repetition={config.repetition} is not valid: the sweep sets it, from 0 to repeat-1; "
            "set only repeat"
        )
    if config.num_devices % config.num_nodes:
        raise ConfigError(
            f"num_devices={config.num_devices} does not divide evenly among num_nodes="
            f"{config.num_nodes}; use a multiple of {config.num_nodes}"
        )


def _check_batch(config: Config) -> None:
    if config.scaling.kind == "strong" and config.batch < config.num_devices:
        raise ConfigError(
            f"batch={config.batch} is too small for num_devices={config.num_devices}: every "
            f"device needs at least one image; use batch={config.num_devices} or more, "
            f"num_devices={config.batch} or fewer, or scaling=weak, where batch is per device"
        )


def _check_precision(config: Config) -> None:
    if config.hardware.kind == "cpu" and config.precision in ("fp16", "tf32"):
        raise ConfigError(
            f"precision={config.precision} needs hardware=gpu; "
            "with hardware=cpu, use precision=fp32 or precision=bf16"
        )


def _check_measure(measure: MeasureConfig) -> None:
    if measure.max_steps < measure.steps_for_a_mean:
        raise ConfigError(
            f"measure.max_steps={measure.max_steps} leaves too few steps for a mean after "
            f"measure.min_warmup_steps={measure.min_warmup_steps}; use "
            f"{measure.steps_for_a_mean} or more"
        )
