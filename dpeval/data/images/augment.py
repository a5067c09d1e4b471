"""Chooses crops and flips from image sizes, in the same way for every loader."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Draws = NDArray[np.float64]
Boxes = NDArray[np.int64]
"""Rows of (top, left, height, width) in pixels, [b, 4]."""
Flips = NDArray[np.bool_]

AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
"""Defaults of torchvision's RandomResizedCrop (Szegedy et al. 2015, "Going deeper with
convolutions", section 6)."""
TRIES = 10
"""Number of tries, as in torchvision's ``RandomResizedCrop.get_params``."""
DRAWS = 2 * TRIES + 3
"""Random numbers per image: areas and ratios of all tries, position of the crop (2), flip."""
MIDDLE = 224 / 256
"""Under ``augment=none``, side of the center square relative to the shorter side, as usual for
validation (resize the shorter side to 256, crop the center 224)."""


def place(heights: ArrayLike, widths: ArrayLike, draws: Draws, augment: str) -> tuple[Boxes, Flips]:
    """Crops and flips of a batch.

    Args:
        heights: of the original images, in pixels, [b].
        widths: of the original images, in pixels, [b].
        draws: uniform in [0, 1), [b, DRAWS].
        augment: ``dataset.augment``.
    """
    high, wide = np.asarray(heights, np.int64), np.asarray(widths, np.int64)
    if augment == "none":
        return middle_square(high, wide), np.zeros(len(high), bool)
    return random_resized_crop(high, wide, draws), draws[:, -1] < 0.5


def middle_square(heights: NDArray[np.int64], widths: NDArray[np.int64]) -> Boxes:
    """The center square, whose side is :data:`MIDDLE` of the shorter side."""
    side = np.maximum(1, np.rint(np.minimum(heights, widths) * MIDDLE)).astype(np.int64)
    return np.stack([(heights - side) // 2, (widths - side) // 2, side, side], axis=1)


def random_resized_crop(
    heights: NDArray[np.int64], widths: NDArray[np.int64], draws: Draws
) -> Boxes:
    """Boxes of random area and aspect ratio, as in torchvision's ``RandomResizedCrop.get_params``.

    Ten times, draws an area (uniform in :data:`AREA`) and a ratio (log-uniform in :data:`RATIO`),
    and takes the first box that fits, or else the largest centered box with a valid ratio.

    Args:
        heights: of the original images, in pixels, [b].
        widths: of the original images, in pixels, [b].
        draws: uniform in [0, 1), [b, DRAWS].
    """
    area = (heights * widths)[:, None] * (AREA[0] + (AREA[1] - AREA[0]) * draws[:, :TRIES])
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    ratio = np.exp(low + (high - low) * draws[:, TRIES : 2 * TRIES])
    wide = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    tall = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (wide > 0) & (wide <= widths[:, None]) & (tall > 0) & (tall <= heights[:, None])
    rows, first = np.arange(len(heights)), fits.argmax(axis=1)
    found = fits[rows, first]
    largest_tall, largest_wide = _largest(heights, widths)
    tall = np.where(found, tall[rows, first], largest_tall)
    wide = np.where(found, wide[rows, first], largest_wide)
    down, across = draws[:, 2 * TRIES], draws[:, 2 * TRIES + 1]
    top = np.where(found, (down * (heights - tall + 1)).astype(np.int64), (heights - tall) // 2)
    left = np.where(found, (across * (widths - wide + 1)).astype(np.int64), (widths - wide) // 2)
    return np.stack([top, left, tall, wide], axis=1)


def _largest(
    heights: NDArray[np.int64], widths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Heights and widths of the largest boxes with a valid aspect ratio."""
    aspect = widths / heights
    tall = np.where(aspect < RATIO[0], np.rint(widths / RATIO[0]), heights)
    wide = np.where(aspect > RATIO[1], np.rint(heights * RATIO[1]), widths)
    return np.maximum(tall, 1).astype(np.int64), np.maximum(wide, 1).astype(np.int64)


def scaled(
    boxes: Boxes, heights: ArrayLike, widths: ArrayLike, to_heights: ArrayLike, to_widths: ArrayLike
) -> Boxes:
    """Scale boxes to the same images at another size.

    Edges are rounded to whole pixels; a box keeps at least one pixel.

    Args:
        boxes: in pixels of the original images, [b, 4].
        heights: of the original images, in pixels, [b].
        widths: of the original images, in pixels, [b].
        to_heights: of the scaled images, in pixels, [b].
        to_widths: of the scaled images, in pixels, [b].
    """
    high, wide = np.asarray(heights), np.asarray(widths)
    new_high, new_wide = np.asarray(to_heights), np.asarray(to_widths)
    top = np.rint(boxes[:, 0] * new_high / high).astype(np.int64)
    left = np.rint(boxes[:, 1] * new_wide / wide).astype(np.int64)
    bottom = np.rint((boxes[:, 0] + boxes[:, 2]) * new_high / high).astype(np.int64)
    right = np.rint((boxes[:, 1] + boxes[:, 3]) * new_wide / wide).astype(np.int64)
    top, left = np.minimum(top, new_high - 1), np.minimum(left, new_wide - 1)
    return np.stack([top, left, np.maximum(bottom - top, 1), np.maximum(right - left, 1)], axis=1)


def scaled_box(box: Sequence[int], size: tuple[int, int], new_size: tuple[int, int]) -> list[int]:
    """:func:`scaled` for one box, in plain Python, which is faster than arrays for one.

    Args:
        box: (top, left, height, width) in pixels of the original image.
        size: (height, width) of the original image.
        new_size: (height, width) of the scaled image.
    """
    down, across = new_size[0] / size[0], new_size[1] / size[1]
    top, left, height, width = box
    new_top, new_left = round(top * down), round(left * across)
    bottom, right = round((top + height) * down), round((left + width) * across)
    new_top, new_left = min(new_top, new_size[0] - 1), min(new_left, new_size[1] - 1)
    return [new_top, new_left, max(bottom - new_top, 1), max(right - new_left, 1)]
