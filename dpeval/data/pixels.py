"""From uint8 pixels to what a model takes: cropping in batches and normalising, on any device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Per channel, of ImageNet, for pixels in [0, 1] (torchvision's reference training)."""
CHUNK_PIXELS = 16_384
"""Pixels normalised at a time on CPU: 192 KiB of float32, so the second pass over them meets the
first one's results in the core's own cache (70 instead of 300 µs per image of 224 px)."""


class Normaliser:
    """Values in [0, 255], [b, px, px, 3], to normalised float32 [b, 3, px, px] on one device.

    On CPU the result lies in one buffer that the next call overwrites: touching fresh memory in
    every step costs more than the arithmetic. A step is over before the next one begins.
    """

    def __init__(self, device: torch.device, *, channels_last: bool) -> None:
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        scale = 1 / (255 * torch.tensor(STD))
        shift = -torch.tensor(MEAN) / torch.tensor(STD)
        self._scale = scale.view(1, 3, 1, 1).to(device)
        self._shift = shift.view(1, 3, 1, 1).to(device)
        self._row_scale, self._row_shift = scale.repeat(CHUNK_PIXELS), shift.repeat(CHUNK_PIXELS)
        self._is_cpu = device.type == "cpu"
        self._buffer = torch.empty(0)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalise a batch of pixels that lies on the device."""
        if self._is_cpu:
            images = self._in_chunks(pixels).permute(0, 3, 1, 2)
        else:
            images = torch.addcmul(self._shift, pixels.permute(0, 3, 1, 2).float(), self._scale)
        return images.contiguous(memory_format=self._layout)

    def _in_chunks(self, pixels: Tensor) -> Tensor:
        if self._buffer.shape != pixels.shape:
            self._buffer = torch.empty(pixels.shape)
        values, out = pixels.view(-1), self._buffer.view(-1)
        for part, part_out in zip(
            values.split(3 * CHUNK_PIXELS), out.split(3 * CHUNK_PIXELS), strict=True
        ):
            part_out.copy_(part)
            count = len(part)
            torch.addcmul(self._row_shift[:count], part_out, self._row_scale[:count], out=part_out)
        return self._buffer


def crop_batch(squares: Tensor, where: Tensor, px: int) -> Tensor:
    """Crop, resize and mirror a whole batch on its device, bilinearly.

    Args:
        squares: uint8 [b, side, side, 3].
        where: (top, left, height, width) in pixels of the squares, and whether to mirror; int64
            [b, 5].

    Returns:
        Values in [0, 255], float32 [b, px, px, 3].
    """
    side = squares.shape[1]
    top, left, height, width, flips = where.float().unbind(1)
    place = (torch.arange(px, device=squares.device) + 0.5) / px
    across = torch.where(flips[:, None] > 0, 1 - place, place)
    # Pixel centres, held inside the box: nothing of the image beyond the crop shows in it.
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
    return images.permute(0, 2, 3, 1)


def _inside(begin: Tensor, length: Tensor, place: Tensor) -> Tensor:
    centre = begin[:, None] + place * length[:, None] - 0.5
    last = (begin + length - 1)[:, None]
    return torch.minimum(torch.maximum(centre, begin[:, None]), last)
