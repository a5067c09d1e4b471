"""The typed configuration: every key with its type, unit, bounds and meaning.

Hydra merges the YAML files of ``conf/`` into these dataclasses and rejects wrong keys and types
(:mod:`dpeval.config.composition`). OmegaConf reads the types and ignores the bounds annotated to
them; pydantic reads both (:mod:`dpeval.config.bounds`). Rules that relate several keys are in
:mod:`dpeval.config.validation`. The text below a key describes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Annotated, Any

from omegaconf import MISSING
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from dpeval.config.bounds import BOUNDS_CONFIG, OneOf
from dpeval.config.loaders import LOADERS
from dpeval.config.site import SiteConfig


@dataclass(frozen=True)
class HardwareConfig:
    """What a device is, and what it may use."""

    kind: Annotated[str, OneOf("cpu", "gpu")] = "cpu"
    """What a device is: a process pinned to CPU cores, or a CUDA GPU."""
    cores_per_device: PositiveInt | None = None
    """CPU cores of one rank. With cpu, its compute threads (null: 1); with gpu, the cores that
    launch kernels and load data (null: an equal share for each GPU of the machine, used or not)."""
    oversubscribe: bool = False
    """Allow more ranks than cores or GPUs; such a run measures contention. Ranks that share a GPU
    communicate through gloo, because NCCL does not allow two ranks on one GPU."""
    memory_gib: PositiveFloat | None = None
    """Memory budget of one rank in GiB; null: the free memory of the device, cgroup or host. A GPU
    rank cannot reserve more than that; on CPUs the budget only decides which runs start."""
    keep_memory: bool = False
    """Let ranks keep freed host memory for the next step instead of returning it to the system
    and faulting it in again, page by page (GNU C library: M_TRIM_THRESHOLD=-1, M_MMAP_MAX=0)."""
    interface: str | None = None
    """Network interface for gloo and NCCL between nodes; null: loopback on one node."""
    startup_timeout_s: PositiveFloat = 900.0
    """Maximum time from the start of the ranks to the end of the first step, in seconds."""
    hang_timeout_s: PositiveFloat = 60.0
    """A run that completes no step for this many seconds (and for 10 times its longest step) is
    stopped as hung."""

    @property
    def compute_threads(self) -> int:
        """Compute threads of a CPU rank."""
        return self.cores_per_device or 1


CLASSIFICATION, CAUSAL_LM, CALLABLE, SCRIPT = "classification", "causal_lm", "callable", "script"
UNITS = {CLASSIFICATION: "img", CAUSAL_LM: "tokens", CALLABLE: "samples", SCRIPT: "samples"}
"""The unit of a sample for each task, as far as the configuration determines it."""


@dataclass(frozen=True)
class TaskConfig:
    """What kind of training is measured."""

    kind: Annotated[str, OneOf(CLASSIFICATION, CAUSAL_LM, CALLABLE, SCRIPT)] = CLASSIFICATION
    """classification: an image classifier. causal_lm: a decoder-only language model. callable: the
    model, batches and loss that your function returns. dpeval's loop trains these three. script:
    your training script, whose loop iterates over ``dpeval.Meter.steps``."""
    function: str | None = None
    """Importable function that returns a ``dpeval.Training``; called as ``function(rank,
    **kwargs)`` with a :class:`dpeval.Rank` (callable only)."""
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any], hash=False)
    """Its keyword arguments (callable only)."""
    script: str | None = None
    """Path of the training script (script only)."""
    module: str | None = None
    """Module to run instead of a file, as ``python -m`` does (script only)."""
    args: list[str] = field(default_factory=list[str], hash=False)
    """Its arguments. ``{batch}`` or ``{global_batch_size}``, ``{per_device_batch_size}``,
    ``{world_size}`` and ``{seed}`` are replaced by the run's values (script only)."""
    exit_timeout_s: PositiveFloat = 30.0
    """How long a script may continue after the measurement, to evaluate or to save, before it is
    stopped, in seconds (script only)."""
    content: str = ""
    """Hash of the file that holds the script or function, so that a changed file is a different
    run; set by dpeval."""

    @property
    def is_script(self) -> bool:
        return self.kind == SCRIPT

    @property
    def has_own_data(self) -> bool:
        """Whether the script or function supplies its data, so that dpeval prepares none."""
        return self.kind in (SCRIPT, CALLABLE)

    @property
    def name(self) -> str:
        """The script, module or function, as records and figures name it."""
        if self.function is not None:
            return self.function.rpartition(".")[2]
        return PurePath(self.script).stem if self.script is not None else self.module or ""

    @property
    def unit(self) -> str:
        """The unit of a sample, until the training itself reports one."""
        return UNITS[self.kind]


@dataclass(frozen=True)
class ModelConfig:
    """The model to train: a callable and its keyword arguments."""

    name: str = MISSING
    """Name of the model, as records and figures show it."""
    _target_: str = "dpeval.components.torchvision_classifier"
    """Importable callable that returns a ``torch.nn.Module``; called as ``target(**args)``."""
    args: dict[str, Any] = field(default_factory=dict[str, Any])
    """Keyword arguments of the callable."""


@dataclass(frozen=True)
class DatasetConfig:
    """The data that the model is trained on, and how it is loaded."""

    name: str = MISSING
    """Name of the dataset, as records and figures show it."""
    _target_: str = MISSING
    """Importable callable that prepares the data once and returns a ``dpeval.data.Source``; called
    as ``target(config, root, report, **args)``, see :class:`dpeval.data.MakeSource`."""
    args: dict[str, Any] = field(default_factory=dict[str, Any], hash=False)
    """Keyword arguments of the callable."""
    root: str | None = None
    """Folder of the data; null: ``$DPEVAL_DATA`` or ``~/.cache/dpeval``."""
    num_classes: PositiveInt = 10
    """Number of classes, or the size of the vocabulary (causal_lm)."""
    seq_len: Annotated[int, Field(ge=1, le=1_048_576)] = 256
    """Length of the sequences that the model receives, in tokens (causal_lm only)."""
    image_px: Annotated[int, Field(ge=1, le=20_000)] = 224
    """Side of the square images that the model receives, in pixels (classification only)."""
    size: Annotated[str, OneOf("full", "320px", "160px")] = "full"
    """Which Imagenette archive (imagenette and imagenette_like only)."""
    train_images: PositiveInt = 2_000
    """Number of images to generate (imagenette_like only)."""
    on_missing: Annotated[str, OneOf("generate", "error")] = "generate"
    """What to do if the data cannot be obtained: generate images instead, or stop."""
    download_timeout_s: PositiveFloat = 5.0
    """How long to wait for the first byte of the download, in seconds."""
    loader: Annotated[str, OneOf(*LOADERS, or_import_path=True)] = "jpeg"
    """Name of a built-in loader, or an import path, called as ``loader(shard, **loader_args)``; see
    :class:`dpeval.data.loading.loaders.Loader`."""
    loader_args: dict[str, Any] = field(default_factory=dict[str, Any], hash=False)
    """Keyword arguments of a loader named by its import path."""
    augment: Annotated[str, OneOf("random_resized_crop", "none")] = "random_resized_crop"
    """True: random crops and mirroring; false: the center square of every image."""
    workers: NonNegativeInt | None = None
    """Worker processes per rank that prefetch batches; on CPU each needs a core of its own. null:
    none on CPU, and on a GPU one for each of the rank's cores that launches no kernels."""
    delay_s: NonNegativeFloat = 0.0
    """How long a rank waits for each batch, in seconds (calibrated only)."""


@dataclass(frozen=True)
class ScalingConfig:
    """What `batch` means as devices are added."""

    kind: Annotated[str, OneOf("strong", "weak")] = "strong"
    """strong: `batch` is the global batch; weak: `batch` is the per-device batch."""


SERIAL = "none"
"""Name of the strategy without a wrapper, for one device."""


@dataclass(frozen=True)
class StrategyConfig:
    """How ranks synchronise their gradients."""

    name: str = "ddp"
    """Name of the strategy, as records and figures show it."""
    _target_: str = "dpeval.components.ddp"
    """Importable callable that wraps the model and returns a ``dpeval.components.WrappedModel``;
    called as ``target(model, config, device, clock, **args)``."""
    args: dict[str, Any] = field(default_factory=dict[str, Any], hash=False)
    """Keyword arguments of the callable."""
    bucket_cap_mb: PositiveFloat = 25.0
    """Size of a gradient bucket in MiB (ddp only)."""
    broadcast_buffers: bool = True
    """Broadcast rank 0's buffers (BatchNorm statistics) in every forward pass (ddp only)."""
    gradient_as_bucket_view: bool = False
    """Make gradients views of the buckets, which saves one copy of them (ddp only)."""
    static_graph: bool = False
    """Declare that every step uses the same parameters in the same order (ddp only)."""
    find_unused_parameters: bool = False
    """In every step, search for parameters that the loss does not depend on (ddp only)."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Any class of ``torch.optim`` by name, with its keyword arguments."""

    name: str = "SGD"
    """Name of a class in ``torch.optim``, or the import path of an optimizer class."""
    args: dict[str, Any] = field(default_factory=dict[str, Any])
    """Keyword arguments of the class."""


@dataclass(frozen=True)
class MeasureConfig:
    """How long to measure, and to what precision."""

    name: str = "standard"
    """Name of the preset."""
    rel_precision: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Stop once the 95 % interval of the mean step time is at most ± this fraction of it."""
    until: Annotated[str, OneOf("ratios", "best", "means")] = "ratios"
    """What must be known to `rel_precision` when runs take turns (``sweep.order=interleaved``):
    each speedup over the run on the fewest devices; which run is the fastest, or that others are
    within `rel_precision` of it; or each mean step time. Sequential runs are always measured until
    their mean step time is known."""
    min_warmup_steps: PositiveInt = 5
    """Minimum number of steps before the main window."""
    min_steps: Annotated[int, Field(ge=2)] = 30
    """Minimum number of steps in the main window, unless a limit ends it earlier."""
    max_steps: Annotated[int, Field(ge=2, le=100_000)] = 2_000
    """Maximum number of steps in warm-up and main window together."""
    time_limit_s: Annotated[float, Field(ge=1)] = 120.0
    """Maximum wall time of warm-up and main window together, in seconds. It starts when the first
    step has finished, so compiling and autotuning do not count."""
    ablation: bool = True
    """Also measure without gradient synchronisation and with one rank alone."""
    ablation_share: Annotated[float, Field(gt=0, le=2)] = 0.5
    """Duration of the ablation windows, as a fraction of the main window's."""
    conditions: bool = True
    """Sample clocks, temperatures and other load while the ranks run."""

    @property
    def steps_for_a_mean(self) -> int:
        """The minimum number of steps for a mean with an interval."""
        return self.min_warmup_steps + 2

    @property
    def longest_s(self) -> float:
        """The longest that all windows of a run can take together, in seconds."""
        return self.time_limit_s * (1 + self.ablation_share * self.ablation)


@dataclass(frozen=True)
class MemoryConfig:
    """What to do with a run that is forecast to exceed its memory budget."""

    on_excess: Annotated[str, OneOf("skip", "accumulate", "try", "error")] = "skip"
    """Skip the run, split its batch into micro-batches, run it anyway, or stop."""


@dataclass(frozen=True)
class SweepConfig:
    """The order of a sweep's runs, and how the sweep uses the results of earlier ones."""

    order: Annotated[str, OneOf("auto", "interleaved", "sequential")] = "auto"
    """interleaved: all runs stay alive on the machine and take turns of a few steps, so that drift
    of the machine affects them alike. sequential: one run after another. auto: interleaved in local
    sweeps, unless they measure scripts, whose memory needs are unknown, and in scheduler jobs that
    hold several runs (``hydra.launcher.pack``)."""

    resume: str | None = None
    """Folder of a sweep to resume: run only the configurations that have no result there yet."""
    skip_done: bool = False
    """Leave out runs that any earlier sweep of the study has measured."""
    time_limit_s: PositiveFloat | None = None
    """Refuse a sweep whose runs could take longer than this in total, in seconds; null: no
    limit."""


@dataclass(frozen=True)
class Config:
    """One composed run. Field names are the keys that a user sets."""

    __pydantic_config__ = BOUNDS_CONFIG

    task: TaskConfig = field(default_factory=TaskConfig)
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
    num_devices: PositiveInt = 1
    """World size: number of ranks, one per device."""
    num_nodes: PositiveInt = 1
    """Number of machines; each runs an equal block of ranks."""
    batch: PositiveInt = 32
    """Samples per step (images, sequences, …): the global batch under strong scaling, the
    per-device batch under weak."""
    precision: Annotated[str, OneOf("fp32", "tf32", "bf16", "fp16")] = "fp32"
    """Number format of the forward and backward pass; bf16 and fp16 use autocast."""
    memory_format: Annotated[str, OneOf("auto", "channels_last", "contiguous")] = "auto"
    """Memory layout of images and convolution weights. ``auto`` selects ``contiguous`` for fp32 on
    GPUs and ``channels_last`` everywhere else; the record holds the layout selected."""
    compile: bool = False
    """Compile the model with ``torch.compile``."""
    deterministic: bool = False
    """Use deterministic algorithms only."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Seed of the weights, of the order of images and of their crops."""
    repeat: Annotated[int, Field(ge=1, le=1_000)] = 1
    """Number of repetitions of each configuration in a sweep, in new processes and interleaved."""
    baseline: Annotated[str, OneOf("same", "serial")] = "same"
    """The one-device run that speedup is relative to. same: the run with ``num_devices=1`` and the
    same strategy, if the sweep has one. serial: a run without a wrapper (``strategy=none``), added
    to the sweep if it has none."""
    repetition: NonNegativeInt = 0
    """Index of this run among its repetitions; set by the sweep."""
    analyze: bool = True
    """Analyse the sweep and draw its figures at its end."""
    run_spread: Annotated[float | None, Field(gt=0, lt=1)] = None
    """Standard deviation between runs of one configuration on this machine, over the mean, that the
    analysis allows for where repetitions do not show one. null: 0.02."""

    def __post_init__(self) -> None:
        # Resolved here, so that no run, forecast or identity ever sees `auto`.
        if self.memory_format == "auto":
            resolved = default_memory_format(self.hardware.kind, self.precision)
            if self.task.kind != CLASSIFICATION:
                resolved = "contiguous"  # other layouts apply to images only
            object.__setattr__(self, "memory_format", resolved)
        for key, value in _left_to_the_user(self.task).items():
            object.__setattr__(self, key, value)


def _left_to_the_user(task: TaskConfig) -> dict[str, Any]:
    """The groups that a script or a function decides itself, without their defaults."""
    if not task.has_own_data:
        return {}
    own = {
        "model": ModelConfig(name=task.name, _target_=""),
        "dataset": DatasetConfig(name="", _target_=""),
    }
    if task.kind == CALLABLE:
        return own
    return {
        **own,
        "strategy": StrategyConfig(name="", _target_=""),
        "optimizer": OptimizerConfig(name=""),
    }


def default_memory_format(hardware: str, precision: str) -> str:
    """The layout in which convolutions are usually faster.

    Tensor cores and oneDNN (on CPUs) compute in channels_last; cuDNN's fp32 kernels expect
    contiguous tensors (NVIDIA, "Deep Learning Performance: Convolutional Layers").

    Args:
        hardware: kind of the devices.
        precision: number format; on GPUs, all but fp32 use tensor cores.
    """
    return "contiguous" if hardware == "gpu" and precision == "fp32" else "channels_last"


def split_evenly(images: int, devices: int) -> list[int]:
    """Split `images` into one share per device, as evenly as possible, larger shares first.

    >>> split_evenly(16, 3)
    [6, 5, 5]
    """
    share, rest = divmod(images, devices)
    return [share + (rank < rest) for rank in range(devices)]


def global_batch_of(scaling: str, batch: int, devices: int) -> int:
    """The global batch, in images per step.

    Args:
        scaling: under ``strong``, `batch` is the global batch; under ``weak``, the per-device
            batch.
        batch: the user's ``batch``, in images per step.
        devices: the world size.
    """
    return batch * devices if scaling == "weak" else batch


def per_device_batches_of(config: Config) -> list[int]:
    """Each rank's images per step, in rank order; they add up to the global batch."""
    devices = config.num_devices
    return split_evenly(global_batch_of(config.scaling.kind, config.batch, devices), devices)
