"""The meter within a training loop that belongs to a library."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, cast

from dpeval.meter.meter import Meter


class LibraryLoop:
    """Routes the batches of a library's training loop through a meter.

    The library holds its loader already and offers no way to pass another. So the loader itself
    gets a class of its own, derived from its class: a wrapper would not be an instance of what the
    library expects. Callbacks come too late for this: some libraries fetch all batches of a step,
    or copy them to the device, before they tell a callback that the step begins.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._steps: Generator[Any] | None = None
        self._pause = contextlib.ExitStack()

    def take_loader(self, loader: Any) -> None:
        """Meter every ``iter(loader)`` from now on."""
        base = type(loader)

        def start(taken: Any) -> Iterator[Any]:
            return self._start(_in_first_fetch(lambda: base.__iter__(taken)))

        self._take(loader, __iter__=start)

    def take_fetcher(self, fetcher: Any) -> None:
        """Meter every ``next(fetcher)`` from now on; ``iter(fetcher)`` starts an epoch, as ever."""
        base = type(fetcher)

        def start(taken: Any) -> Any:
            self.end_epoch()
            return base.__iter__(taken)

        def fetch(taken: Any) -> Any:
            if self._steps is None:
                self._start(_until_it_stops(lambda: base.__next__(taken)))
            return next(cast(Generator[Any], self._steps))

        self._take(fetcher, __iter__=start, __next__=fetch)

    def end_epoch(self) -> None:
        """End the step that the library's last update belongs to.

        Libraries need not fetch once more to know that an epoch ends; what they do between two
        epochs belongs to no step.
        """
        self.resume()
        if self._steps is not None:
            self._steps.close()
            self._steps = None

    def pause(self) -> None:
        """Exclude the time from now on from the step, until :meth:`resume` or the next fetch."""
        self.resume()
        self._pause.enter_context(self._meter.pause())

    def resume(self) -> None:
        self._pause.close()

    def _take(self, taken: Any, **methods: Callable[..., Any]) -> None:
        if self._meter.is_active and not getattr(taken, "_is_metered", False):
            base = type(taken)
            metered = type(base.__name__, (base,), {**methods, "_is_metered": True})
            # Not by assignment: Accelerate's loaders pretend to be of another class.
            vars(object)["__class__"].__set__(taken, metered)

    def _start(self, batches: Iterator[Any]) -> Iterator[Any]:
        self.end_epoch()
        self._steps = self._metered(batches)
        return self._steps

    def _metered(self, batches: Iterator[Any]) -> Generator[Any]:
        # An active meter's steps are a generator; closing it ends the step.
        with contextlib.closing(cast(Generator[Any], self._meter.steps(batches))) as steps:
            for batch in steps:
                yield batch
                self.resume()


def _until_it_stops(fetch: Callable[[], Any]) -> Iterator[Any]:
    while True:
        try:
            batch = fetch()
        except StopIteration:
            return
        yield batch


def _in_first_fetch(start: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """Start an iteration with its first batch: what that costs is part of the step."""
    yield from start()
