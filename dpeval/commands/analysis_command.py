"""The command line of ``dpeval.analyze``."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from dpeval.analysis import pipeline
from dpeval.analysis.advice.objectives import Terms
from dpeval.analysis.csv_import import fields
from dpeval.analysis.csv_import.rows import Layout
from dpeval.analysis.csv_import.settle import SHARES
from dpeval.analysis.pipeline import Options
from dpeval.analysis.scaling import best_configuration
from dpeval.commands.main import run_main
from dpeval.errors import ConfigError

DEFAULT_OBJECTIVE = best_configuration.THROUGHPUT.name
OF_REPORT = (
    "objective", "min_efficiency", "samples", "price_per_device_hour", "json", "pdf",
    "tables_only", "figure",
)  # fmt: skip
OF_FIGURES = ("pdf", "figure")
OF_CSV = ("columns", "set", "time_unit", "per_rank_batch", "hardware")


def run(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    given = _parser().parse_args(arguments)
    options = Options(
        objective=best_configuration.OBJECTIVES[given.objective or DEFAULT_OBJECTIVE],
        min_efficiency=given.min_efficiency,
        terms=Terms(given.samples, given.price_per_device_hour),
        as_json=given.json,
        pdf=given.pdf,
        figures=not given.tables_only,
        own_figures=tuple(given.figure),
        spread=given.spread,
    )
    return run_main(lambda: _command(given, options))


def _command(given: argparse.Namespace, options: Options) -> None:
    _refuse_without_effect(given)
    if given.compare:
        if given.paths or given.from_csv:
            raise ConfigError("--compare takes two folders and no other PATH")
        before, after = given.compare
        pipeline.compare_sweeps(before, after, given.out, given.fail_if_slower, given.spread)
        return
    if given.from_csv:
        pipeline.analyze_csv(given.from_csv, _layout(given), given.out, options)
        return
    if not given.paths:
        raise ConfigError("give a folder with records, as in: python -m dpeval.analyze outputs")
    pipeline.analyze(given.paths, given.out, options=options)


def _refuse_without_effect(given: argparse.Namespace) -> None:
    """Reject options that would have no effect, because their user expects one."""
    refused = [
        (("fail_if_slower",), not given.compare, "needs --compare BEFORE AFTER"),
        (OF_REPORT, bool(given.compare), "has no effect with --compare"),
        (OF_FIGURES, given.tables_only, "has no effect with --tables-only"),
        (OF_CSV, not given.from_csv, "needs --from-csv FILE"),
    ]
    for names, is_refused, why in refused:
        for name in names:
            value = getattr(given, name)
            if is_refused and not (value is None or value is False or value == []):
                raise ConfigError(f"--{name.replace('_', '-')} {why}")


def _layout(given: argparse.Namespace) -> Layout:
    if given.paths:
        raise ConfigError("--from-csv takes all files that follow it; give no other PATH")
    constants = fields.parse_constants(given.set or "")
    columns = None
    if given.columns:
        columns = fields.parse(given.columns, given.time_unit, constants)
    return Layout(columns, given.per_rank_batch, given.hardware, given.time_unit, constants)


EPILOG = """\
examples:
  python -m dpeval.analyze outputs/default
  python -m dpeval.analyze outputs --objective efficient --min-efficiency 80%
  python -m dpeval.analyze --compare outputs/before outputs/after --fail-if-slower 3%
  python -m dpeval.analyze --from-csv runs.csv"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dpeval.analyze",
        description="Turn records into a recommendation, figures and a report.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="folders with records")
    parser.add_argument("--out", type=Path, help="output folder (default: PATH/analysis)")
    parser.add_argument("--pdf", action="store_true", help="also write the report as a PDF")
    parser.add_argument(
        "--tables-only", action="store_true", help="draw no figures and write no report"
    )
    parser.add_argument(
        "--figure",
        action="append",
        default=[],
        metavar="PACKAGE.MODULE.FUNCTION",
        help="also draw your own figure: a function that takes the data of the figures and "
        "returns a dpeval.analysis.figures.Drawing (may be repeated)",
    )
    parser.add_argument(
        "--objective",
        choices=best_configuration.OBJECTIVES,
        help=f"what makes a configuration the best (default: {DEFAULT_OBJECTIVE})",
    )
    parser.add_argument(
        "--min-efficiency",
        type=_share,
        metavar="SHARE",
        help="consider only configurations with at least this parallel efficiency (0.8 or 80%%)",
    )
    parser.add_argument(
        "--samples",
        type=_positive,
        metavar="N",
        help="samples in the whole training; adds its time, device-hours and energy",
    )
    parser.add_argument(
        "--price-per-device-hour",
        type=_positive,
        metavar="PRICE",
        help="in any currency; adds the price of an epoch and of the training",
    )
    parser.add_argument(
        "--spread",
        type=_spread,
        metavar="SHARE",
        help="how much runs of one configuration differ on this machine, as a standard deviation "
        "(0.03 or 3%%), for where too few repetitions show it (default: 2%%, with --compare 5%%)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print summary.json to standard output, for scripts"
    )
    gate = parser.add_argument_group("comparison")
    gate.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("BEFORE", "AFTER"),
        help="compare the throughput of the second sweep with that of the first, per configuration",
    )
    gate.add_argument(
        "--fail-if-slower",
        type=_loss,
        metavar="SHARE",
        help="exit with status 3 if any configuration is slower by more than this (0.03 or 3%%)",
    )
    foreign = parser.add_argument_group("files of other programs")
    foreign.add_argument(
        "--from-csv",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="tables with a row per rank or per run: files, folders, or quoted patterns",
    )
    foreign.add_argument(
        "--columns",
        metavar="NAME=FIELD,…",
        help="what each column means, e.g. size=num_devices,rank=rank,batch_size=global_batch,"
        "'time (ms)=step'; default: guessed from their names and printed. Fields: "
        f"{', '.join(fields.FIELDS)}; times also as step_ms, or as step in the unit that the "
        "column's name gives",
    )
    foreign.add_argument(
        "--set",
        metavar="FIELD=VALUE,…",
        help="values that apply to all rows and are in no column, e.g. global_batch=256,model=bert",
    )
    foreign.add_argument(
        "--time-unit",
        choices=fields.TIME_UNITS,
        help="unit of times whose column does not name one (default: s)",
    )
    foreign.add_argument(
        "--per-rank-batch",
        choices=SHARES,
        help="how a global batch B was divided among N ranks: floor (B//N each), evenly, or "
        "nominal: the batch is that of each rank (default: floor)",
    )
    foreign.add_argument(
        "--hardware", choices=("cpu", "gpu"), help="default: guessed from the columns, else cpu"
    )
    return parser


def _positive(text: str) -> float:
    try:
        value = float(text.replace("_", "").replace(",", ""))
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number, as in 90e6 or 2.5")
    return value


def _share(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a share from 0 to 1; give 0.1 or 10% for ten percent"
        )
    return value


def _spread(text: str) -> float:
    value = _share(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(
            f"runs differ by more than 0 and less than 100 %, not by '{text}'; give 0.03 or 3%"
        )
    return value


def _loss(text: str) -> float:
    value = _share(text)
    if value == 1:
        raise argparse.ArgumentTypeError(
            f"a throughput cannot fall by {text}; give less, as in 0.03 or 3%"
        )
    return value
