"""Two ranks on one GPU: the same training as one rank's, and endings that are named rightly."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.gpu.checks import Check, near, not_measured, report, same
from benchmarks.gpu.runs import train
from benchmarks.gpu.setting import Setting
from dpeval.devices.cuda import cuda_gpus
from dpeval.record.schema import Record
from dpeval.system.gpu import libraries

SHARED = ("hardware.oversubscribe=true", "dataset=imagenette_like", "precision=fp32")
ENDINGS = {"oom": ("oom", "oom"), "kill": ("failed", "signal"), "stop": ("failed", "hang")}
"""How rank 1 ends, and the status and the cause's code that the record must have."""
NCCL_MANY_RANKS = (2, 30)
TINY = (
    "model._target_=torchvision.models.VisionTransformer",
    "~model.args.name",
    "+model.args.patch_size=16",
    "+model.args.num_layers=2",
    "+model.args.num_heads=2",
    "+model.args.hidden_dim=32",
    "+model.args.mlp_dim=64",
)
"""Overrides of a rehearsal: a small model of the same kind, without batch statistics."""


def run(setting: Setting) -> Iterator[Check]:
    """Losses at one and two ranks, then three failures, then the memory that is left."""
    free_before = _free_bytes(setting)
    px = 32 if setting.rehearse else 64
    steps = 12 if setting.rehearse else 30
    records = train(
        setting,
        "two_ranks",
        *SHARED,
        "num_devices=1,2",
        "batch=16",
        "model=vit_b_16",
        f"dataset.image_px={px}",
        "dataset.train_images=256",
        "measure=quick",
        f"measure.max_steps={steps}",
        "measure.rel_precision=1e-4",
        "measure.time_limit_s=120",
        *(TINY if setting.rehearse else ()),
        multirun=True,
    )
    yield same("status at 1 and 2 ranks", " ".join(r.status for r in records), "ok ok")
    one, two = records
    for name, share in (("start", 1e-3), ("end", 1e-2)):
        shared, alone = (getattr(record.loss, name, None) for record in (two, one))
        if shared is not None and alone is not None:
            yield near(f"loss at the {name}, 2 ranks", shared, alone, "", share=share)
    if two.plan is not None:
        yield same("backend of ranks that share a GPU", two.plan.backend, "gloo")
        if not setting.rehearse:  # two CPU ranks may have a core each
            yield same("marked as oversubscribed", str(two.plan.is_oversubscribed), "True")
    for (ending, (status, code)), record in zip(ENDINGS.items(), _ended(setting), strict=True):
        cause = record.cause.kind if record.cause is not None else "none"
        yield same(f"rank 1: {ending}", f"{record.status} {cause}", f"{status} {code}")
        yield report(f"run that ended by {ending}", record.wall_s, "s")
        rank = record.cause.rank if record.cause is not None else None
        yield same(f"rank that the record names: {ending}", str(rank), "1")
    if setting.rehearse:
        yield not_measured("memory left behind", "the CPU has none of its own")
    else:
        left = (free_before - _free_bytes(setting)) / 2**20
        yield near("GPU memory left behind", left, 0.0, "MiB", at_least=64)
        version = torch.cuda.nccl.version()
        if version < NCCL_MANY_RANKS:
            shown = ".".join(map(str, version))
            yield not_measured("NCCL with two ranks on one GPU", f"NCCL {shown} refuses it")


def _ended(setting: Setting) -> list[Record]:
    """One run for each of :data:`ENDINGS`."""
    return train(
        setting,
        "endings",
        *SHARED,
        "num_devices=2",
        "batch=16",
        "model=calibrated",
        "model.name=misbehaving",
        "model._target_=benchmarks.gpu.misbehaving.build",
        f"+model.args.ending={','.join(ENDINGS)}",
        "dataset.image_px=32",
        "dataset.train_images=256",
        "measure=quick",
        "measure.rel_precision=1e-4",
        "measure.max_steps=100000",
        "hardware.hang_timeout_s=15",
        multirun=True,
    )


def _free_bytes(setting: Setting) -> int:
    """Memory free on all GPUs, bytes; read without a CUDA context, which would show as a process.

    Raises:
        RuntimeError: no library can read it.
    """
    if setting.rehearse:
        return 0
    found = libraries.free_bytes([gpu.uuid for gpu in cuda_gpus()])
    if not found:
        raise RuntimeError("neither NVML nor AMD SMI reads the free memory of the GPUs")
    return sum(found)
