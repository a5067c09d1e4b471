"""Replays a trace of allocations on a model of an allocator, to find how much memory it takes.

A process takes more memory than its tensors, because an allocator cannot always reuse the holes
that freed tensors leave. Both models follow their allocator's source closely enough to place
tensors of the sizes that training uses; neither is exact to the byte.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from dpeval.util.display.units import KIB, MIB

PAGE = 4 * KIB


@dataclass(frozen=True)
class Event:
    """An allocation of `nbytes`, or, with None, the release of the one with this key."""

    key: int
    nbytes: int | None


class Allocator(Protocol):
    """An allocator on which a trace can be replayed."""

    peak: int
    """Peak number of bytes taken from the system."""

    def allocate(self, key: int, nbytes: int) -> None: ...

    def free(self, key: int) -> None: ...


def replay(allocator: Allocator, events: Iterable[Event], shift: int = 0) -> None:
    """Apply `events` in order.

    Args:
        allocator: changed in place.
        events: allocations and frees.
        shift: added to every key, so that one trace can be replayed several times.
    """
    for event in events:
        if event.nbytes is None:
            allocator.free(event.key + shift)
        else:
            allocator.allocate(event.key + shift, event.nbytes)


class FreeBlocks:
    """The free blocks of a range of addresses: best fit, free neighbours merged."""

    def __init__(self) -> None:
        self._by_size: list[tuple[int, int]] = []
        self._size_at: dict[int, int] = {}
        self._begin_of_end: dict[int, int] = {}

    def take(self, nbytes: int) -> tuple[int, int] | None:
        """Remove and return (begin, size) of the smallest block of at least `nbytes`."""
        place = bisect.bisect_left(self._by_size, (nbytes, -1))
        if place == len(self._by_size):
            return None
        size, begin = self._by_size[place]
        self.remove(begin)
        return begin, size

    def give(self, begin: int, size: int) -> tuple[int, int]:
        """Add a block, merged with its free neighbours; return the merged block."""
        if begin in self._begin_of_end:
            before = self._begin_of_end[begin]
            size += self._size_at[before]
            self.remove(before)
            begin = before
        if begin + size in self._size_at:
            after = begin + size
            size += self._size_at[after]
            self.remove(after)
        bisect.insort(self._by_size, (size, begin))
        self._size_at[begin], self._begin_of_end[begin + size] = size, begin
        return begin, size

    def remove(self, begin: int) -> None:
        """Remove the block that begins at `begin`."""
        size = self._size_at.pop(begin)
        del self._begin_of_end[begin + size]
        self._by_size.pop(bisect.bisect_left(self._by_size, (size, begin)))


class GlibcAllocator:
    """malloc of the GNU C library with one arena (mallopt(3), "M_MMAP_THRESHOLD").

    Requests above the mmap threshold get their own pages, which are returned when freed. The
    threshold rises to the size of each block freed that way, up to 32 MiB. All other requests are
    served from one growing arena, whose free end is trimmed once it exceeds twice the threshold.
    With `keeps` (:func:`keep_freed_memory`), the arena serves all requests and is never trimmed.
    """

    MAX_THRESHOLD = 32 * MIB
    ALIGNMENT = 64
    """Alignment that PyTorch's CPU allocator requests."""
    HEADER = 16

    def __init__(self, *, keeps: bool = False) -> None:
        self._threshold: float = math.inf if keeps else 128 * KIB
        self._trim = self._threshold
        self._free = FreeBlocks()
        self._top = self._grown = self._mapped = 0
        self._blocks: dict[int, tuple[int | None, int]] = {}
        self.peak = 0

    def allocate(self, key: int, nbytes: int) -> None:
        size = _round(nbytes + self.HEADER, self.ALIGNMENT)
        if nbytes >= self._threshold:
            self._mapped += _round(size, PAGE)
            self._blocks[key] = (None, size)
        else:
            self._blocks[key] = (self._place(size), size)
        self.peak = max(self.peak, self._grown + self._mapped)

    def _place(self, size: int) -> int:
        found = self._free.take(size)
        if found is None:
            begin, self._top = self._top, self._top + size
            self._grown = max(self._grown, self._top)
            return begin
        begin, whole = found
        if whole > size:
            self._free.give(begin + size, whole - size)
        return begin

    def free(self, key: int) -> None:
        begin, size = self._blocks.pop(key)
        if begin is None:
            self._mapped -= _round(size, PAGE)
            if self._threshold < size <= self.MAX_THRESHOLD:
                self._threshold, self._trim = size, 2 * size
            return
        begin, size = self._free.give(begin, size)
        if begin + size == self._top:
            self._free.remove(begin)
            self._top = begin
            if self._grown - self._top > self._trim:
                self._grown = self._top


class CachingAllocator:
    """PyTorch's CUDA caching allocator with its default settings (c10/cuda/CUDACachingAllocator).

    Sizes are rounded up to 512 bytes. Blocks up to 1 MiB are cut from segments of 2 MiB, and blocks
    below 10 MiB from segments of 20 MiB; larger ones get their own segments, rounded up to 2 MiB.
    Segments are never returned.
    """

    SMALL, SMALL_SEGMENT = 1 * MIB, 2 * MIB
    MIDDLE, MIDDLE_SEGMENT = 10 * MIB, 20 * MIB

    def __init__(self) -> None:
        self._pools = {True: FreeBlocks(), False: FreeBlocks()}
        self._blocks: dict[int, tuple[bool, int, int]] = {}
        self._end = 0
        self.peak = 0

    def allocate(self, key: int, nbytes: int) -> None:
        size = max(512, _round(nbytes, 512))
        small = size <= self.SMALL
        begin, whole = self._pools[small].take(size) or self._segment(size)
        if whole - size >= (512 if small else self.SMALL + 1):
            self._pools[small].give(begin + size, whole - size)
            whole = size
        self._blocks[key] = (small, begin, whole)

    def _segment(self, size: int) -> tuple[int, int]:
        if size <= self.SMALL:
            whole = self.SMALL_SEGMENT
        else:
            whole = self.MIDDLE_SEGMENT if size < self.MIDDLE else _round(size, 2 * MIB)
        # A gap between segments: blocks of different segments never merge.
        begin, self._end = self._end + 1, self._end + 1 + whole
        self.peak += whole
        return begin, whole

    def free(self, key: int) -> None:
        small, begin, size = self._blocks.pop(key)
        self._pools[small].give(begin, size)


def _round(value: int, unit: int) -> int:
    """`value` rounded up to a multiple of `unit`."""
    return -(-value // unit) * unit
