"""The typed configuration: its schema, composition, validation, and the identity of a run.

Imports neither torch nor data code.
"""

from __future__ import annotations

from dpeval.config.bounds import check_bounds
from dpeval.config.composition import describe_error, from_hydra, register_schema
from dpeval.config.identity import curve_of, identity, to_plain
from dpeval.config.launcher import LauncherOptions, LocalOptions
from dpeval.config.loaders import LOADERS, BuiltInLoader
from dpeval.config.schema import (
    CALLABLE,
    CAUSAL_LM,
    CLASSIFICATION,
    SERIAL,
    Config,
    DatasetConfig,
    HardwareConfig,
    MeasureConfig,
    MemoryConfig,
    ModelConfig,
    OptimizerConfig,
    ScalingConfig,
    StrategyConfig,
    SweepConfig,
    TaskConfig,
    global_batch_of,
    per_device_batches_of,
    split_evenly,
)
from dpeval.config.site import ContainerConfig, SiteConfig, nodes_asked, scratch_folder
from dpeval.config.tasks import check_script, fill_in, with_content
from dpeval.config.validation import check

__all__ = [
    "CALLABLE",
    "CAUSAL_LM",
    "CLASSIFICATION",
    "LOADERS",
    "SERIAL",
    "BuiltInLoader",
    "Config",
    "ContainerConfig",
    "DatasetConfig",
    "HardwareConfig",
    "LauncherOptions",
    "LocalOptions",
    "MeasureConfig",
    "MemoryConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ScalingConfig",
    "SiteConfig",
    "StrategyConfig",
    "SweepConfig",
    "TaskConfig",
    "check",
    "check_bounds",
    "check_script",
    "curve_of",
    "describe_error",
    "fill_in",
    "from_hydra",
    "global_batch_of",
    "identity",
    "nodes_asked",
    "per_device_batches_of",
    "register_schema",
    "scratch_folder",
    "split_evenly",
    "to_plain",
    "with_content",
]
