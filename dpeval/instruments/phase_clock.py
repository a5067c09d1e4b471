"""The phase clock times the phases of a step and never waits for the device."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dpeval.devices.base import Device
from dpeval.instruments.step_buffer import COLUMNS
from dpeval.record.phases import MARKED_PHASES, Phase
from dpeval.util.arrays import Floats

DRAIN_EVERY_S = 0.5
"""Rows of short steps are written in batches, because writing a single row would cost every step 15
µs (cold code). A killed rank loses at most this much of its measurements."""
_OUTSIDE = "the phase clock was used outside start_step … end_step"
_READY = "last gradient ready"
_LEFT_OUT = "left out"


@dataclass(slots=True)
class _Reduce:
    """The all-reduce of one bucket in one step."""

    bucket: int
    nbytes: int
    begin: Any
    end: Any = None


@dataclass(slots=True)
class _Step:
    """The stamps of one step, read once the device has passed the last of them."""

    index: int
    host_s: float
    begin: Any
    marks: list[tuple[str, Any]] = field(default_factory=list[tuple[str, Any]])
    reduces: list[_Reduce] = field(default_factory=list[_Reduce])
    end: Any = None
    end_is_shared: bool = False
    """Whether the next step starts with the same stamp."""

    def own_stamps(self) -> Iterator[Any]:
        """Every stamp that no later step needs, once; a mark may also be the start of an all-reduce
        or the end of the step."""
        yield self.begin
        yield from (
            stamp for phase, stamp in self.marks if phase != _READY and stamp is not self.end
        )
        for reduce in self.reduces:
            yield reduce.begin
            if reduce.end is not None:
                yield reduce.end
        if not self.end_is_shared:
            yield self.end


class _NoStep:
    """Stands in for a step's lists outside a step."""

    def append(self, item: object) -> None:
        raise RuntimeError(_OUTSIDE)


_NO_STEP = _NoStep()


class PhaseClock:
    """Times every step of one rank by phase and writes its rows of the step buffer.

    On CPU a stamp is ``perf_counter``; on CUDA it is an event on the current stream, whose time
    :meth:`drain` reads after the device has passed it, so steps contain no synchronisation. A phase
    is the span between two marks, and ``other`` is the remainder of the step, so phases add up to
    the step by construction. `backward` ends when the last gradient is ready. From then to the end
    of the last all-reduce the rank only waits for communication (``comm_exposed``); the rest of the
    backward call copies reduced gradients out of their buckets (``grad_copy``). A strategy that
    communicates elsewhere, while nothing is computed, marks that as ``comm_exposed``.

    A stamp costs the host of a GPU up to 20 µs, so none is made twice: the last mark of a step is
    its end, and the next step starts there, unless something else was done in between
    (:meth:`pause`).
    """

    def __init__(self, device: Device, rows: Floats) -> None:
        self._device, self._rows = device, rows
        # Used several times in every step, where attribute look-ups are noticeable.
        self._stamp = device.stamp
        self._marks: list[tuple[str, Any]] | _NoStep = _NO_STEP
        self._reduces: list[_Reduce] | _NoStep = _NO_STEP
        self._open: _Step | None = None
        self._pending: deque[_Step] = deque()
        self._seam: Any = None
        """The end of the last step, if the next one starts there."""
        self._drained_s = -math.inf
        self.bucket_s: dict[int, tuple[int, list[float]]] = {}
        """Per bucket index: its bytes and the all-reduce time of every step, s."""
        self.finished = 0
        """Steps whose rows are complete."""

    def start_step(self, index: int, host_s: float) -> None:
        """Start step `index`; `host_s` is the host's monotonic time, for timelines."""
        begin = self._seam
        if begin is None:
            begin = self._stamp()
        else:
            self._pending[-1].end_is_shared = True
        self._open = step = _Step(index, host_s, begin)
        self._marks, self._reduces = step.marks, step.reduces

    def mark(self, phase: Phase) -> None:
        """Assign the time since the previous mark to `phase`; a phase may be marked repeatedly."""
        self._marks.append((phase, self._stamp()))

    def end_step(self, phase: Phase | None = None) -> None:
        """End the step; now and then write the rows of steps that the device has finished.

        Args:
            phase: the phase that ends with the step; None: the rest of the step is ``other``.
        """
        step = self._open
        if step is None:
            raise RuntimeError(_OUTSIDE)
        step.end = self._seam = self._stamp()
        if phase is not None:
            step.marks.append((phase, step.end))
        self._open, self._marks, self._reduces = None, _NO_STEP, _NO_STEP
        self._pending.append(step)
        if step.host_s - self._drained_s >= DRAIN_EVERY_S:
            self.drain()
            self._drained_s = step.host_s

    def drain(self) -> None:
        """Write the rows of ended steps that the device has passed; call after ``finish`` too."""
        while self._pending and self._is_past(self._pending[0]):
            self.pause()
            step = self._pending.popleft()
            self._write(step)
            self._device.recycle(step.own_stamps())

    @property
    def is_in_step(self) -> bool:
        """Whether a step has started and not ended."""
        return self._open is not None

    def leave_out(self) -> None:
        """Exclude the time since the previous mark: it belongs to no step."""
        self._marks.append((_LEFT_OUT, self._stamp()))

    def abandon_step(self) -> None:
        """Discard the step that has started."""
        if self._open is not None:
            if self._pending:  # the previous step may share the stamp
                self._pending[-1].end_is_shared = False
            self._open, self._marks, self._reduces = None, _NO_STEP, _NO_STEP
        self.pause()

    def pause(self) -> None:
        """Call this between two steps before doing anything that no step should include."""
        self._seam = None

    def _is_past(self, step: _Step) -> bool:
        """Whether the device has passed every stamp; an all-reduce may end on another stream."""
        is_past = self._device.is_past
        return is_past(step.end) and all(
            is_past(reduce.end) for reduce in step.reduces if reduce.end is not None
        )

    @contextmanager
    def diverted(self, rows: Floats) -> Iterator[None]:
        """Write steps taken in this context to `rows` instead, numbered from 0."""
        saved = self._rows, self.finished, self.bucket_s
        self._rows, self.finished, self.bucket_s = rows, 0, {}
        self.pause()
        try:
            yield
        finally:
            self.pause()
            self._rows, self.finished, self.bucket_s = saved

    def bucket_ready(self, bucket: int, nbytes: int, *, is_last: bool) -> _Reduce:
        """Stamp the moment when a bucket's gradients are complete and its all-reduce starts.

        Args:
            bucket: index of the bucket.
            nbytes: its size, bytes.
            is_last: whether it is the last bucket of the step: backward ends here.

        Returns:
            A handle for :meth:`bucket_done`.
        """
        stamp = self._stamp()
        reduce = _Reduce(bucket, nbytes, stamp)
        self._reduces.append(reduce)
        if is_last:
            self._marks.append((_READY, stamp))
        return reduce

    def bucket_done(self, reduce: _Reduce) -> None:
        """Stamp the end of the all-reduce that :meth:`bucket_ready` started."""
        reduce.end = self._stamp()

    def _write(self, step: _Step) -> None:
        elapsed = self._device.elapsed_s
        row = dict.fromkeys(COLUMNS, 0.0)
        spans = self._reduce_spans(step)
        last, ready_s, marked_comm_s, left_out_s = step.begin, None, 0.0, 0.0
        for phase, stamp in step.marks:
            span_s = elapsed(last, stamp)
            last = stamp
            if phase == "comm_exposed":
                row[phase] += span_s
                marked_comm_s += span_s
            elif phase == _LEFT_OUT:
                left_out_s += span_s
            elif phase == _READY:
                row["backward"] += span_s
                ready_s = elapsed(step.begin, stamp)
            elif phase == "backward" and ready_s is not None:
                exposed_s = min(span_s, _exposed_s(spans, ready_s))
                row["comm_exposed"] += exposed_s
                row["grad_copy"] += span_s - exposed_s
                ready_s = None
            else:
                row[phase] += span_s
        row["begin"], row["step"] = step.host_s, elapsed(step.begin, step.end) - left_out_s
        row["other"] = row["step"] - sum(row[phase] for phase in MARKED_PHASES)
        if spans or marked_comm_s:
            row["comm"] = _covered_s(spans) + marked_comm_s
            row["comm_hidden"] = max(0.0, row["comm"] - row["comm_exposed"])
        # One assignment per row: assigning one NumPy element costs more than building the whole
        # list.
        self._rows[step.index] = list(row.values())
        self.finished = step.index + 1

    def _reduce_spans(self, step: _Step) -> list[tuple[float, float]]:
        """Start and end of every all-reduce, relative to the start of the step, s; also kept per
        bucket."""
        elapsed, spans = self._device.elapsed_s, []
        for reduce in step.reduces:
            begin_s = elapsed(step.begin, reduce.begin)
            end_s = elapsed(step.begin, reduce.end if reduce.end is not None else step.end)
            nbytes, series = self.bucket_s.setdefault(reduce.bucket, (reduce.nbytes, []))
            if nbytes != reduce.nbytes:
                # DDP rebuilds its buckets after the first step, in the order of ready gradients.
                series = []
                self.bucket_s[reduce.bucket] = (reduce.nbytes, series)
            series.append(end_s - begin_s)
            spans.append((begin_s, end_s))
        return spans


def _exposed_s(spans: list[tuple[float, float]], ready_s: float) -> float:
    """Time from the last gradient, `ready_s`, to the end of the last all-reduce begun by then.

    That is not always the last bucket's: all-reduces may not end in the order in which they
    started.
    """
    return max(0.0, max(end_s for begin_s, end_s in spans if begin_s <= ready_s) - ready_s)


def _covered_s(spans: list[tuple[float, float]]) -> float:
    """Time with at least one all-reduce in progress; `spans` are sorted by their start."""
    total_s = covered_s = 0.0
    for begin_s, end_s in spans:
        total_s += max(0.0, end_s - max(begin_s, covered_s))
        covered_s = max(covered_s, end_s)
    return total_s
