"""From a file to pixels, decoding no more than the crop needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dpeval.errors import DataError

Pixels = NDArray[np.uint8]
CROP_AREA = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
"""As torchvision's RandomResizedCrop and Szegedy et al. 2015 ("Going deeper with convolutions")."""
CROP_TRIES = 10


@dataclass(frozen=True)
class Crop:
    """A box in an image's own pixels, and whether the result is mirrored."""

    left: float
    top: float
    width: float
    height: float
    flip: bool = False


def random_crop(width: int, height: int, generator: np.random.Generator) -> Crop:
    """A random part of the image of random area and ratio, mirrored half of the time."""
    flip = bool(generator.random() < 0.5)
    for _ in range(CROP_TRIES):
        area = width * height * generator.uniform(*CROP_AREA)
        ratio = math.exp(generator.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(generator.integers(0, width - box_width + 1))
            top = int(generator.integers(0, height - box_height + 1))
            return Crop(left, top, box_width, box_height, flip)
    return Crop(*centre_box(width, height), flip)


def centre_crop(width: int, height: int) -> Crop:
    """The largest square in the middle."""
    return Crop(*centre_box(width, height))


def centre_box(width: int, height: int) -> tuple[float, float, float, float]:
    """Left, top, width, height of the largest square in the middle."""
    side = min(width, height)
    return (width - side) / 2, (height - side) / 2, side, side


def read_image(path: Path, px: int, generator: np.random.Generator | None) -> Pixels:
    """Read one crop of an image file as uint8, shape [px, px, 3].

    The crop is chosen before anything is decoded, so that the JPEG decoder can scale while it
    decodes (libjpeg's DCT scaling) and the rest of the image is never resized. Without a
    `generator` the crop is the middle square.

    Raises:
        DataError: naming the file, where it is no readable image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            crop = (
                random_crop(width, height, generator)
                if generator is not None
                else centre_crop(width, height)
            )
            scale = px / min(crop.width, crop.height)
            image.draft("RGB", (math.ceil(width * scale), math.ceil(height * scale)))
            x, y = image.size[0] / width, image.size[1] / height
            box = (
                crop.left * x,
                crop.top * y,
                (crop.left + crop.width) * x,
                (crop.top + crop.height) * y,
            )
            small = image.convert("RGB").resize((px, px), Image.Resampling.BILINEAR, box=box)
    except (
        OSError,
        UnidentifiedImageError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:
        raise DataError(f"{path} is not a readable image ({error}); mend or remove it") from error
    pixels = np.asarray(small)
    return pixels[:, ::-1] if crop.flip else pixels
