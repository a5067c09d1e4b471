"""What every tier shares: a data folder, the working directory, and skips that are counted."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says how loaded this machine is, not whether it holds.
settings.register_profile("dpeval", deadline=None)
settings.load_profile("dpeval")


@pytest.fixture(autouse=True)
def _in_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and a user's ./conf belong to the test, never to the clone."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def _signals_as_in_a_terminal() -> None:
    """Under nohup, or in the background of a script, programs begin with some signals ignored."""
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data that is generated once for all tests, or once for all sessions by DPEVAL_DATA."""
    given = os.environ.get("DPEVAL_DATA")
    return Path(given) if given else tmp_path_factory.mktemp("data")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name and count what this machine could not run; note what failed for ``scripts/test.sh``."""
    results = Path(os.environ.get("DPEVAL_TEST_RESULTS", ""))
    if results.is_file():
        reports = terminalreporter.stats.get("failed", []) + terminalreporter.stats.get("error", [])
        with results.open("a") as file:
            file.writelines(f"{report.nodeid}\n" for report in reports)
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.write_sep("-", f"{len(skipped)} tests could not run on this machine")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI nothing may be skipped."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("DPEVAL_NO_SKIP") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
