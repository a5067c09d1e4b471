"""One self-contained HTML file from an analysis, and its PDF.

The page is self-contained: figures, charts, plotly.js (compressed) and styles. Its content security
policy blocks all requests and all scripts but its own two, which it allows by hash. The template
escapes text from records, so a record can add text to the page and nothing else.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from dpeval.analysis.figures import FigureData, FigureInfo
from dpeval.analysis.report import interactive_charts, report_tables
from dpeval.analysis.report.first_screen import Screen
from dpeval.errors import DpevalError

FILE_NAME = "report.html"
_TWINS = {
    "throughput": ("throughput_cpu", "throughput_gpu"),
    "efficiency": ("efficiency",),
    "components": ("time_components",),
    "memory": ("memory",),
}
"""Figures that show what an interactive chart shows: for paper, for files, without a script."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_PDF_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class ReportData:
    """The contents of a report."""

    figure_data: FigureData
    figures: Sequence[FigureInfo]
    folder: Path
    """Contains the figures; the report is written here."""
    verdict: Sequence[str]
    """Sentences, the most important first."""
    screens: Sequence[Screen] = ()
    """What to use and what to try, one for each family, the most important first."""
    cautions: Sequence[str] = ()
    """What makes results less trustworthy."""
    problems: Sequence[str] = ()
    """One line for each record that could not be read."""
    differences: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Per series, the fields in which series differ; empty: found from `runs`."""


def write(data: ReportData) -> Path:
    """Write ``report.html`` into the analysis' folder; returns its path.

    Raises:
        OSError: the folder cannot be written, or a figure cannot be read.
    """
    page = render(data)
    path = data.folder / FILE_NAME
    path.write_text(page, encoding="utf-8")
    return path


def render(data: ReportData) -> str:
    """The page as text."""
    # A serial run that is the baseline of several series is still one run.
    runs = data.figure_data.runs.drop_duplicates("path")
    groups = interactive_charts.groups(data.figure_data)
    script, plotly = _asset("report.js"), _plotly()
    environment = jinja2.Environment(
        loader=jinja2.BaseLoader(),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.from_string(_asset("report.html.j2")).render(
        title=_title(runs),
        policy=_policy(script, plotly),
        style=Markup(_asset("report.css")),
        script=Markup(script),
        plotly=_packed(plotly) if groups else "",
        plotly_hash=_hash(plotly),
        charts=htmlsafe_json_dumps([_plain(group) for group in groups]),
        groups=groups,
        data=data,
        runs=runs,
        screens=data.screens,
        figures=[(figure, _picture(data.folder, figure)) for figure in data.figures],
        twins=_TWINS if groups else {},
        drawn={figure.stem for figure in data.figures if figure.drawn},
        facts=report_tables.facts(runs),
        table=report_tables.rows(runs),
        columns=report_tables.columns(runs),
        most_rows=report_tables.MOST_ROWS,
        series=report_tables.series(runs, data.differences),
        warnings=report_tables.warnings(runs),
        commands=report_tables.commands(runs),
    )


def _title(runs: pd.DataFrame) -> str:
    names = [str(name)[:60] for name in dict.fromkeys(runs["study"])]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"dpeval: {shown}" if shown else "dpeval"


def _plain(group: interactive_charts.Group) -> dict[str, Any]:
    return {
        "label": group.label,
        "charts": {chart.key: interactive_charts.finite(chart.spec) for chart in group.charts},
    }


def _picture(folder: Path, figure: FigureInfo) -> str:
    """The smaller of a figure's vector and pixel forms, as a data address."""
    if not figure.drawn:
        return ""
    forms = {
        "image/svg+xml": (folder / f"{figure.stem}.svg").read_bytes(),
        "image/png": (folder / f"{figure.stem}.png").read_bytes(),
    }
    kind = min(forms, key=lambda name: len(forms[name]))
    return f"data:{kind};base64,{base64.b64encode(forms[kind]).decode()}"


@cache
def _asset(name: str) -> str:
    return (resources.files("dpeval.analysis.report") / "templates" / name).read_text(
        encoding="utf-8"
    )


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs  # half a second to import

    return str(get_plotlyjs())


@cache
def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _policy(*scripts: str) -> str:
    allowed = " ".join(f"'{_hash(script)}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def find_browser() -> str | None:
    """A Chromium on the search path, for :func:`to_pdf`."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def to_pdf(page: Path, pdf: Path) -> Path:
    """Print `page` to `pdf` with a headless Chromium; returns `pdf`.

    Raises:
        DpevalError: there is no Chromium, or it did not print.
    """
    browser = find_browser()
    if browser is None:
        raise DpevalError(
            f"cannot print a PDF: none of {', '.join(BROWSERS)} is on PATH; install Chromium, or "
            f"print {page} from any browser"
        )
    with tempfile.TemporaryDirectory(prefix="dpeval-pdf-", ignore_cleanup_errors=True) as profile:
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={profile}", "--no-pdf-header-footer",
            f"--print-to-pdf={pdf.resolve()}", page.resolve().as_uri(),
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_PDF_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise DpevalError(
                f"{browser} did not print {page} within {_PDF_TIMEOUT_S:.0f} s; "
                "print it from any browser"
            ) from error
    if done.returncode or not pdf.exists():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DpevalError(f"{browser} could not print {page}: {last[:200]}")
    return pdf
