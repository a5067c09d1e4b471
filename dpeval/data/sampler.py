"""Which images a rank reads in which step: a function of the seed alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dpeval.errors import DataError

Indices = NDArray[np.int64]


class ShardedSampler:
    """Deals every global batch of a seeded, epoch-reshuffled permutation out to the ranks.

    Step k of an epoch takes ``permutation[k*B : (k+1)*B]`` for the global batch B, and every
    rank its slice of that, so the global batches are the same at every rank count, no image is
    read twice in an epoch, and none is dropped but those of the ragged last batch.
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
        self._begin = sum(shares[:rank])
        self._end = self._begin + shares[rank]

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in one epoch."""
        return self._images // self._global_batch

    def epoch(self, number: int) -> Iterator[Indices]:
        """This rank's image indices of every step of one epoch, shape [share] each."""
        permutation = np.random.default_rng([self._seed, number]).permutation(self._images)
        for step in range(self.steps_per_epoch):
            begin = step * self._global_batch
            yield permutation[begin + self._begin : begin + self._end]

    def __iter__(self) -> Iterator[Indices]:
        """Epoch after epoch, without end."""
        number = 0
        while True:
            yield from self.epoch(number)
            number += 1
