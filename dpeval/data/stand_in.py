"""Imagenette's stand-in: generated JPEG files in its layout, for machines without the data.

Natural images have amplitude spectra that fall as 1/f (Field 1987, J. Opt. Soc. Am. A 4(12));
images made so compress and decode like photographs, which noise or flat colours do not. Every
class has its own orientation, spatial frequency and colour, so a network can learn it.
"""

from __future__ import annotations

import io
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpeval.config import DatasetConfig
from dpeval.data.folder import scan
from dpeval.data.source import Say, Source

VERSION = 1
"""Goes into the folder's name: a generator that changes makes a new folder."""
WNIDS = (
    "n01440764", "n02102040", "n02979186", "n03000684", "n03028079",
    "n03394916", "n03417042", "n03425413", "n03445777", "n03888257",
)  # fmt: skip
SHORT_SIDE_PX = {"full": 375, "320px": 320, "160px": 160}
"""Shorter side of the images, as in the published archives."""
JPEG_QUALITY = 88
VAL_SHARE = 0.2
COMPLETE = ".complete"


def imagenette_like(config: DatasetConfig, root: Path, say: Say) -> Source:
    """The stand-in with ``dataset.train_images`` images, generated once per folder."""
    short_px = SHORT_SIDE_PX[config.size]
    folder = root / f"imagenette_like-v{VERSION}-{short_px}px-{config.train_images}"
    if not (folder / COMPLETE).exists():
        say(f"generating {config.train_images} images of {short_px} px in {folder}")
        generate(folder, config.train_images, short_px)
    return scan(config.name, "imagenette_like", folder)


def generate(folder: Path, train_images: int, short_px: int) -> None:
    """Generate the whole folder; it appears under its name only when it is complete."""
    beside = folder.with_name(f"{folder.name}.generating")
    shutil.rmtree(beside, ignore_errors=True)
    tasks = []
    for split, count in (("train", train_images), ("val", max(10, int(train_images * VAL_SHARE)))):
        for index in range(count):
            tasks.append((split, index))
    for split in ("train", "val"):
        for wnid in WNIDS:
            (beside / split / wnid).mkdir(parents=True)
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    make = partial(_write_image, beside, short_px)
    # A process pool, because the arithmetic holds the interpreter's lock; forkserver, because
    # this process may have threads.
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        for _ in pool.map(make, tasks, chunksize=64):
            pass
    (beside / COMPLETE).touch()
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)


def _write_image(folder: Path, short_px: int, task: tuple[str, int]) -> None:
    split, index = task
    label = index % len(WNIDS)
    generator = np.random.default_rng([VERSION, short_px, split == "val", index])
    pixels = make_image(label, short_px, generator)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    name = f"{WNIDS[label]}_{index}.JPEG"
    (folder / split / WNIDS[label] / name).write_bytes(buffer.getvalue())


def make_image(label: int, short_px: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """One image of class `label`, uint8, shape [height, width, 3], shorter side `short_px`."""
    ratio = float(generator.choice([4 / 3, 4 / 3, 3 / 2, 1.0, 3 / 4]))
    height, width = (
        (short_px, round(short_px * ratio)) if ratio >= 1 else (round(short_px / ratio), short_px)
    )
    rows = np.fft.fftfreq(height)[:, None] * height
    columns = np.fft.rfftfreq(width)[None, :] * width
    radius = np.hypot(rows / height, columns / width) * short_px
    amplitude = 1.0 / np.maximum(radius, 1.0)
    angle = np.pi * label / len(WNIDS)
    # More power along the class' orientation, within natural variation.
    direction = np.cos(np.arctan2(rows / height, columns / width) - angle) ** 2
    amplitude = amplitude * (0.6 + 1.6 * direction**4)
    luminance = _field(amplitude, (height, width), generator)
    chroma = [
        _field(amplitude / np.maximum(radius, 1.0) ** 0.5, (height, width), generator)
        for _ in range(2)
    ]
    hue = 2 * np.pi * (label * 3 % len(WNIDS)) / len(WNIDS) + generator.normal(0, 0.5)
    strength = generator.uniform(8, 30)
    blue = 14 * chroma[0] + strength * np.cos(hue)
    red = 14 * chroma[1] + strength * np.sin(hue)
    bright = generator.normal(120, 20) + generator.uniform(38, 58) * luminance
    # ITU-R BT.601, as JPEG itself.
    image = np.stack(
        [bright + 1.402 * red, bright - 0.344 * blue - 0.714 * red, bright + 1.772 * blue], axis=-1
    )
    pixels: NDArray[np.uint8] = np.clip(image, 0, 255).astype(np.uint8)
    return pixels


def _field(
    amplitude: NDArray[np.float64], shape: tuple[int, int], generator: np.random.Generator
) -> NDArray[np.float64]:
    """A random field of the given amplitude spectrum, mean 0, standard deviation 1."""
    phase = generator.uniform(0, 2 * np.pi, amplitude.shape)
    spectrum = amplitude * np.exp(1j * phase)
    spectrum[0, 0] = 0.0
    field = np.fft.irfft2(spectrum, shape)
    normalised: NDArray[np.float64] = field / field.std()
    return normalised
