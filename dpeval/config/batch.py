"""How a global batch is shared by ranks."""

from __future__ import annotations


def deal(images: int, devices: int) -> list[int]:
    """Deal `images` out to `devices` as evenly as possible, the larger shares first.

    >>> deal(16, 3)
    [6, 5, 5]
    """
    share, rest = divmod(images, devices)
    return [share + (rank < rest) for rank in range(devices)]
