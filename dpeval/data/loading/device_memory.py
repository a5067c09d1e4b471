"""Device memory that the input of a training takes, derived from the code of the loaders."""

from __future__ import annotations

from dataclasses import dataclass

from dpeval.config import LOADERS, DatasetConfig
from dpeval.data.sources import imagenette
from dpeval.data.sources.pixel_cache import layout, record_type

IN_FLIGHT = 3
"""Batches of uint8 on a GPU: the current one; the next one, which has already been sent
(:class:`dpeval.devices.cuda.CopyPrefetcher`); and the previous one, whose memory is not reused
until the GPU, which lags behind the host, has finished its step."""


@dataclass(frozen=True)
class InputMemory:
    """Sizes in bytes."""

    images: int
    """The batch as the model sees it, in float32."""
    passing: tuple[tuple[int, int], ...]
    """Intermediate tensors on the way to `images`, in order: the size of each, and how many of the
    tensors after it (the last is `images`) are made before it is freed."""
    pixels: int = 0
    """The batch in uint8, which is kept until its step ends."""
    in_flight: tuple[int, ...] = ()
    """Batches copied on a separate stream; no other stream uses their memory."""
    resident: int = 0
    """The whole dataset."""

    @property
    def held(self) -> int:
        """Memory in use while the model computes."""
        return self.resident + sum(self.in_flight) + self.pixels + self.images


def on_cpu(images: int, config: DatasetConfig) -> InputMemory:
    """The input of a CPU rank. Pixels in the mapped cache do not count as memory of the rank.

    Args:
        images: per-device batch.
        config: the keys of ``dataset``.
    """
    pixels = images * 3 * config.image_px**2
    return InputMemory(images=4 * pixels, passing=((4 * pixels, 1),), pixels=pixels)


def of_tokens(tokens: int, *, gpu: bool) -> InputMemory:
    """The input of a language model: inputs and targets are views of one int64 tensor.

    Args:
        tokens: number of tokens in one batch, targets included.
        gpu: whether the device is a GPU, to which batches are sent ahead of their step.
    """
    made = 8 * tokens
    if gpu:
        return InputMemory(images=0, passing=(), in_flight=(made,) * IN_FLIGHT)
    # TokenReader: positions of the tokens in the file, and the tokens in the file's type.
    return InputMemory(images=made, passing=((made, 2), (4 * tokens, 1)))


def on_gpu(
    images: int, config: DatasetConfig, *, channels_last: bool, train_images: int | None = None
) -> InputMemory:
    """The input of a GPU rank.

    A user's loader is assumed to send pixels of the model's size, as ``jpeg`` does.

    Args:
        images: per-device batch.
        config: the keys of ``dataset``.
        channels_last: memory format of the images.
        train_images: size of the dataset; None: as configured.
    """
    pixels = images * 3 * config.image_px**2
    made = 4 * pixels
    # Normaliser: addcmul returns channels_last; another format takes one more copy.
    copied = () if channels_last else ((made, 1),)
    # Normaliser: pixels.float() is freed once addcmul has read it.
    normalising = ((made, 1), *copied)
    if config.loader == "constant":
        return InputMemory(made, normalising)
    built_in = LOADERS.get(config.loader)
    if built_in is None or not built_in.needs_cache:
        return InputMemory(made, normalising, in_flight=(pixels,) * IN_FLIGHT)
    side_px = layout(config).side_px
    record = record_type(side_px).itemsize
    squares = 4 * images * 3 * side_px**2
    grid = 2 * 4 * images * config.image_px**2
    # crop_batch: the grid, the squares in float, the result of grid_sample, and its copy in pixel
    # order. That copy is already in float, and put() keeps it until the images are made.
    cropping = ((grid, 3), (squares, 1), (made, 1), (made, 1 if channels_last else 2), *copied)
    if config.loader != "resident":
        return InputMemory(made, cropping, in_flight=(images * record,) * IN_FLIGHT)
    count = configured_images(config) if train_images is None else train_images
    # put: the records of the batch, kept until its images are made.
    selected = (images * record, len(cropping) + 1)
    return InputMemory(made, (selected, *cropping), resident=count * record)


def configured_images(config: DatasetConfig) -> int:
    """Number of training images of a dataset that is not prepared yet; 0 if unknown without its
    files."""
    known = {
        "dpeval.data.imagenette": imagenette.TRAIN_IMAGES,
        "dpeval.data.imagenette_like": config.train_images,
    }
    return known.get(config._target_, 0)
