"""Decides which images a rank reads in each step, and their augmentation, from the seed alone."""

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
    """Indices of images, [b]."""
    draws: Draws
    """Uniform in [0, 1), [b, DRAWS]: the only randomness of the augmentation."""


class ShardedSampler:
    """Splits the global batches of a seeded permutation, reshuffled every epoch, among ranks.

    Step k of an epoch takes ``permutation[k*B : (k+1)*B]`` for the global batch B, and each rank
    takes its slice of that. Global batches are therefore the same at every world size, no image is
    read twice in an epoch, and only the images of an incomplete last batch are dropped. Draws
    belong to the global batch too: the same images have the same crops at every world size and with
    every loader.
    """

    def __init__(self, images: int, shares: Sequence[int], rank: int, seed: int) -> None:
        """Sample the batches of one rank.

        Args:
            images: number of training images.
            shares: per-device batch of each rank.
            rank: the rank that reads.
            seed: decides the order of the images and all augmentation.

        Raises:
            DataError: there are fewer images than one global batch.
        """
        self._global_batch = sum(shares)
        if images < self._global_batch:
            raise DataError(
                f"the data has {images} training samples, but one global batch needs "
                f"{self._global_batch}; use a smaller batch or more data"
            )
        self._images, self._seed = images, seed
        begin = sum(shares[:rank])
        self._own = slice(begin, begin + shares[rank])

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in one epoch."""
        return self._images // self._global_batch

    def epoch(self, number: int) -> Iterator[Step]:
        """This rank's share of every step of one epoch."""
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
