"""What ``batch`` means on several devices: the global batch and each rank's share of it."""

from __future__ import annotations

from dpeval.config.schema import Config


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
