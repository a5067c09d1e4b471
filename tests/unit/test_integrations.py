"""The meter within loops that belong to a library, without the libraries."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import dpeval
from dpeval.errors import ConfigError
from dpeval.integrations.metered import LibraryLoop
from dpeval.meter.loop import MeteredLoop
from tests.unit.test_meter import Host, Training, loader


class Loader:
    """A library's loader, whose first batch costs more than another."""

    def __init__(self, host: Host, batches: int) -> None:
        self._host, self._batches = host, batches

    def __iter__(self) -> Iterator[int]:
        self._host.device.wait(0.25)
        yield from loader(self._host, self._batches)

    @property
    def __class__(self) -> Any:  # as Accelerate's loaders do
        return int

    @__class__.setter
    def __class__(self, value: Any) -> None:
        raise AttributeError("no setter")


class Fetcher:
    """A library's fetcher, which knows when its last batch is fetched."""

    def __init__(self, host: Host, batches: int) -> None:
        self._host, self._batches = host, batches
        iter(self)

    def __iter__(self) -> Fetcher:
        self._iterator = loader(self._host, self._batches)
        self.fetched = 0
        return self

    def __next__(self) -> int:
        number = next(self._iterator)
        self.fetched += 1
        return number

    @property
    def done(self) -> bool:
        return self.fetched >= self._batches


@pytest.fixture
def host() -> Host:
    return Host(enough=4)


@pytest.fixture
def meter(host: Host) -> Iterator[dpeval.Meter]:
    made = dpeval.Meter()
    made._loop = MeteredLoop(host, 32, "rows")
    yield made
    made._loop._hooks.remove()


def test_a_loader_is_metered_although_its_batches_are_fetched_beforehand(
    host: Host, meter: dpeval.Meter
) -> None:
    training, batches, loop = Training(host), Loader(host, 6), LibraryLoop(meter)
    loop.take_loader(batches)
    for _ in range(10):
        epoch, taken = iter(batches), []
        for _ in range(3):
            taken = list(itertools.islice(epoch, 2))
            for _ in taken:
                training.forward_backward()
            if taken:
                training.update()
        loop.end_epoch()
        host.device.wait(1000.0)
        if meter.is_over:
            break
    assert isinstance(batches, int)
    assert host.of("data") == pytest.approx([1.25, 1.0, 1.0, 1.25])
    assert host.of("forward") == pytest.approx([6.0] * 4)
    assert max(host.of("step")) == pytest.approx(1.25 + 16.0 + 3.0)


def test_a_fetcher_is_metered_over_epochs_that_it_ends_itself(
    host: Host, meter: dpeval.Meter
) -> None:
    training, fetcher, loop = Training(host), Fetcher(host, 3), LibraryLoop(meter)
    loop.take_fetcher(fetcher)
    loop.take_fetcher(fetcher)
    taken = []
    for epoch in range(10):
        if epoch:
            iter(fetcher)
        while not fetcher.done:
            try:
                taken.append(next(fetcher))
            except StopIteration:
                break
            training.forward_backward()
            training.update()
            loop.pause()
            host.device.wait(1000.0)
            if epoch:
                loop.resume()
        loop.end_epoch()
        host.device.wait(1000.0)
        if meter.is_over:
            break
    assert taken == [0, 1, 2, 0]
    assert isinstance(fetcher, Fetcher)
    assert host.of("data") == pytest.approx([0.5] * 4)
    assert host.of("step") == pytest.approx([11.5] * 4)


def test_outside_dpeval_a_loader_stays_as_it_is(host: Host) -> None:
    batches, fetcher = Loader(host, 2), Fetcher(host, 2)
    loop = LibraryLoop(dpeval.Meter())
    loop.take_loader(batches)
    loop.take_fetcher(fetcher)
    assert (type(batches), type(fetcher)) == (Loader, Fetcher)
    loop.pause()
    loop.end_epoch()


@pytest.mark.parametrize("library", ["lightning", "transformers"])
def test_a_library_that_is_missing_is_named_with_its_extra(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for hidden in ("lightning.pytorch", "lightning", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, hidden, None)
    module = f"dpeval.integrations.{library}"
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ConfigError, match=f"needs {library} .*'dpeval.{library}.'"):
        importlib.import_module(module)
