"""The typed configuration: every key with its type, its unit, its bounds and its meaning.

Hydra composes the YAML files of ``conf/`` onto these dataclasses, so a wrong key or type is
refused while composing; :func:`from_hydra` then checks the bounds and the rules that join
keys, and hands on a frozen :class:`Config`. This module imports neither torch nor data code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from dpeval.errors import ConfigError, nearest

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
MEMORY_FORMATS = ("channels_last", "contiguous")


def bounded(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A dataclass field with inclusive bounds `low`, `high`, an exclusive `above`, or choices."""
    metadata = {"low": low, "high": high, "above": above, "choices": choices}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class HardwareConfig:
    """What one device is and where ranks run."""

    kind: str = bounded("cpu", choices=("cpu", "gpu"))
    cores_per_device: int = bounded(1, low=1)
    """CPU cores of one rank: its compute threads under cpu, its host cores under gpu."""
    oversubscribe: bool = False
    """Allow more ranks than there are cores (CPU only); such a run measures contention."""
    memory_gib: float | None = bounded(None, above=0)
    """Memory budget of one device in GiB; null: what the device, cgroup or host leaves."""
    keep_memory: bool = False
    """Let ranks keep freed host memory for the next step instead of giving it back to the system
    and taking it anew, page by page (GNU C library: M_TRIM_THRESHOLD=-1, M_MMAP_MAX=0)."""
    interface: str | None = None
    """Network interface for gloo and NCCL between nodes; null: loopback on one node."""
    startup_timeout_s: float = bounded(900.0, above=0)
    hang_timeout_s: float = bounded(60.0, above=0)
    """A run without a new step for this long (and 10 longest steps) is ended as hung."""


@dataclass(frozen=True)
class ModelConfig:
    """What is trained: a callable and its keyword arguments."""

    name: str = MISSING
    _target_: str = "dpeval.models.torchvision_classifier"
    """Importable callable returning a ``torch.nn.Module``; called as ``target(**args)``."""
    args: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class DatasetConfig:
    """What is fed."""

    name: str = MISSING
    _target_: str = MISSING
    """Importable callable that makes the data ready once and returns a ``DatasetUsed``."""
    root: str | None = None
    """Folder of the data; null: ``$DPEVAL_DATA`` or ``~/.cache/dpeval``."""
    num_classes: int = bounded(10, low=1)
    image_px: int = bounded(224, low=1, high=20_000)
    """Side of the square images that the model sees, in pixels."""
    size: str = bounded("full", choices=("full", "320px", "160px"))
    """Which Imagenette archive (imagenette only)."""
    train_images: int = bounded(2_000, low=1)
    """How many images to generate (imagenette_like only)."""
    on_missing: str = bounded("generate", choices=("generate", "error"))
    download_timeout_s: float = bounded(5.0, above=0)
    """How long to wait for the download's first byte before the data counts as unreachable."""
    loader: str = bounded("jpeg", choices=("jpeg", "cached", "resident", "constant"))
    augment: str = bounded("random_resized_crop", choices=("random_resized_crop", "none"))
    workers: int | None = bounded(None, low=0)
    """Threads per rank that make batches ahead; null: as many as there are spare cores."""
    delay_s: float = bounded(0.0, low=0)
    """How long every batch keeps the rank waiting (calibrated only)."""


@dataclass(frozen=True)
class ScalingConfig:
    """What `batch` means when devices are added."""

    kind: str = bounded("strong", choices=("strong", "weak"))


@dataclass(frozen=True)
class StrategyConfig:
    """How ranks agree on one update; the keys of ``DistributedDataParallel``."""

    name: str = "ddp"
    _target_: str = "dpeval.strategies.ddp"
    bucket_cap_mb: float = bounded(25.0, above=0)
    broadcast_buffers: bool = True
    gradient_as_bucket_view: bool = False
    static_graph: bool = False


@dataclass(frozen=True)
class OptimizerConfig:
    """Any class of ``torch.optim`` by name, with its keyword arguments."""

    name: str = "SGD"
    args: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class MeasureConfig:
    """How long to measure and how sure to be."""

    name: str = "standard"
    rel_precision: float = bounded(0.02, above=0, high=1.0)
    """Stop once the 95 % interval of the mean step time is at most ± this fraction of it."""
    min_warmup_steps: int = bounded(5, low=1)
    min_steps: int = bounded(30, low=2)
    max_steps: int = bounded(2_000, low=2, high=100_000)
    time_limit_s: float = bounded(120.0, low=1)
    """Wall time of warm-up and main window together."""
    ablation: bool = True
    """Also measure without gradient synchronisation and with one rank alone."""
    ablation_share: float = bounded(0.5, above=0, high=2.0)
    """Time for the ablation windows, as a fraction of the main window's."""
    conditions: bool = True
    """Sample the machine's condition from outside the ranks."""


@dataclass(frozen=True)
class MemoryConfig:
    """What to do when a run is forecast to exceed its memory."""

    on_excess: str = bounded("skip", choices=("skip", "accumulate", "try", "error"))


@dataclass(frozen=True)
class SweepConfig:
    """How a sweep treats what earlier sweeps left."""

    resume: str | None = None
    skip_done: bool = False
    time_limit_s: float | None = bounded(None, above=0)
    """Refuse a sweep whose runs could take longer than this together; null: no limit."""


@dataclass(frozen=True)
class SiteConfig:
    """What a cluster wants to be told beyond what each run needs; says nothing about a run."""

    name: str = "generic"
    partition: str | None = None
    """SLURM partition or OAR queue; null: the site's default."""
    account: str | None = None
    """SLURM account or OAR project."""
    qos: str | None = None
    constraint: str | None = None
    """SLURM ``--constraint`` of every job."""
    gpu_constraint: str | None = None
    """SLURM ``--constraint`` of jobs with GPUs, instead of `constraint`."""
    gpu_option: str = bounded("gpus_per_node", choices=("gpus_per_node", "gres"))
    """How SLURM is asked for GPUs here."""
    gpu_type: str | None = None
    """Type in SLURM's GPU request (``a100``); OAR: see `gpu_properties`."""
    properties: str | None = None
    """OAR ``-p`` expression of every job."""
    gpu_properties: str | None = None
    """OAR ``-p`` expression added for jobs with GPUs; ``{gpus}`` is their number per node."""
    memory_properties: str | None = None
    """OAR ``-p`` expression added where memory is forecast; ``{mib}`` is MiB per node."""
    gpu_level: str = "gpu"
    """Name of the GPU in OAR's resource hierarchy."""
    exclusive: bool = True
    """Ask for whole nodes: nobody else's work disturbs what is measured."""
    ask_memory: bool = True
    """Ask SLURM for memory; false where the site derives it from the cores."""
    cores_per_gpu: int = bounded(1, low=1)
    """Least number of CPU cores to ask for with every GPU."""
    setup: list[str] = field(default_factory=list[str])
    """Shell lines to run in the job before Python (modules, environment)."""
    environment: list[str] = field(
        default_factory=lambda: [
            "PATH",
            "LD_LIBRARY_PATH",
            "PYTHONPATH",
            "VIRTUAL_ENV",
            "DPEVAL_DATA",
        ]
    )
    """Variables carried into the job where the scheduler carries none (OAR)."""
    scratch: str | None = None
    """Folder for data on the compute nodes; ``$VARIABLES`` are those of the job."""
    interface: str | None = None
    """Network interface between nodes, where ``hardware.interface`` does not say."""
    remote_shell: list[str] = field(default_factory=lambda: ["oarsh"])
    """Command that runs another on a further node of an OAR job: ``oarsh <node> <command>``."""
    requeue: bool = True
    """The site lets a job go back to the queue."""
    besteffort: bool = False
    """OAR: take nodes that nobody else wants, and give them back when somebody does."""
    startup_s: float = bounded(300.0, above=0)
    """Time asked for beyond the measured windows: start, data, first step."""
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Further options of sbatch or oarsub by their long names."""


@dataclass(frozen=True)
class Config:
    """One run, composed. Field names are the keys a user writes."""

    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    site: SiteConfig = field(default_factory=SiteConfig)
    study: str = "default"
    """Name of the study; the folder under ``outputs/``."""
    num_devices: int = bounded(1, low=1)
    num_nodes: int = bounded(1, low=1)
    batch: int = bounded(32, low=1)
    """Images per step: of all devices together under strong scaling, per device under weak."""
    precision: str = bounded("fp32", choices=PRECISIONS)
    memory_format: str = bounded("channels_last", choices=MEMORY_FORMATS)
    compile: bool = False
    deterministic: bool = False
    seed: int = bounded(0, low=0, high=2**32 - 1)
    repeat: int = bounded(1, low=1, high=1_000)
    """Whole-process repetitions of every configuration of a sweep, interleaved."""
    repetition: int = bounded(0, low=0)
    """Which repetition this run is; set by the sweep."""
    analyze: bool = True
    """Draw the figures when a sweep ends."""


QUIET_VARIATION = 0.005
"""Standard deviation over mean of the steps of a very quiet machine."""

GROUPS: dict[str, type] = {
    "hardware": HardwareConfig,
    "model": ModelConfig,
    "dataset": DatasetConfig,
    "scaling": ScalingConfig,
    "strategy": StrategyConfig,
    "optimizer": OptimizerConfig,
    "measure": MeasureConfig,
    "memory": MemoryConfig,
    "sweep": SweepConfig,
}

SCHEMA_NAME = "dpeval_schema"

OUTPUT_KEYS = ("study", "repeat", "analyze", "sweep", "site")
"""Keys that say where results go and not what is measured: no part of a run's identity."""


def register_schema() -> None:
    """Make the typed schema known to Hydra under :data:`SCHEMA_NAME`."""
    schema = OmegaConf.structured(Config)
    _thaw(schema)
    ConfigStore.instance().store(name=SCHEMA_NAME, node=schema)


def _thaw(node: DictConfig) -> None:
    """Let Hydra merge YAML into the schema: OmegaConf makes frozen dataclasses read-only.

    Arguments for a model or an optimizer are open: what keys they have, their callable knows.
    """
    OmegaConf.set_readonly(node, None)
    if OmegaConf.get_type(node) is dict:
        OmegaConf.set_struct(node, False)
    for key in node:
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            _thaw(node[key])


def from_hydra(composed: DictConfig) -> Config:
    """Turn a composed Hydra config into a checked, frozen :class:`Config`.

    Raises:
        ConfigError: an interpolation, type, bound or rule does not hold; one line naming the
            key, its value and the nearest valid choice.
    """
    _check_known(composed, Config, "")
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise ConfigError(wording(error)) from error
    if not isinstance(config, Config):
        raise TypeError(f"composed onto {type(config)}, not onto the schema")
    check(config)
    return config


def wording(error: OmegaConfBaseException) -> str:
    """What OmegaConf found wrong, in one line that begins with the key."""
    key = error.full_key or ""
    if isinstance(error, MissingMandatoryValue):
        return f"{key} has no value; give one with {key}=…"
    found = re.match(r"Key '[^']+' (?:is )?not in '\w+'", str(error))
    if found:
        return f"there is no key '{key}'{nearest(key, all_keys())}"
    return f"{key}: {str(error).strip().splitlines()[0]}"


def all_keys(node: type | None = None, prefix: str = "") -> list[str]:
    """Every key that a user can write, dotted."""
    keys: list[str] = []
    for item in dataclasses.fields(node or Config):
        keys.append(f"{prefix}{item.name}")
        inner = GROUPS.get(item.name) if node is None else None
        if inner is not None:
            keys += all_keys(inner, f"{item.name}.")
    return keys


def _check_known(composed: DictConfig, node: type, prefix: str) -> None:
    """Refuse keys that were added with ``+``: the schema alone says what there is."""
    known = {item.name for item in dataclasses.fields(node)}
    for key in map(str, composed):
        name = f"{prefix}{key}"
        if key not in known:
            raise ConfigError(f"there is no key '{name}'{nearest(name, all_keys())}")
        if not prefix and key in GROUPS and not OmegaConf.is_missing(composed, key):
            _check_known(composed[key], GROUPS[key], f"{key}.")


def check(config: Config) -> None:
    """Check every bound and every rule that joins keys.

    Raises:
        ConfigError: on the first that does not hold.
    """
    _check_bounds(config, "")
    _check_batch(config)
    _check_precision(config)
    _check_measure(config.measure)
    if config.strategy.name == "none" and config.num_devices > 1:
        raise ConfigError(
            f"strategy=none trains on one device, and num_devices={config.num_devices} was asked; "
            "use strategy=ddp or num_devices=1"
        )
    if config.repetition >= config.repeat:
        raise ConfigError(
            f"repetition={config.repetition} is set by the sweep and counts from 0 to repeat-1; "
            f"set repeat={config.repeat} alone"
        )
    if config.num_devices % config.num_nodes:
        raise ConfigError(
            f"num_devices={config.num_devices} cannot be dealt evenly to num_nodes="
            f"{config.num_nodes}; choose a multiple of {config.num_nodes}"
        )


def _check_bounds(node: Any, prefix: str) -> None:
    for item in dataclasses.fields(node):
        value, key = getattr(node, item.name), f"{prefix}{item.name}"
        if dataclasses.is_dataclass(value):
            _check_bounds(value, f"{key}.")
        elif value is not None and item.metadata:
            _check_bound(key, value, item.metadata)


def _check_bound(key: str, value: Any, bound: Any) -> None:
    choices, low, high, above = (bound[name] for name in ("choices", "low", "high", "above"))
    if choices is not None:
        if value not in choices:
            raise ConfigError(
                f"{key}={value} is not one of {', '.join(choices)}{nearest(value, choices)}"
            )
        return
    if not math.isfinite(value):
        raise ConfigError(f"{key}={value} is not a finite number; give one that is")
    if low is not None and value < low:
        raise ConfigError(f"{key}={value} is too small; the smallest valid value is {low}")
    if above is not None and value <= above:
        raise ConfigError(f"{key}={value} is too small; it must be above {above}")
    if high is not None and value > high:
        raise ConfigError(f"{key}={value} is too large; the largest valid value is {high}")


def _check_batch(config: Config) -> None:
    if config.scaling.kind == "strong" and config.batch < config.num_devices:
        raise ConfigError(
            f"batch={config.batch} cannot be shared by num_devices={config.num_devices}: every "
            f"device needs at least one image; use batch={config.num_devices} or more, or "
            f"num_devices={config.batch} or fewer (or scaling=weak, batch per device)"
        )


def _check_precision(config: Config) -> None:
    if config.hardware.kind == "cpu" and config.precision in ("fp16", "tf32"):
        raise ConfigError(
            f"precision={config.precision} needs hardware=gpu, and hardware=cpu was asked; "
            "on CPU use precision=fp32 or precision=bf16"
        )


def _check_measure(measure: MeasureConfig) -> None:
    if measure.max_steps < measure.min_warmup_steps + measure.min_steps:
        raise ConfigError(
            f"measure.max_steps={measure.max_steps} leaves no window after "
            f"measure.min_warmup_steps={measure.min_warmup_steps} and measure.min_steps="
            f"{measure.min_steps}; use {measure.min_warmup_steps + measure.min_steps} or more"
        )
    needed = math.ceil((1.96 * QUIET_VARIATION / measure.rel_precision) ** 2)
    if needed > measure.max_steps:
        raise ConfigError(
            f"measure.rel_precision={measure.rel_precision:g} cannot be reached: even where steps "
            f"vary by only {QUIET_VARIATION:.1%} it takes {needed} of them, and measure.max_steps="
            f"{measure.max_steps}; use a precision of "
            f"{1.96 * QUIET_VARIATION / math.sqrt(measure.max_steps):.1g} or more"
        )


def to_plain(config: Config) -> dict[str, Any]:
    """The configuration as plain JSON-able containers, key for key."""
    return dataclasses.asdict(config)


def identity(config: Config) -> str:
    """Hash of everything that decides what is measured (16 hex digits of SHA-256).

    Two runs with one identity are repetitions of one another only if their `repetition` is
    equal too; keys that only say where output goes (:data:`OUTPUT_KEYS`) do not count.
    """
    plain = {key: value for key, value in to_plain(config).items() if key not in OUTPUT_KEYS}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
