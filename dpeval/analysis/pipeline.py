"""The whole analysis: from records to tables, figures, a report and a verdict."""

from __future__ import annotations

import dataclasses
import glob
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.markup import escape

from dpeval import record
from dpeval.analysis.advice.advise import Advice, advise
from dpeval.analysis.advice.objectives import Terms
from dpeval.analysis.csv_import import runs as csv_runs
from dpeval.analysis.csv_import import text_table
from dpeval.analysis.csv_import.rows import Layout
from dpeval.analysis.frame import frame_cache, runs_frame
from dpeval.analysis.frame.columns import LISTS
from dpeval.analysis.frame.runs_frame import Loaded
from dpeval.analysis.report import summary, terminal, verdict
from dpeval.analysis.scaling import best_configuration, compare, efficiency, scaling_laws
from dpeval.analysis.scaling.best_configuration import Objective
from dpeval.analysis.scaling.compare import Change
from dpeval.analysis.scaling.findings import Findings, find
from dpeval.errors import ConfigError, SlowerError
from dpeval.stats.comparison import LARGEST_SPREAD, LEAST_FREEDOM
from dpeval.util.display.plural import counted, some_of
from dpeval.util.display.ranges import percent
from dpeval.util.display.tables import make_console


@dataclass(frozen=True)
class Options:
    """What the user requested."""

    objective: Objective = best_configuration.THROUGHPUT
    min_efficiency: float | None = None
    """Consider only configurations with at least this parallel efficiency."""
    pdf: bool = False
    """Also print the report to a PDF."""
    figures: bool = True
    """Draw figures and write the report; otherwise only tables."""
    terms: Terms = field(default_factory=Terms)
    """What the user told about the training to come."""
    as_json: bool = False
    """Print ``summary.json`` and nothing else to standard output."""
    spread: float | None = None
    """Standard deviation between runs, over the mean, where repetitions do not show it; None: the
    assumed one."""
    own_figures: tuple[str, ...] = ()
    """Import paths of additional figures (``package.module.function``)."""


def analyze(
    paths: Sequence[Path],
    out: Path | None = None,
    console: Console | None = None,
    options: Options | None = None,
) -> Path:
    """Analyse every record below `paths`; returns the output folder.

    Args:
        paths: folders with records.
        out: where to write; default: ``analysis`` below the first path.
        console: where to print the result.
        options: see :class:`Options`.

    Raises:
        ConfigError: a path does not exist or holds no readable record, or `out` cannot be
            written.
        DpevalError: a PDF was requested and could not be made.
    """
    options = options or Options()
    console = console or make_console(to_error=options.as_json)
    _check_there(paths)
    out = _made(out or (paths[0] if paths[0].is_dir() else paths[0].parent) / "analysis")
    loaded = runs_frame.load(paths, out / frame_cache.FILE_NAME)
    _check_readable(loaded, paths, console)
    return present(loaded, out, console, options)


def _check_there(paths: Sequence[Path]) -> None:
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path} does not exist; give the folder of a sweep")


def _check_readable(loaded: Loaded, paths: Sequence[Path], console: Console) -> None:
    if loaded.runs.empty:
        _report_problems(loaded, console)
        where = ", ".join(str(path) for path in paths)
        raise ConfigError(f"no readable metrics.json below {where}")


def _made(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be created ({error.strerror}); name a folder to write to with --out"
        ) from error
    return out


def present(loaded: Loaded, out: Path, console: Console, options: Options) -> Path:
    """Compute everything from `loaded`, write it and print the result; returns `out`.

    Args:
        loaded: the runs.
        out: an existing folder to write to.
        console: where to print.
        options: see :class:`Options`.

    Raises:
        OSError: `out` cannot be written.
        DpevalError: a PDF was requested and could not be made.
    """
    findings = find(loaded, options.objective, options.min_efficiency, options.spread)
    findings.summary.to_csv(out / "summary.csv", index=False)
    loaded.runs.drop(columns=LISTS).to_csv(out / "runs.csv", index=False)
    loaded.runs.to_parquet(out / "runs.parquet", index=False)
    advice = advise(findings, options.terms)
    doubts = [*verdict.claims(findings), *verdict.lacking(findings)]
    drawn = None
    if options.figures:
        drawn, doubts = _illustrate(findings, advice, out, options)
    summed = summary.summarise(findings, advice, doubts)
    summary.write(summed, out / summary.FILE_NAME)
    if options.as_json:
        print(summary.as_json(summed))
        return out
    for part in terminal.end_of_sweep(findings, advice, doubts):
        console.print(part)
    _report_problems(loaded, console)
    if drawn is not None:
        console.print(escape(f"report: {drawn}"))
    if options.pdf:
        console.print(escape(f"report as PDF: {out / PDF_NAME}"))
    console.print(escape(f"tables: {out / 'summary.csv'}, {out / summary.FILE_NAME}"))
    return out


PDF_NAME = "report.pdf"
_MOST_PROBLEMS = 20


def _report_problems(loaded: Loaded, console: Console) -> None:
    for problem in loaded.problems[:_MOST_PROBLEMS]:
        console.print(escape(f"skipped: {problem}"), style="yellow")
    more = len(loaded.problems) - _MOST_PROBLEMS
    if more > 0:
        console.print(f"skipped: {more} more, listed in summary.json", style="yellow")


def _illustrate(
    findings: Findings, advice: list[Advice], out: Path, options: Options
) -> tuple[Path, list[str]]:
    """Draw the figures and write the report; returns the report and all doubts.

    Args:
        findings: the results.
        advice: what follows from them.
        out: an existing folder.
        options: see :class:`Options`.
    """
    # Late: matplotlib takes a second to import, and tables alone do not need it.
    from dpeval.analysis import figures
    from dpeval.analysis.report import cautions, first_screen, html_report

    models = figures.Models(
        factors=efficiency.table(findings.waterfalls),
        laws=scaling_laws.bands(findings.curves, findings.points),
    )
    figure_data = figures.FigureData.of(findings.loaded.runs, findings.summary, models)
    drawn = figures.draw_all(
        figure_data, out, [figures.find_plot(path) for path in options.own_figures]
    )
    # Series may share a baseline and hence sentences about it.
    doubts = list(
        dict.fromkeys(
            [
                *verdict.claims(findings),
                *cautions.cautions(figure_data),
                *verdict.lacking(findings),
            ]
        )
    )
    page = html_report.write(
        html_report.ReportData(
            figure_data=figure_data,
            figures=drawn,
            folder=out,
            verdict=verdict.sentences(findings, advice),
            screens=first_screen.screens(findings, advice),
            cautions=doubts,
            problems=findings.loaded.problems,
            differences=findings.loaded.differences,
        )
    )
    if options.pdf:
        html_report.to_pdf(page, out / PDF_NAME)
    return page, doubts


def compare_sweeps(
    before: Path,
    after: Path,
    out: Path | None,
    allowed: float | None,
    spread: float | None = None,
) -> None:
    """Compare the second sweep with the first; print the result and write ``comparison.csv``.

    Args:
        before, after: folders with records.
        out: where to write; default: ``analysis`` below `after`.
        allowed: how much slower the second may be, as a share; None: no gate.
        spread: standard deviation between runs, over the mean, where repetitions do not show it;
            None: the assumed one.

    Raises:
        ConfigError: a folder does not exist, or nothing in both can be compared.
        SlowerError: a configuration is slower than allowed, or failed in `after` alone.
    """
    console, sides = make_console(), []
    for path in (before, after):
        _check_there([path])
        loaded = runs_frame.load([path])
        _check_readable(loaded, [path], console)
        _report_problems(loaded, console)
        sides.append(loaded.runs)
    found = compare.compare(sides[0], sides[1], allowed or 0.0, spread or LARGEST_SPREAD)
    out = _made(out or (after if after.is_dir() else after.parent) / "analysis")
    compare.table(found).to_csv(out / "comparison.csv", index=False)
    console.print(terminal.changes(found))
    change = compare.machine_change(sides[0], sides[1])
    other = told_of_other_machine(compare.other_machine(*sides))
    for line in (*_compared(found, before, after, spread), *other, *told_of_machine(change)):
        console.print(escape(line), style="yellow" if line.startswith("caution") else None)
    console.print(f"table: {escape(str(out / 'comparison.csv'))}")
    if not any(change.status == ("ok", "ok") or change.is_lost for change in found):
        raise ConfigError(f"no configuration was measured in both {before} and {after}")
    if allowed is not None and any(change.is_slower for change in found):
        raise SlowerError(_slower(found, before, after, allowed))


def _compared(
    found: Sequence[Change], before: Path, after: Path, stated: float | None
) -> Iterator[str]:
    """What the comparison found, could have found, and left out."""
    tested = [change for change in found if change.status == ("ok", "ok")]
    if tested:
        changed = sum(change.is_different for change in tested)
        least = 1 - median(change.detectable for change in tested)
        yield (
            f"{some_of(changed, len(tested), 'configuration')} changed (family-wise error "
            f"{percent(compare.FAMILY_ERROR)}). A configuration that is {percent(least, 1)} slower "
            "is found with a probability of 80 %; more repetitions in both sweeps find smaller "
            "changes."
        )
    if any(change.is_assumed for change in tested):
        yield (
            f"A spread of {percent(LARGEST_SPREAD)} between runs is assumed"
            if stated is None
            else f"The spread between runs that was stated, {percent(stated, None)}, counts"
        ) + (
            " where both sweeps together "
            f"have fewer than {LEAST_FREEDOM + 2} runs of a configuration."
        )
    for path, side in ((before, 0), (after, 1)):
        alone = [one for one in found if one.is_alone and one.status[side] != "absent"]
        if alone:
            yield (
                f"caution: {counted(len(alone), 'configuration')} of {path} "
                f"{'has' if len(alone) == 1 else 'have'} no counterpart and "
                f"{'is' if len(alone) == 1 else 'are'} not compared; the table shows how the "
                "nearest one differs"
            )


def told_of_machine(change: float) -> Iterator[str]:
    """A caution if the machine's speed changed between two sweeps."""
    if abs(change) > compare.MACHINE_CHANGE:  # not where it is unknown
        yield (
            f"caution: the machine itself was {percent(abs(change))} "
            f"{'slower' if change > 0 else 'faster'} in the second sweep (reference work between "
            "steps), and with it every configuration; measure both again in turn"
        )


def told_of_other_machine(differing: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    """A caution if two sweeps ran on different machines."""
    if differing:
        said = "; ".join(f"{name}: {one}, then {two}" for name, (one, two) in differing.items())
        yield (
            f"caution: the sweeps ran on different machines ({said}), which may be all that differs"
        )


def _slower(found: Sequence[Change], before: Path, after: Path, allowed: float) -> str:
    """The result of the gate, in one line."""
    lost = sum(change.is_lost for change in found)
    slower = sum(change.is_slower for change in found) - lost
    parts = []
    if slower:
        which = some_of(slower, len(found), "configuration")
        verb = "are" if slower > 1 else "is"
        parts.append(f"{which} {verb} slower than in {before} by more than {percent(allowed, 1)}")
    if lost:
        which = some_of(lost, len(found), "configuration")
        parts.append(f"{which} failed in {after} but not in {before}")
    return "; ".join(parts)


def analyze_csv(paths: Sequence[Path], layout: Layout, out: Path | None, options: Options) -> Path:
    """Analyse tables of other programs; returns the output folder.

    Args:
        paths: CSV files, folders with some, or patterns.
        layout: how to read them.
        out: where to write; default: ``analysis`` beside the first file.
        options: see :class:`Options`.

    Raises:
        ConfigError: the files contain no run, or `out` cannot be written.
    """
    imported = csv_runs.read(paths, layout)
    console = make_console(to_error=options.as_json)
    for note in imported.notes:
        console.print(escape(note))
    if not imported.records:
        why = imported.problems[0] if imported.problems else "no row"
        raise ConfigError(f"{paths[0]} contains no run: {why}")
    out = _made(out or _beside(paths[0]) / "analysis")
    folder = out / text_table.OUR_RECORDS
    shutil.rmtree(folder, ignore_errors=True)
    made = [(run, folder / f"{at:06d}") for at, run in enumerate(imported.records)]
    for run, of_run in made:
        record.write(run, of_run / record.FILE_NAME, durable=False)
    loaded = runs_frame.of_records(made)
    loaded = dataclasses.replace(loaded, problems=[*imported.problems, *loaded.problems])
    _check_readable(loaded, paths, console)
    return present(loaded, out, console, options)


def _beside(path: Path) -> Path:
    """The folder that `path` names, or its last part without a pattern."""
    folder = path if path.is_dir() else path.parent
    while glob.has_magic(str(folder)):
        folder = folder.parent
    return folder
