"""The typed configuration: every key with its type, its unit, its bounds and its meaning.

Hydra composes the YAML files of ``conf/`` onto these dataclasses, so a wrong key or type is
refused while composing (:mod:`dpeval.config.composition`); bounds and the rules that join keys
are checked afterwards (:mod:`dpeval.config.validation`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from dpeval.config.bounds import bounded
from dpeval.config.site import SiteConfig

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")

MEMORY_FORMATS = ("channels_last", "contiguous")


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
    _target_: str = "dpeval.components.torchvision_classifier"
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
    _target_: str = "dpeval.components.ddp"
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
