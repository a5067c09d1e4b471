"""Precision and determinism of arithmetic in this process."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from dpeval.devices.base import Device

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def set_numerics(precision: str, *, deterministic: bool) -> None:
    """Enable TF32 and determinism in this process only if requested."""
    tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        # cuBLAS is deterministic only with this variable (PyTorch, "Reproducibility").
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def autocast(device: Device, precision: str) -> AbstractContextManager[Any]:
    """Mixed precision for the forward pass; does nothing for fp32 and tf32."""
    dtype = AUTOCAST_DTYPES.get(precision)
    # Entering torch.autocast costs every step 20 µs even when disabled.
    return torch.autocast(device.torch_device.type, dtype=dtype) if dtype else nullcontext()


def grad_scaler(device: Device, precision: str) -> torch.amp.GradScaler:
    """The gradient scaler that fp16 needs; a pass-through for every other precision."""
    return torch.amp.GradScaler(device.torch_device.type, enabled=precision == "fp16")
