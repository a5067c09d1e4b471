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
from torch import Tensor
from torch.nn import functional

from dpeval.data.images.augment import Draws, place, scaled_box
from dpeval.errors import DataError

Pixels = NDArray[np.uint8]
"""[height, width, 3]"""
Box = NDArray[np.int64]
"""(top, left, height, width) in pixels."""
BLOCK_ROWS = 8
SEQUENTIAL_FRAMES = (0xC0, 0xC1)
START_OF_SCAN = 0xDA
END_OF_IMAGE = b"\xff\xd9"
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


def read_batch(paths: Sequence[Path], draws: Draws, augment: str, out: Tensor) -> None:
    """Read one augmented crop of every file into `out`, uint8 [b, px, px, 3].

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


def decode(file: Encoded, box: Box, flip: bool, out: Tensor) -> None:
    """Decode `box` of the image and resize it into the square `out`, uint8 [px, px, 3].

    Raises:
        DataError: naming the file, where it is damaged or too large to be true.
    """
    with _naming(file.path):
        decoded = _scaled_jpeg(file, box, len(out)) if file.is_jpeg else None
        image, height = decoded or (_with_pil(file), file.height)
    in_image = scaled_box(box.tolist(), (height, file.width), image.shape[:2])
    resize(torch.from_numpy(image), in_image, flip, out)


def _scaled_jpeg(file: Encoded, box: Box, px: int) -> tuple[Pixels, int] | None:
    """The upper part of the image, down to below `box`, at the smallest scale at which `box` has
    `px` pixels; how many rows of the whole image that is. None: PIL has to try."""
    shrink = px / min(box[2], box[3])
    data, height = without_bottom(file.data, file.height, int(box[0] + box[2]))
    try:
        # Halves, quarters and eighths alone: libjpeg-turbo has no SIMD code for scales between.
        # The fast options blur colour edges a little and save 5 % (224 px) to 12 % (128 px).
        image: Pixels = simplejpeg.decode_jpeg(
            data,
            fastdct=True,
            fastupsample=True,
            min_height=math.ceil(height * shrink),
            min_width=math.ceil(file.width * shrink),
            min_factor=2,
            # Data are left over where the bottom is not wanted, which is an error otherwise.
            strict=height == file.height,
        )
    except ValueError:
        # Some blemishes (bytes too many between markers) are harmless, and PIL reads past them.
        return None
    return image, height


def without_bottom(data: bytes, height: int, needed: int) -> tuple[bytes, int]:
    """A JPEG that ends soon below row `needed`, and its height.

    Decoding time is spent row by row from the top, and rows below the crop are for nothing. The
    height in the frame header is lowered, and the decoder stops there. Only for sequential,
    interleaved files (ITU-T T.81, B.2) that end as they should; others stay as they are.
    """
    if needed >= height or not data.endswith(END_OF_IMAGE):
        return data, height
    at, frame = 2, 0
    while at + 10 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in SEQUENTIAL_FRAMES:
            frame = at
        elif marker == START_OF_SCAN:
            if not frame or data[at + 4] != data[frame + 9]:
                return data, height
            kept = _rows_down_to(needed, data[frame + 11 : at : 3][: data[frame + 9]])
            if kept >= height:
                return data, height
            lowered = kept.to_bytes(2, "big")
            return b"".join((data[: frame + 5], lowered, data[frame + 7 :])), kept
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data, height


def _rows_down_to(needed: int, sampling: bytes) -> int:
    """Whole groups of rows, as they are coded together, that go beyond `needed` rows.

    Args:
        sampling: the sampling factors of every component, the vertical one in the low half.
    """
    group = BLOCK_ROWS * max(factors & 15 for factors in sampling)
    return (needed // group + 1) * group


def _with_pil(file: Encoded) -> Pixels:
    with warnings.catch_warnings():
        # Sizes that PIL only warns of are read; those that it refuses are an error here, too.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(file.data)) as image:
            return np.array(image.convert("RGB"))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        # PIL names the buffer that it was given, which tells the user nothing.
        reason = reason.split(" <_io")[0]
        raise DataError(f"{path} is not a readable image ({reason}); mend or remove it") from error


def resize(image: Tensor, box: Sequence[int], flip: bool, out: Tensor) -> None:
    """Resize `box` (top, left, height, width) of `image` into `out`, antialiased.

    The kernel is the one behind torchvision's Resize and RandomResizedCrop on uint8.

    Args:
        image: uint8 [height, width, 3], contiguous.
        flip: mirror it.
        out: uint8 [px, px, 3].
    """
    top, left, height, width = box
    px = out.shape[0]
    row = image.stride(0)
    begin = image.storage_offset() + top * row + left * 3
    crop = image.as_strided((1, 3, height, width), (0, 1, row, 3), begin)
    # Pixels in a row, channels last, are what the kernel's vector code wants; flip() copies so.
    crop = crop.flip(3) if flip else crop.contiguous(memory_format=torch.channels_last)
    if height != px or width != px:
        crop = functional.interpolate(crop, size=(px, px), mode="bilinear", antialias=True)
    out.copy_(crop[0].permute(1, 2, 0))
