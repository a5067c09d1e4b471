"""Imagenette's stand-in: generated JPEG files in its layout, for machines without the data.

Natural images have amplitude spectra that fall as 1/f (Field 1987, J. Opt. Soc. Am. A 4(12));
images generated this way compress and decode like photographs, unlike noise or flat colours. Sizes
in pixels and in bytes follow the published archives. A class is a hue and a direction of texture;
both survive random crops and mirroring, so a network can learn the classes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import scipy.fft
import simplejpeg
from numpy.typing import NDArray

from dpeval.config import DatasetConfig
from dpeval.data.sources.image_folder import scan
from dpeval.data.sources.progress import Report, progress
from dpeval.data.sources.source import Source, making, one_line
from dpeval.util.cpus import allowed_cpus

VERSION = 3
"""Part of the folder's name: a changed generator writes a new folder."""
WNIDS = (
    "n01440764", "n02102040", "n02979186", "n03000684", "n03028079",
    "n03394916", "n03417042", "n03425413", "n03445777", "n03888257",
)  # fmt: skip
SHORT_SIDE_PX = {"full": 375, "320px": 320, "160px": 160}
"""Shorter side of the images in the published archives."""
JPEG_QUALITY = {375: 96, 320: 65, 160: 65}
"""Chosen so that files are on average as large as the published ones: 116, 25.5 and 7.4 kB."""
ASPECTS = (4 / 3, 4 / 3, 4 / 3, 3 / 2, 1.0, 3 / 4)
"""Width over height of photographs, mostly landscape."""
SLOPE = 1.2
"""Amplitude falls as frequency ** -SLOPE; photographs lie between 0.9 and 1.3."""
HUES = 5
VAL_SHARE = 0.2
TASK_IMAGES = 50
COMPLETE = ".complete"

Field = NDArray[np.float32]


def imagenette_like(config: DatasetConfig, root: Path, report: Report) -> Source:
    """The stand-in with ``dataset.train_images`` images, generated once.

    Args:
        config: the keys of ``dataset``.
        root: folder that contains the generated one.
        report: prints progress.

    Raises:
        DataError: the images cannot be written.
    """
    short_px = SHORT_SIDE_PX[config.size]
    folder = root / f"imagenette_like-v{VERSION}-{short_px}px-{config.train_images}"
    if not (folder / COMPLETE).exists():
        with making(folder, report):
            if not (folder / COMPLETE).exists():
                with one_line(str(folder)):
                    generate(folder, config.train_images, short_px, report)
    return scan(config.name, "imagenette_like", folder)


def generate(folder: Path, train_images: int, short_px: int, report: Report) -> None:
    """Generate `folder`, which exists only once it is complete.

    Args:
        folder: where the images go.
        train_images: number of training images; validation images are a fifth of that.
        short_px: shorter side of the images, in pixels.
        report: prints progress.
    """
    beside = folder.with_name(f"{folder.name}.generating")
    shutil.rmtree(beside, ignore_errors=True)
    tasks = list(_tasks(train_images))
    for split in ("train", "val"):
        for wnid in WNIDS:
            (beside / split / wnid).mkdir(parents=True)
    total = sum(len(indices) for _, indices in tasks)
    what = f"generating {total:,} images of {short_px} px in {folder}"
    with _processes() as pool, progress(report, what, total, "images") as advance:
        for count in pool.map(partial(_write_images, beside, short_px), tasks):
            advance(count)
    (beside / COMPLETE).touch()
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)


def _tasks(train_images: int) -> Iterator[tuple[str, range]]:
    val_images = max(len(WNIDS), int(train_images * VAL_SHARE))
    for split, count in (("train", train_images), ("val", val_images)):
        for begin in range(0, count, TASK_IMAGES):
            yield split, range(begin, min(begin + TASK_IMAGES, count))


def _processes() -> Executor:
    # Processes, because the arithmetic holds the GIL; a forkserver, because this process may have
    # threads. If ranks share it, it is already running.
    return ProcessPoolExecutor(len(allowed_cpus()), mp_context=get_context("forkserver"))


def _write_images(folder: Path, short_px: int, task: tuple[str, range]) -> int:
    split, indices = task
    for index in indices:
        label = index % len(WNIDS)
        generator = np.random.default_rng([VERSION, short_px, split == "val", index])
        pixels = make_image(label, short_px, generator)
        encoded = simplejpeg.encode_jpeg(
            pixels, quality=JPEG_QUALITY[short_px], colorsubsampling="420"
        )
        name = f"{WNIDS[label]}_{index}.JPEG"
        (folder / split / WNIDS[label] / name).write_bytes(encoded)
    return len(indices)


def make_image(label: int, short_px: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """One image, uint8 [height, width, 3].

    Args:
        label: its class, from 0 to 9.
        short_px: its shorter side, in pixels.
        generator: source of all randomness.
    """
    aspect = float(generator.choice(ASPECTS))
    height, width = (
        (short_px, round(short_px * aspect))
        if aspect >= 1
        else (round(short_px / aspect), short_px)
    )
    luminance = _field(height, width, label % 2, generator)
    # JPEG stores colour at half the resolution, so no more is generated.
    small = -(-height // 2), -(-width // 2)
    hue = 2 * np.pi * (label // 2) / HUES + generator.normal(0, 0.2)
    strength = generator.uniform(12, 30)
    blue, red = (
        np.float32(strength * part) + 7 * _field(*small, None, generator)
        for part in (np.cos(hue), np.sin(hue))
    )
    contrast, bright = generator.uniform(18, 58), generator.normal(120, 20)
    luminance = np.float32(bright) + np.float32(contrast) * luminance
    # To RGB at half the resolution, then doubled: ITU-R BT.601, as in JPEG.
    colours = np.stack([1.402 * red, -0.344 * blue - 0.714 * red, 1.772 * blue], axis=-1)
    doubled = colours.repeat(2, axis=0)[:height].repeat(2, axis=1)[:, :width]
    doubled += luminance[..., None]
    pixels: NDArray[np.uint8] = np.clip(doubled, 0, 255, out=doubled).astype(np.uint8)
    return pixels


def _field(height: int, width: int, direction: int | None, generator: np.random.Generator) -> Field:
    """A random field with a natural spectrum, mean 0 and standard deviation 1, float32."""
    rows, columns = (scipy.fft.next_fast_len(side, real=True) for side in (height, width))
    amplitude = _amplitude(rows, columns, direction)
    spectrum = generator.standard_normal((*amplitude.shape, 2), dtype=np.float32)
    complex_spectrum = spectrum.view(np.complex64)[..., 0]
    complex_spectrum *= amplitude
    field: Field = scipy.fft.irfft2(complex_spectrum, (rows, columns))[:height, :width]
    field -= field.mean()
    field /= field.std()
    return field


@lru_cache(maxsize=64)
def _amplitude(rows: int, columns: int, direction: int | None) -> Field:
    """Amplitudes that fall as 1/f, with more power along the vertical (0) or horizontal (1)."""
    down = np.fft.fftfreq(rows)[:, None]
    across = np.fft.rfftfreq(columns)[None, :]
    radius = np.hypot(down, across)
    radius[0, 0] = np.inf
    amplitude = radius**-SLOPE
    if direction is not None:
        along = np.abs(across if direction else down) / radius
        # Close to photographs, in which vertical and horizontal structures also dominate.
        amplitude *= 0.3 + 1.2 * along**2
    power: Field = amplitude.astype(np.float32)
    return power
