"""``python -m dpeval.analyze PATH…``: from records to a table, figures and a CSV file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dpeval.analysis import figures, frame, pool, report, words
from dpeval.errors import ConfigError
from dpeval.tables import make_console, make_table

HEADINGS = (
    "devices", "batch", "img/s", "± 95 %", "speedup", "efficiency", "exposed comm.", "runs",
)  # fmt: skip


def analyze(
    paths: list[Path],
    out: Path | None = None,
    console: Console | None = None,
    *,
    pdf: bool = False,
) -> Path:
    """Analyse every record below `paths`; returns the folder of what was made.

    Args:
        paths: folders with records.
        out: where to write; default: ``analysis`` below the first path.
        console: where to say what was found.
        pdf: also print the report to a PDF.

    Raises:
        ConfigError: a path does not exist or holds no readable record.
        DpevalError: a PDF was asked for and could not be made.
    """
    console = console or make_console()
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path} does not exist; give a folder that a sweep has written")
    loaded = frame.load(paths)
    for problem in loaded.problems:
        console.print(escape(f"left out: {problem}"), style="yellow")
    if loaded.runs.empty:
        where = ", ".join(str(path) for path in paths)
        raise ConfigError(f"there is no readable metrics.json below {where}")
    out = out or (paths[0] if paths[0].is_dir() else paths[0].parent) / "analysis"
    out.mkdir(parents=True, exist_ok=True)
    pooled = pool.pool(loaded.runs)
    pooled.to_csv(out / "summary.csv", index=False)
    loaded.runs.to_csv(out / "runs.csv", index=False)
    sheet = figures.Sheet.of(loaded.runs, pooled)
    drawn = figures.draw_all(sheet, out)
    for series, part in pooled.groupby("series", sort=False):
        console.print(table(part, str(series)))
    for figure in drawn:
        if figure.drawn:
            console.print(escape(f"figure: {out / figure.stem}.png"))
        else:
            console.print(escape(f"not drawn: {figure.title} ({figure.why_not})"))
    console.print(escape(f"tables: {out / 'summary.csv'}, {out / 'runs.csv'}"))
    page = report.write(
        report.ReportData(
            sheet=sheet,
            figures=drawn,
            folder=out,
            verdict=words.verdict(sheet),
            cautions=words.cautions(sheet),
            problems=loaded.problems,
        )
    )
    for sentence in words.verdict(sheet):
        console.print(escape(sentence))
    if pdf:
        console.print(escape(f"report as PDF: {report.to_pdf(page, out / 'report.pdf')}"))
    console.print(escape(f"report: {page}"))
    return out


def table(pooled: pd.DataFrame, series: str) -> Table:
    """One row per configuration of a series, with speedup over one device where it was measured."""
    made = make_table(escape(series), dict.fromkeys(HEADINGS, "right"))
    for item in pooled.sort_values(["hardware", "scaling", "batch", "num_devices"]).to_dict(
        "records"
    ):
        unit = "GPU" if item["hardware"] == "gpu" else "core"
        devices = f"{item['num_devices']} {unit}{'s' * (item['num_devices'] != 1)}"
        batch = f"{item['batch']}{' each' * (item['scaling'] == 'weak')}"
        if not item["ok"]:
            reason = (
                f"{item['status']} ({item['cause_kind']})" if item["cause_kind"] else item["status"]
            )
            made.add_row(devices, batch, escape(reason), *["–"] * 4, str(item["runs"]))
            continue
        speedup = _speedup(pooled, item)
        made.add_row(
            devices + "*" * bool(item["oversubscribed"]),
            batch,
            f"{item['img_per_s']:.2f}{'' if item['steady'] else ' (unsteady)'}",
            f"{(item['high'] - item['low']) / 2:.2f}",
            f"{speedup:.2f}" if speedup else "–",
            f"{speedup / item['num_devices']:.0%}" if speedup else "–",
            f"{item['comm_exposed_s'] / item['step_s']:.1%}",
            f"{item['ok']}/{item['runs']}",
        )
    return made


def _speedup(pooled: pd.DataFrame, item: dict[str, Any]) -> float | None:
    """Throughput over that of one device at the same batch; None where that was not measured."""
    base = pooled[
        (pooled["num_devices"] == 1)
        & (pooled["batch"] == item["batch"])
        & (pooled["hardware"] == item["hardware"])
        & (pooled["scaling"] == item["scaling"])
        & (pooled["ok"] > 0)
    ]
    if base.empty:
        return None
    return float(item["img_per_s"]) / float(base["img_per_s"].iloc[0])


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    from dpeval.cli import run_main

    parser = argparse.ArgumentParser(prog="python -m dpeval.analyze", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="folders with records")
    parser.add_argument("--out", type=Path, help="where to write; default: PATH/analysis")
    parser.add_argument("--pdf", action="store_true", help="also print the report to a PDF")
    given = parser.parse_args(arguments)

    def command() -> None:
        analyze(given.paths, given.out, pdf=given.pdf)

    return run_main(command)


if __name__ == "__main__":
    sys.exit(main())
