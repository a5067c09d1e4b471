"""Turns uint8 pixels into model input on any device: batched cropping and normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dpeval.util.display.units import MIB

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's per-channel statistics for pixels in [0, 1] (torchvision's reference training)."""
PART_BYTES = MIB
"""Bytes of float32 that are normalised at a time on CPU, so that the second pass finds the results
of the first in the core's cache. Smaller chunks need more calls (25 % more time at 256 KiB)."""


class Normaliser:
    """Converts values in [0, 255], [b, px, px, 3], to normalised float32 [b, 3, px, px].

    On CPU the next call overwrites the result: touching new memory in every step would cost more
    than the arithmetic, and a step ends before the next one starts.
    """

    def __init__(self, device: torch.device, *, channels_last: bool) -> None:
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._scale = (1 / (255 * torch.tensor(STD))).to(device)
        self._shift = (-torch.tensor(MEAN) / torch.tensor(STD)).to(device)
        self._is_cpu = device.type == "cpu"
        self._buffer = torch.empty(0)
        self._row_scale, self._row_shift = self._scale, self._shift
        self._parts: Sequence[Tensor] = ()

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalise a batch that lies on the device, contiguous."""
        if self._is_cpu:
            images = self._in_parts(pixels)
        else:
            images = torch.addcmul(self._shift, pixels.float(), self._scale)
        return images.permute(0, 3, 1, 2).contiguous(memory_format=self._layout)

    def _in_parts(self, pixels: Tensor) -> Tensor:
        count, px = pixels.shape[:2]
        parts = -(-12 * count * px * px // PART_BYTES)
        if self._buffer.shape != pixels.shape:
            self._buffer = torch.empty(pixels.shape)
            # Operate on rows of pixels: three channels are too few for the vector units.
            self._row_scale, self._row_shift = self._scale.repeat(px), self._shift.repeat(px)
            self._parts = self._buffer.view(count * px, 3 * px).tensor_split(parts)
        values = pixels.view(count * px, 3 * px).tensor_split(parts)
        for part, out in zip(values, self._parts, strict=True):
            out.copy_(part)
            torch.addcmul(self._row_shift, out, self._row_scale, out=out)
        return self._buffer


def crop_batch(squares: Tensor, where: Tensor, px: int) -> Tensor:
    """Crop, resize and mirror a whole batch on its device, bilinearly.

    Args:
        squares: uint8 [b, side, side, 3].
        where: (top, left, height, width) in pixels of the squares, and the flip; int64 [b, 5].
        px: side of the crops, in pixels.

    Returns:
        Values in [0, 255], float32 [b, px, px, 3].
    """
    side = squares.shape[1]
    top, left, height, width, flips = where.float().unbind(1)
    place = (torch.arange(px, device=squares.device) + 0.5) / px
    across = torch.where(flips[:, None] > 0, 1 - place, place)
    # Pixel centres are clamped to the box, so that pixels outside the crop have no influence.
    rows = _inside(top, height, place.expand(len(squares), px))
    columns = _inside(left, width, across)
    grid = torch.stack(
        [
            ((2 * columns + 1) / side - 1)[:, None, :].expand(-1, px, -1),
            ((2 * rows + 1) / side - 1)[:, :, None].expand(-1, -1, px),
        ],
        dim=3,
    )
    images = functional.grid_sample(
        squares.permute(0, 3, 1, 2).float(), grid, padding_mode="border", align_corners=False
    )
    return images.permute(0, 2, 3, 1).contiguous()


def _inside(begin: Tensor, length: Tensor, place: Tensor) -> Tensor:
    centre = begin[:, None] + place * length[:, None] - 0.5
    last = (begin + length - 1)[:, None]
    return torch.minimum(torch.maximum(centre, begin[:, None]), last)
