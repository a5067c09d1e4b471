"""Which images a rank reads in which step, and all chance in it: a function of the seed alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpeval.data.images.augment import DRAWS, Draws
from dpeval.errors import DataError

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """What one rank reads in one step."""

    indices: Indices
    """Images of the data set, [b]."""
    draws: Draws
    """Uniform in [0, 1), [b, DRAWS]: all chance in the augmentation of these images."""


class ShardedSampler:
    """Deals every global batch of a seeded, epoch-reshuffled permutation out to the ranks.

    Step k of an epoch takes ``permutation[k*B : (k+1)*B]`` for the global batch B, and every
    rank its slice of that, so the global batches are the same at every rank count, no image is
    read twice in an epoch, and none is dropped but those of the ragged last batch. The draws
    belong to the global batch too: the same images come with the same crops at every rank count
    and from every loader.
    """

    def __init__(self, images: int, shares: Sequence[int], rank: int, seed: int) -> None:
        """`shares` are the images of each rank in one global batch.

        Raises:
            DataError: the data has fewer images than one global batch.
        """
        self._global_batch = sum(shares)
        if images < self._global_batch:
            raise DataError(
                f"the data has {images} training images and one global batch needs "
                f"{self._global_batch}; use a smaller batch or more images"
            )
        self._images, self._seed = images, seed
        begin = sum(shares[:rank])
        self._own = slice(begin, begin + shares[rank])

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in one epoch."""
        return self._images // self._global_batch

    def epoch(self, number: int) -> Iterator[Step]:
        """This rank's part of every step of one epoch."""
        permutation = np.random.default_rng([self._seed, number]).permutation(self._images)
        for step in range(self.steps_per_epoch):
            begin = step * self._global_batch
            batch = permutation[begin : begin + self._global_batch]
            generator = np.random.default_rng([self._seed, number, step])
            draws = generator.random((self._global_batch, DRAWS))
            yield Step(batch[self._own], draws[self._own])

    def __iter__(self) -> Iterator[Step]:
        """Epoch after epoch, without end."""
        number = 0
        while True:
            yield from self.epoch(number)
            number += 1
