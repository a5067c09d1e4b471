"""From files to pixels, decoding no more than the crops need."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from dpeval.data.augment import Draws, place, scaled
from dpeval.errors import DataError

Pixels = NDArray[np.uint8]
"""[height, width, 3]"""
Box = NDArray[np.int64]
"""(top, left, height, width) in pixels."""
RGB_FROM = ("RGB", "YCbCr", "Gray")
"""JPEG colour spaces that libjpeg-turbo turns into RGB as everyone expects; CMYK is not one."""


@dataclass(frozen=True)
class Encoded:
    """A file that is read, of which only the header has been looked at."""

    path: Path
    data: bytes
    height: int
    width: int
    is_jpeg: bool
    """Whether the fast decoder takes it; PIL reads the rest."""


def read_batch(
    paths: Sequence[Path], px: int, draws: Draws, augment: str, out: NDArray[np.uint8]
) -> None:
    """Read one augmented crop of every file into `out`, shape [b, px, px, 3].

    Crops are chosen from the headers, before anything is decoded, so that the JPEG decoder can
    scale while it decodes (DCT scaling) and only the crop is resized.

    Args:
        draws: all chance in the augmentation, [b, DRAWS].

    Raises:
        DataError: naming the file that is no readable image.
    """
    files = [open_file(path) for path in paths]
    heights, widths = [file.height for file in files], [file.width for file in files]
    boxes, flips = place(heights, widths, draws, augment)
    for file, box, flip, place_out in zip(files, boxes, flips, out, strict=True):
        decode(file, box, bool(flip), place_out)


def open_file(path: Path) -> Encoded:
    """Read a file and its image's size.

    Raises:
        DataError: naming the file, where it is no image.
    """
    with _naming(path):
        data = path.read_bytes()
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            return Encoded(path, data, height, width, colours in RGB_FROM)
        except ValueError:
            with Image.open(io.BytesIO(data)) as image:
                return Encoded(path, data, image.height, image.width, False)


def decode(file: Encoded, box: Box, flip: bool, out: Pixels) -> None:
    """Decode `box` of the image and resize it into the square `out`, shape [px, px, 3].

    Raises:
        DataError: naming the file, where it is damaged or too large to be true.
    """
    with _naming(file.path):
        image = _scaled_jpeg(file, box, len(out)) if file.is_jpeg else None
        if image is None:
            image = _with_pil(file)
    sizes = [file.height], [file.width], image.shape[:1], image.shape[1:2]
    resize(image, scaled(box[None], *sizes)[0], flip, out)


def _scaled_jpeg(file: Encoded, box: Box, px: int) -> Pixels | None:
    """The image at the smallest scale at which `box` has `px` pixels; None: PIL has to try."""
    shrink = px / min(box[2], box[3])
    try:
        # Halves, quarters and eighths alone: libjpeg-turbo has no SIMD code for scales between.
        image: Pixels = simplejpeg.decode_jpeg(
            file.data,
            min_height=math.ceil(file.height * shrink),
            min_width=math.ceil(file.width * shrink),
            min_factor=2,
        )
    except ValueError:
        # Some blemishes (bytes too many between markers) are harmless, and PIL reads past them.
        return None
    return image


def _with_pil(file: Encoded) -> Pixels:
    with warnings.catch_warnings():
        # Sizes that PIL only warns of are read; those that it refuses are an error here, too.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(file.data)) as image:
            return np.asarray(image.convert("RGB"))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        # PIL names the buffer that it was given, which tells the user nothing.
        reason = reason.split(" <_io")[0]
        raise DataError(f"{path} is not a readable image ({reason}); mend or remove it") from error


def resize(image: Pixels, box: Box, flip: bool, out: Pixels) -> None:
    """Resize `box` of `image` into `out`, with antialiasing, mirrored where `flip` says.

    The kernel is the one behind torchvision's Resize and RandomResizedCrop on uint8.
    """
    top, left, height, width = box.tolist()
    px = len(out)
    crop = torch.from_numpy(image)[top : top + height, left : left + width].permute(2, 0, 1)[None]
    # Pixels in a row, channels last, are what the kernel's vector code wants; flip() copies so.
    crop = crop.flip(3) if flip else crop.contiguous(memory_format=torch.channels_last)
    if height != px or width != px:
        crop = functional.interpolate(crop, size=(px, px), mode="bilinear", antialias=True)
    torch.from_numpy(out).copy_(crop[0].permute(1, 2, 0))
