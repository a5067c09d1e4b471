"""What ``batch`` means on several devices: the global batch and every rank's share of it."""

from __future__ import annotations

from dpeval.config.schema import Config


def split_evenly(images: int, devices: int) -> list[int]:
    """Deal `images` out to `devices` as evenly as possible, the larger shares first.

    >>> split_evenly(16, 3)
    [6, 5, 5]
    """
    share, rest = divmod(images, devices)
    return [share + (rank < rest) for rank in range(devices)]


def global_batch_of(scaling: str, batch: int, devices: int) -> int:
    """Images per step of all ranks.

    Args:
        scaling: ``strong``: `batch` is the global batch; ``weak``: it is that of each device.
        batch: the user's ``batch``, images per step.
        devices: the world size.
    """
    return batch * devices if scaling == "weak" else batch


def per_device_batches_of(config: Config) -> list[int]:
    """Images per step of every rank, by rank; they add up to the global batch."""
    devices = config.num_devices
    return split_evenly(global_batch_of(config.scaling.kind, config.batch, devices), devices)
