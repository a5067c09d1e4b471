"""Reads batches on the host, in this process or prefetched by workers."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dpeval.data.images.decode import read_batch, resize
from dpeval.data.loading.cache_table import CacheTable
from dpeval.data.loading.sampler import ShardedSampler, Step
from dpeval.data.sources.source import Source
from dpeval.errors import DataError
from dpeval.util.display.units import MIB

Host = tuple[Tensor, ...]
"""Pixels, uint8 [b, px, px, 3], and labels, int64 [b]. If the device crops: cache records, uint8
[b, record], labels, and crops, int64 [b, 5]."""
PREFETCHED = 2
"""Batches that each worker prefetches."""
PR_SET_PDEATHSIG = 1
SHARED_MEMORY = "/dev/shm"


class Reader(Protocol):
    """Reads the images of a step."""

    def __call__(self, step: Step) -> Host:
        """Read the images of one step."""


class JpegReader:
    """Decodes files."""

    def __init__(self, source: Source, px: int, augment: str) -> None:
        """Read from `source`.

        Args:
            source: the prepared data.
            px: side of the crops, in pixels.
            augment: ``dataset.augment``.
        """
        self._paths = [Path(source.root) / name for name in source.train_files]
        self._labels = torch.tensor(source.train_labels)
        self._px, self._augment = px, augment

    def __call__(self, step: Step) -> Host:
        pixels = torch.empty(len(step.indices), self._px, self._px, 3, dtype=torch.uint8)
        paths = [self._paths[index] for index in step.indices]
        read_batch(paths, step.draws, self._augment, pixels)
        return pixels, self._labels[torch.from_numpy(step.indices)]


class CacheReader:
    """Crops images from the mapped cache."""

    def __init__(self, source: Source, table: CacheTable, px: int) -> None:
        """Read from `table`.

        Args:
            source: the prepared data.
            table: its mapped cache.
            px: side of the crops, in pixels.
        """
        self._table, self._px = table, px
        self._labels = torch.tensor(source.train_labels)

    def __call__(self, step: Step) -> Host:
        boxes, flips = self._table.crops(step)
        squares = self._table.squares
        pixels = torch.empty(len(step.indices), self._px, self._px, 3, dtype=torch.uint8)
        crops = zip(step.indices.tolist(), boxes.tolist(), flips.tolist(), pixels, strict=True)
        for index, box, flip, out in crops:
            resize(squares[index], box, flip, out)
        return pixels, self._labels[torch.from_numpy(step.indices)]


class GatherReader:
    """Gathers images from the mapped cache where no crop is needed."""

    def __init__(self, source: Source, table: CacheTable) -> None:
        self._squares = table.squares
        self._labels = torch.tensor(source.train_labels)

    def __call__(self, step: Step) -> Host:
        index = torch.from_numpy(step.indices)
        return self._squares.index_select(0, index), self._labels[index]


class WholeReader:
    """Gathers whole records from the mapped cache, with the boxes that the device is to crop."""

    def __init__(self, source: Source, table: CacheTable) -> None:
        self._table = table
        self._labels = torch.tensor(source.train_labels)

    def __call__(self, step: Step) -> Host:
        index = torch.from_numpy(step.indices)
        return self._table.rows[index], self._labels[index], self._table.where(step)


@dataclass(frozen=True)
class Failure:
    """Sent by a worker in place of a batch, so that its error stays one line."""

    message: str


@dataclass(frozen=True)
class _Steps:
    """A reader as the dataset of a ``DataLoader`` whose sampler yields whole steps."""

    reader: Reader

    def __getitem__(self, step: Step) -> Host | Failure:
        try:
            return shared(self.reader(step))
        except DataError as error:
            return Failure(str(error))


def shared(batch: Host) -> Host:
    """Move `batch` into shared memory, through which a worker passes it on.

    The queue would move it too, but in a thread whose errors are lost.

    Raises:
        DataError: shared memory is full.
    """
    try:
        return tuple(part.share_memory_() for part in batch)
    except RuntimeError as error:
        if "shared memory" not in str(error):
            raise
        nbytes = sum(part.numel() * part.element_size() for part in batch)
        whole = shutil.disk_usage(SHARED_MEMORY).total if Path(SHARED_MEMORY).is_dir() else 0
        raise DataError(
            f"a loader worker cannot pass on a batch of {nbytes / MIB:.1f} MiB: shared memory "
            f"({SHARED_MEMORY}, {whole / MIB:.1f} MiB) is full; enlarge it (docker run "
            "--shm-size=1g), or use fewer dataset.workers (0: none) or a smaller batch"
        ) from error


class Batches:
    """The endless sequence of a rank's batches, prefetched by worker processes if there are any.

    Without workers each batch is read in the caller's process, on demand.

    Workers are forked, so they start in milliseconds and import nothing again. They use one thread,
    touch neither the device nor the process group, and are killed when this process ends.
    """

    def __init__(
        self,
        reader: Reader,
        sampler: ShardedSampler,
        *,
        workers: int,
        cpus: Sequence[int],
        pinned: bool,
    ) -> None:
        """Start the workers.

        Args:
            reader: reads the images of a step.
            sampler: yields the steps.
            workers: number of worker processes.
            cpus: logical CPUs of the workers; none: those of this process.
            pinned: whether to return pinned memory, for transfers to a GPU.
        """
        self._made: Iterator[Host | Failure] | None
        if not workers:
            self._made = map(partial(_pinned, reader) if pinned else reader, sampler)
            return
        loader: DataLoader[Host | Failure] = DataLoader(
            _Steps(reader),  # type: ignore[arg-type]  # a dataset only by its __getitem__
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            prefetch_factor=PREFETCHED,
            multiprocessing_context="fork",
            worker_init_fn=partial(_settle, list(cpus)),
            # A separate generator, so that prefetching does not change the model's random numbers.
            generator=torch.Generator(),
            pin_memory=pinned,
        )
        self._made = iter(loader)

    def __iter__(self) -> Iterator[Host]:
        return self

    def __next__(self) -> Host:
        """The next batch.

        Raises:
            DataError: an image in it cannot be read.
        """
        assert self._made is not None, "closed"
        batch = next(self._made)
        if isinstance(batch, Failure):
            raise DataError(batch.message)
        return tuple(batch)

    def close(self) -> None:
        """Stop the workers."""
        # The iterator of a DataLoader stops its workers when it is deleted.
        self._made = None


def _pinned(reader: Reader, step: Step) -> Host:
    return tuple(part.pin_memory() for part in reader(step))


def _settle(cpus: list[int], worker: int) -> None:
    """Pin this worker to `cpus`, and have it killed when its parent ends."""
    if cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    if os.uname().sysname == "Linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
