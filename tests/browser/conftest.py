"""A real headless Chromium and one report to look at; skipped by name where there is none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Page, Playwright, sync_playwright

from dpeval import record
from dpeval.analysis.pipeline import analyze
from dpeval.analysis.report.html_report import find_browser
from dpeval.record.memory import Budget, Forecast
from dpeval.record.schema import Cause, MemoryRecord, Record, Warning
from tests.records import make_record

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
GIB = 2**30
HOSTILE = '<img src=x onerror="window.hacked=1"></script><script>window.hacked=1</script>$\\frac{'


def study() -> list[Record]:
    """A CPU study with a dip, a GPU study with a cell that does not fit, one hostile record."""
    runs = [
        make_record(n, 32, (1.0 if n < 7 else 1.7) / n**0.8, repetition=r, seed=r, noise=0.02)
        for n in (1, 2, 4, 8)
        for r in range(2)
    ]
    runs += [
        make_record(n, b, b / 300 / n**0.9, hardware="gpu")
        for n in (1, 2, 3)
        for b in (16, 64, 128)
        if (n, b) != (1, 128)
    ]
    memory = MemoryRecord(
        forecast=Forecast(total_bytes=int(15.9 * GIB), parts={}, source="model"),
        budget=Budget(bytes=int(10.8 * GIB), source="device"),
    )
    cause = Cause(kind="memory", message="needs more than there is")
    runs.append(make_record(1, 128, hardware="gpu", status="oom", cause=cause, memory=memory))
    config = {**make_record(2).config, "model": {"name": HOSTILE}}
    runs.append(
        make_record(
            2, 32, 0.7, config=config, study=HOSTILE, command=HOSTILE,
            warnings=[Warning(code="plan", text=HOSTILE)],
        )
    )  # fmt: skip
    return runs


@pytest.fixture(scope="session")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of :func:`study`."""
    folder = tmp_path_factory.mktemp("study")
    for number, run in enumerate(study()):
        record.write(run, folder / str(number) / "metrics.json")
    return analyze([folder], folder / "analysis") / "report.html"


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    if find_browser() is None:
        pytest.skip("chromium is not installed")
    with sync_playwright() as running:
        yield running


@dataclass
class Seen:
    """What a page did that a report must not do."""

    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


Opener = Callable[..., AbstractContextManager[tuple[Page, Seen]]]


@pytest.fixture
def opened(playwright: Playwright, tmp_path: Path) -> Opener:
    """Open a report in a browser of its own, with an empty profile."""

    @contextmanager
    def open_page(
        path: Path, width: int = 1280, height: int = 900, scheme: str = "light"
    ) -> Iterator[tuple[Page, Seen]]:
        seen = Seen()
        context = playwright.chromium.launch_persistent_context(
            tmp_path / f"profile-{width}-{scheme}",
            executable_path=find_browser(),
            args=FLAGS,
            viewport={"width": width, "height": height},
            color_scheme="dark" if scheme == "dark" else "light",
        )
        try:
            page = context.new_page()
            page.on("console", lambda message: seen.said.append(message.text))
            page.on("pageerror", lambda error: seen.said.append(str(error)))
            page.on("request", lambda request: seen.asked.append(request.url))
            page.goto(path.as_uri())
            page.wait_for_selector("#explore[data-ready]", timeout=60_000)
            yield page, seen
        finally:
            context.close()

    return open_page


@pytest.fixture(scope="session")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: ``$DPEVAL_SHOTS`` to keep them."""
    folder = Path(os.environ.get("DPEVAL_SHOTS", tmp_path_factory.mktemp("shots")))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
