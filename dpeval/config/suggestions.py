"""Suggests the nearest valid key or value: first by meaning, then by spelling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from dpeval.errors import nearest

VALUE_MEANINGS: dict[str, tuple[str, ...]] = {
    # hardware
    "gpu": ("cuda", "gpus", "nvidia", "a100", "h100", "v100", "rocm", "hip", "amd", "mi300x"),
    "cpu": ("cpus", "core", "cores"),
    # precision
    "fp32": ("float32", "float", "single", "32"),
    "tf32": ("tensorfloat32", "tensorfloat"),
    "bf16": ("bfloat16", "bfloat", "bf16-mixed"),
    "fp16": ("float16", "half", "amp", "mixed", "16", "16-mixed"),
    # memory_format
    "channels_last": ("nhwc",),
    "contiguous": ("nchw", "channels_first", "contiguous_format"),
    # strategy
    "ddp": ("distributed_data_parallel", "distributeddataparallel", "dp", "data_parallel"),
    "none": ("off", "no", "false", "single_device"),
    # hydra/launcher
    "slurm": ("sbatch", "srun", "submitit"),
    "oar": ("oarsub",),
    "local": ("basic", "joblib", "localhost"),
    # measure
    "quick": ("fast", "short"),
    "standard": ("default", "normal"),
    "rigorous": ("precise", "accurate", "long", "slow"),
    # scaling
    "strong": ("fixed", "global"),
    "weak": ("per_device", "per_gpu", "local"),
    # memory.on_excess, dataset.on_missing
    "accumulate": ("gradient_accumulation", "micro_batch"),
    "try": ("ignore", "warn", "force"),
    "error": ("raise", "fail", "abort", "stop"),
    "generate": ("synthetic", "fake"),
    # dataset.loader
    "cached": ("memory", "ram", "memmap"),
    "jpeg": ("disk", "files", "jpg"),
    "resident": ("device", "gpu", "cuda"),
    "constant": ("synthetic", "fake", "dummy", "random"),
}
"""Other names for a value, as other tools and people use them."""

KEY_MEANINGS: dict[str, tuple[str, ...]] = {
    "num_devices": ("devices", "gpus", "num_gpus", "cpus", "cores", "ranks", "world_size"),
    "num_nodes": ("nodes", "nnodes"),
    "batch": ("batch_size", "bs", "global_batch", "global_batch_size", "per_device_batch_size"),
    "precision": ("dtype", "amp"),
    "optimizer.args.lr": ("lr", "learning_rate"),
    "dataset.image_px": ("image_size", "img_size", "resolution"),
    "dataset.root": ("data_dir", "data_root"),
    "dataset.workers": ("num_workers",),
    "site.options": ("additional_parameters",),
    "repeat": ("repeats", "repetitions", "runs"),
    "hydra.launcher.dry_run": ("dry_run", "dryrun"),
}
"""Names that other tools use for a key."""


UNSUPPORTED_GPUS = {
    "mps": "MPS", "metal": "MPS", "apple": "MPS", "xpu": "XPU", "intel": "XPU",
}  # fmt: skip
"""GPU backends that torch supports and dpeval does not, by the names that people use."""


def suggest_value(value: str, choices: Iterable[str]) -> str:
    """``"; did you mean 'gpu'?"`` with the choice nearest to `value`, or ``""``.

    For an unsupported GPU backend, the reason instead.
    """
    known = list(choices)
    plain = value.lower()
    if "gpu" in known and plain in UNSUPPORTED_GPUS:
        return (
            f"; dpeval times GPUs with CUDA events, so {UNSUPPORTED_GPUS[plain]} is not "
            "supported: use cpu"
        )
    for choice in known:
        if plain == choice.lower() or plain in VALUE_MEANINGS.get(choice, ()):
            return _did_you_mean(choice)
    return nearest(plain, known)


def suggest_key(key: str, siblings: Sequence[str], everywhere: Sequence[str]) -> str:
    """``"; did you mean 'site.partition'?"`` with the key nearest to `key`.

    If none is near, lists the keys of its group; ``""`` for a group without keys.

    Args:
        key: the dotted key that the user wrote.
        siblings: names of the keys in its group, without the group.
        everywhere: every dotted key, in case the name is right and the group is wrong.
    """
    group, _, name = key.rpartition(".")
    prefix = f"{group}." if group else ""
    for sibling in get_close_matches(name, siblings, n=1, cutoff=0.75):
        return _did_you_mean(prefix + sibling)
    for known, meanings in KEY_MEANINGS.items():
        if name in meanings:
            return _did_you_mean(known)
    for known in everywhere:
        if known.rpartition(".")[2] == name:
            return _did_you_mean(known)
    for sibling in get_close_matches(name, siblings, n=1, cutoff=0.55):
        return _did_you_mean(prefix + sibling)
    groups = [".".join(key.split(".")[:depth]) for depth in range(1, key.count(".") + 1)]
    elsewhere = [known for known in everywhere if known not in groups]
    for known in get_close_matches(key, elsewhere, n=1, cutoff=0.8):
        return _did_you_mean(known)
    listed = ", ".join(sorted(sibling for sibling in siblings if sibling != "hydra"))
    return f"; {f'keys of {group}' if group else 'keys'}: {listed}" if listed else ""


def _did_you_mean(choice: str) -> str:
    return f"; did you mean '{choice}'?"
