"""``python -m dpeval.analyze PATH…``: from records to curves and a recommendation."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from dpeval.analysis import (
    cache,
    choice,
    compare,
    efficiency,
    frame,
    laws,
    summary,
    terminal,
    verdict,
)
from dpeval.analysis.choice import Objective
from dpeval.analysis.findings import Findings, find
from dpeval.analysis.frame import Loaded
from dpeval.errors import ConfigError, DpevalError
from dpeval.tables import make_console


class SlowerError(DpevalError):
    """A sweep is slower than another by more than is allowed."""

    exit_status = 3


@dataclass(frozen=True)
class Options:
    """What the user asked of an analysis."""

    objective: Objective = choice.THROUGHPUT
    min_efficiency: float | None = None
    """Leave out of the choice what is below it."""
    pdf: bool = False
    """Also print the report to a PDF."""
    figures: bool = True
    """Draw figures and write the report, not the tables alone."""


def analyze(
    paths: Sequence[Path],
    out: Path | None = None,
    console: Console | None = None,
    options: Options | None = None,
) -> Path:
    """Analyse every record below `paths`; returns the folder of what was made.

    Args:
        paths: folders with records.
        out: where to write; default: ``analysis`` below the first path.
        console: where to say what was found.
        options: see :class:`Options`.

    Raises:
        ConfigError: a path does not exist or holds no readable record, or `out` cannot be
            written.
        DpevalError: a PDF was asked for and could not be made.
    """
    console = console or make_console()
    _check_there(paths)
    out = _made(out or (paths[0] if paths[0].is_dir() else paths[0].parent) / "analysis")
    loaded = frame.load(paths, out / cache.FILE_NAME)
    _check_readable(loaded, paths, console)
    return present(loaded, out, console, options or Options())


def _check_there(paths: Sequence[Path]) -> None:
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path} does not exist; give a folder that a sweep has written")


def _check_readable(loaded: Loaded, paths: Sequence[Path], console: Console) -> None:
    if loaded.runs.empty:
        _tell_problems(loaded, console)
        where = ", ".join(str(path) for path in paths)
        raise ConfigError(f"there is no readable metrics.json below {where}")


def _made(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be made ({error.strerror}); name a folder to write to with --out"
        ) from error
    return out


def present(loaded: Loaded, out: Path, console: Console, options: Options) -> Path:
    """Compute everything from `loaded`, write it into `out` and say it; returns `out`."""
    _tell_problems(loaded, console)
    findings = find(loaded, options.objective, options.min_efficiency)
    findings.summary.to_csv(out / "summary.csv", index=False)
    loaded.runs.to_csv(out / "runs.csv", index=False)
    loaded.runs.to_parquet(out / "runs.parquet", index=False)
    for table in terminal.tables(findings):
        console.print(table)
    if options.figures:
        _illustrate(findings, out, console, options)
    else:
        summary.write(summary.summarise(findings), out / summary.FILE_NAME)
        for sentence in (*verdict.sentences(findings), *verdict.claims(findings)):
            console.print(escape(sentence))
    names = ("summary.csv", "runs.csv", "runs.parquet", summary.FILE_NAME)
    console.print(escape(f"tables: {', '.join(str(out / name) for name in names)}"))
    return out


_MOST_PROBLEMS = 20


def _tell_problems(loaded: Loaded, console: Console) -> None:
    for problem in loaded.problems[:_MOST_PROBLEMS]:
        console.print(escape(f"left out: {problem}"), style="yellow")
    more = len(loaded.problems) - _MOST_PROBLEMS
    if more > 0:
        console.print(f"left out: {more} more, all in summary.json", style="yellow")


def _illustrate(findings: Findings, out: Path, console: Console, options: Options) -> None:
    """Figures, the report and the words."""
    from dpeval.analysis import figures, report, words  # matplotlib takes a second to import

    models = figures.Models(
        factors=efficiency.table(findings.waterfalls),
        laws=laws.bands(findings.curves, findings.points),
    )
    sheet = figures.Sheet.of(findings.loaded.runs, findings.pooled, models)
    drawn = figures.draw_all(sheet, out)
    for figure in drawn:
        if figure.drawn:
            console.print(escape(f"figure: {out / figure.stem}.png"))
        else:
            console.print(escape(f"not drawn: {figure.title} ({figure.why_not})"))
    said = verdict.sentences(findings)
    doubts = [*words.cautions(sheet), *verdict.lacking(findings)]
    cautions = [*verdict.claims(findings), *doubts]
    summary.write(summary.summarise(findings, cautions), out / summary.FILE_NAME)
    page = report.write(
        report.ReportData(
            sheet=sheet,
            figures=drawn,
            folder=out,
            verdict=said,
            cautions=cautions,
            problems=findings.loaded.problems,
            differences=findings.loaded.differences,
        )
    )
    for sentence in said:
        console.print(escape(sentence))
    for sentence in verdict.claims(findings):
        console.print(escape(f"to be explained: {sentence}"), style="yellow")
    for sentence in doubts:
        console.print(escape(f"not trustworthy: {sentence}"), style="yellow")
    if options.pdf:
        console.print(escape(f"report as PDF: {report.to_pdf(page, out / 'report.pdf')}"))
    console.print(escape(f"report: {page}"))


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    from dpeval.cli import run_main

    given = _parser().parse_args(arguments)
    options = Options(
        objective=choice.OBJECTIVES[given.objective],
        min_efficiency=given.min_efficiency,
        pdf=given.pdf,
        figures=not given.tables_only,
    )
    return run_main(lambda: _command(given, options))


def _command(given: argparse.Namespace, options: Options) -> None:
    if given.fail_if_slower is not None and not given.compare:
        raise ConfigError("--fail-if-slower needs --compare BEFORE AFTER")
    if given.compare:
        if given.paths or given.from_csv:
            raise ConfigError("--compare takes two folders and nothing beside them")
        before, after = given.compare
        compare_sweeps(before, after, given.out, given.fail_if_slower)
        return
    if given.from_csv:
        _from_csv(given, options)
        return
    if not given.paths:
        raise ConfigError("give a folder with records, as in: python -m dpeval.analyze outputs")
    analyze(given.paths, given.out, options=options)


def compare_sweeps(before: Path, after: Path, out: Path | None, allowed: float | None) -> None:
    """Print the second sweep against the first and keep it as ``comparison.csv``.

    Args:
        before, after: folders with records.
        out: where to write; default: ``analysis`` below `after`.
        allowed: how much slower the second may be, as a share; None: there is no gate.

    Raises:
        ConfigError: a folder does not exist, or nothing in both can be compared.
        SlowerError: a configuration is slower than allowed, or is measured no more.
    """
    console, sides = make_console(), []
    for path in (before, after):
        _check_there([path])
        loaded = frame.load([path])
        _check_readable(loaded, [path], console)
        _tell_problems(loaded, console)
        sides.append(loaded.runs)
    found = compare.compare(sides[0], sides[1], allowed or 0.0)
    out = _made(out or (after if after.is_dir() else after.parent) / "analysis")
    compare.table(found).to_csv(out / "comparison.csv", index=False)
    console.print(terminal.changes(found))
    tested = [change for change in found if change.status == ("ok", "ok")]
    changed = sum(change.is_different for change in tested)
    console.print(
        f"{changed} of {len(tested)} configurations changed (family-wise error "
        f"{compare.FAMILY_ERROR:.0%}); table: {escape(str(out / 'comparison.csv'))}"
    )
    if not tested and not any(change.is_lost for change in found):
        raise ConfigError(f"no configuration was measured in both {before} and {after}")
    slower = [change for change in found if change.is_slower]
    if allowed is not None and slower:
        raise SlowerError(
            f"{len(slower)} of {len(found)} configurations are slower than {before} by more than "
            f"{allowed:.1%}, or are measured no more"
        )


def _from_csv(given: argparse.Namespace, options: Options) -> None:
    from dpeval import record
    from dpeval.analysis import csv_adapter

    if given.paths:
        raise ConfigError("--from-csv takes all files after it; give no other PATH beside it")
    if not given.columns:
        raise ConfigError(
            "--from-csv needs --columns, as in --columns size=num_devices,batch_size=batch,"
            "rank=rank,loading_time=data_s,computation_time=compute_s"
        )
    mapped = csv_adapter.Mapped(
        csv_adapter.parse_columns(given.columns), given.per_rank_batch, given.hardware
    )
    records, problems = csv_adapter.read(given.from_csv, mapped)
    out = _made(given.out or given.from_csv[0].parent / "analysis")
    folder = out / "records-from-csv"
    shutil.rmtree(folder, ignore_errors=True)
    for number, run in enumerate(records):
        record.write(run, folder / f"{number:06d}" / record.FILE_NAME)
    console = make_console()
    if not records:
        said = problems[0] if problems else "no row"
        raise ConfigError(f"no run could be made from {given.from_csv[0]}: {said}")
    loaded = frame.load([folder])
    loaded = dataclasses.replace(loaded, problems=[*problems, *loaded.problems])
    present(loaded, out, console, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dpeval.analyze", description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="folders with records")
    parser.add_argument("--out", type=Path, help="where to write; default: PATH/analysis")
    parser.add_argument("--pdf", action="store_true", help="also print the report to a PDF")
    parser.add_argument("--tables-only", action="store_true", help="no figures and no report")
    parser.add_argument(
        "--objective",
        choices=choice.OBJECTIVES,
        default=choice.THROUGHPUT.name,
        help="what the best configuration is best at (default: %(default)s)",
    )
    parser.add_argument(
        "--min-efficiency",
        type=_share,
        metavar="SHARE",
        help="choose among configurations with at least this parallel efficiency (0.8 or 80%%)",
    )
    gate = parser.add_argument_group("comparison")
    gate.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("BEFORE", "AFTER"),
        help="throughput of the second sweep against the first, configuration by configuration",
    )
    gate.add_argument(
        "--fail-if-slower",
        type=_share,
        metavar="SHARE",
        help="exit with status 3 if any is slower by more than this (0.03 or 3%%)",
    )
    foreign = parser.add_argument_group("files of other programs")
    foreign.add_argument(
        "--from-csv", nargs="+", type=Path, metavar="FILE", help="CSV files, one row per rank"
    )
    foreign.add_argument(
        "--columns",
        metavar="NAME=FIELD,…",
        help="which column is what, e.g. size=num_devices,rank=rank,batch_size=batch,"
        "loading_time=data_s,computation_time=compute_s (times in s)",
    )
    foreign.add_argument(
        "--per-rank-batch",
        choices=("floor", "even", "nominal"),
        default="floor",
        help="how a global batch was shared: floor B//N each, evenly, or nominal: the batch is "
        "each rank's own (default: %(default)s)",
    )
    foreign.add_argument("--hardware", choices=("cpu", "gpu"), default="cpu")
    return parser


def _share(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 10:
        raise argparse.ArgumentTypeError(f"'{text}' is not a share; give 0.8 or 80%")
    return value


if __name__ == "__main__":
    sys.exit(main())
