"""Decodes image files, and only as much of them as the crops need."""

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
WIDEST = 2**16 - 1
"""White level of 16-bit images."""
RGB_FROM = ("RGB", "YCbCr", "Gray")
"""JPEG colour spaces that libjpeg-turbo converts to RGB correctly; CMYK is not one of them."""


@dataclass(frozen=True)
class Encoded:
    """A file that has been read; only its header has been decoded."""

    path: Path
    data: bytes
    height: int
    width: int
    is_jpeg: bool
    """Whether the fast decoder can read it; PIL reads all others."""


def read_batch(paths: Sequence[Path], draws: Draws, augment: str, out: Tensor) -> None:
    """Read one augmented crop of every file into `out`, uint8 [b, px, px, 3].

    Crops are chosen from the headers, before anything is decoded, so that the JPEG decoder can
    scale while it decodes (DCT scaling) and only the crop is resized.

    Args:
        paths: the files.
        draws: uniform in [0, 1), [b, DRAWS]: the only randomness of the augmentation.
        augment: ``dataset.augment``.
        out: where the crops go.

    Raises:
        DataError: a file is not a readable image.
    """
    files = [open_file(path) for path in paths]
    heights, widths = [file.height for file in files], [file.width for file in files]
    boxes, flips = place(heights, widths, draws, augment)
    for file, box, flip, place_out in zip(files, boxes, flips, out, strict=True):
        decode(file, box, bool(flip), place_out)


def open_file(path: Path) -> Encoded:
    """Read a file and the size of its image.

    Raises:
        DataError: the file is not an image.
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
    """Decode a box of the image and resize it into `out`.

    Args:
        file: the image.
        box: (top, left, height, width), in pixels of the image.
        flip: whether to mirror it.
        out: uint8 [px, px, 3].

    Raises:
        DataError: the file is damaged, or implausibly large.
    """
    with _naming(file.path):
        decoded = _scaled_jpeg(file, box, len(out)) if file.is_jpeg else None
        image, height = decoded or (_with_pil(file), file.height)
    in_image = scaled_box(box.tolist(), (height, file.width), image.shape[:2])
    resize(torch.from_numpy(image), in_image, flip, out)


def _scaled_jpeg(file: Encoded, box: Box, px: int) -> tuple[Pixels, int] | None:
    """The image down to just below `box`, at the smallest scale at which `box` has `px` pixels, and
    the number of rows of the original that this covers. None: PIL must read it."""
    shrink = px / min(box[2], box[3])
    data, height = without_bottom(file.data, file.height, int(box[0] + box[2]))
    try:
        # Halves, quarters and eighths only: libjpeg-turbo has no SIMD code for scales in between.
        # The fast options blur colour edges a little and save 5 % (224 px) to 12 % (128 px).
        image: Pixels = simplejpeg.decode_jpeg(
            data,
            fastdct=True,
            fastupsample=True,
            min_height=math.ceil(height * shrink),
            min_width=math.ceil(file.width * shrink),
            min_factor=2,
            # Cutting off the bottom leaves data unread, which strict mode rejects.
            strict=height == file.height,
        )
    except ValueError:
        # PIL tolerates harmless defects, such as extra bytes between markers.
        return None
    return image, height


def without_bottom(data: bytes, height: int, needed: int) -> tuple[bytes, int]:
    """Shorten a JPEG to end just below row `needed`; return it with its new height.

    Files are decoded row by row from the top, and rows below the crop would be wasted. Lowering
    the height in the frame header makes the decoder stop there. This works for sequential,
    interleaved files (ITU-T T.81, B.2) with a proper end; others are returned unchanged.

    Args:
        data: the file.
        height: of the image, in pixels.
        needed: rows from the top that must be kept.
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
    """`needed` rows, rounded up to whole coded groups of rows, and at least one row more.

    Args:
        needed: rows from the top that must be kept.
        sampling: the sampling factors of every component, the vertical one in the low nibble.
    """
    group = BLOCK_ROWS * max(factors & 15 for factors in sampling)
    return (needed // group + 1) * group


def _with_pil(file: Encoded) -> Pixels:
    with warnings.catch_warnings():
        # Read sizes that PIL only warns about; sizes that it rejects are an error here, too.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(file.data)) as image:
            return _as_rgb(image)


def _as_rgb(image: Image.Image) -> Pixels:
    """Convert to 8 bits per colour; 16-bit images are scaled, where PIL's conversion would clip."""
    if image.mode == "F" or (image.mode == "I" and np.asarray(image).max() > WIDEST):
        raise ValueError(
            f"its pixels have 32 bits (mode {image.mode}) and an unknown white level; "
            "convert it to 8 or 16 bits"
        )
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.int32).clip(0, WIDEST) >> 8).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(grey[..., None], (*grey.shape, 3)))
    return np.array(image.convert("RGB"))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        # PIL names the in-memory buffer, which means nothing to the user.
        reason = reason.split(" <_io")[0]
        raise DataError(
            f"{path} is not a readable image ({reason}); repair or remove it"
        ) from error


def resize(image: Tensor, box: Sequence[int], flip: bool, out: Tensor) -> None:
    """Resize a box of an image into `out`, with antialiasing.

    Uses the kernel of torchvision's Resize and RandomResizedCrop on uint8.

    Args:
        image: uint8 [height, width, 3], contiguous.
        box: (top, left, height, width), in pixels.
        flip: whether to mirror it.
        out: uint8 [px, px, 3].
    """
    top, left, height, width = box
    px = out.shape[0]
    row = image.stride(0)
    begin = image.storage_offset() + top * row + left * 3
    crop = image.as_strided((1, 3, height, width), (0, 1, row, 3), begin)
    # The kernel's vector code needs contiguous, channels-last pixels, which flip() also returns.
    crop = crop.flip(3) if flip else crop.contiguous(memory_format=torch.channels_last)
    if height != px or width != px:
        crop = functional.interpolate(crop, size=(px, px), mode="bilinear", antialias=True)
    out.copy_(crop[0].permute(1, 2, 0))
