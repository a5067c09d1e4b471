"""The command line of ``dpeval.data``: prepare, verify, list and delete data."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from dpeval.commands.hydra_app import compose
from dpeval.commands.main import run_main
from dpeval.data import prepare
from dpeval.data.sources import inventory
from dpeval.data.sources.progress import Advance, Report, amount
from dpeval.data.sources.source import Source, store
from dpeval.errors import DataError
from dpeval.util.display.plural import counted
from dpeval.util.display.tables import is_roomy, make_console, make_table

EPILOG = """examples:
  python -m dpeval.data prepare dataset=imagenette_160
  python -m dpeval.data prepare dataset=imagenette_like dataset.loader=resident
  python -m dpeval.data verify dataset=image_folder dataset.root=PICTURES dataset.num_classes=3
  python -m dpeval.data list
  python -m dpeval.data delete imagenette2-160.tgz

DPEVAL_DATA names the folder in which dpeval keeps data (default: ~/.cache/dpeval)."""


class ConsoleReport:
    """Prints lines, and draws progress bars on a terminal."""

    def __init__(self) -> None:
        self._console = make_console()

    def __call__(self, line: str) -> None:
        self._console.print(line, markup=False)

    @contextmanager
    def bar(self, what: str, total: int, unit: str) -> Iterator[Advance]:
        """Show a progress bar; see :class:`dpeval.data.sources.progress.Bars`.

        Args:
            what: the task, as the user reads it.
            total: units at which the task is complete.
            unit: ``B`` for bytes, or a noun in the plural.
        """
        self(what)
        count = DownloadColumn() if unit == "B" else MofNCompleteColumn()
        columns = (BarColumn(), TextColumn("{task.percentage:3.0f} %"), count)
        with Progress(*columns, TimeRemainingColumn(), console=self._console) as display:
            task = display.add_task(what, total=total)
            yield lambda count: display.advance(task, count)


def run() -> int:
    """Run the command; returns its exit status."""
    arguments = _parser().parse_args()
    console_report = ConsoleReport()
    # Without a terminal, pass a plain function: it has no `bar`, so lines are printed instead.
    report = console_report if is_roomy() else console_report.__call__
    commands = {
        "prepare": lambda: _prepare(arguments.overrides, report),
        "verify": lambda: _verify(arguments.what, report),
        "list": lambda: _list(),
        "delete": lambda: inventory.delete(store(), arguments.names, report),
    }
    return run_main(commands[arguments.command])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dpeval.data",
        description="Prepare, verify, list and delete data.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser(
        "prepare", help="download or generate data, verify it, and build the cache"
    )
    one.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for dpeval.train")
    one = commands.add_parser("verify", help="read every byte and decode every image")
    one.add_argument(
        "what",
        nargs="*",
        metavar="NAME|KEY=VALUE",
        help="entries shown by list, or keys of dpeval.train that name a dataset (default: "
        "everything)",
    )
    commands.add_parser("list", help="list stored data with its size")
    one = commands.add_parser("delete", help="delete entries shown by list")
    one.add_argument("names", nargs="+", metavar="NAME", help="as shown by list")
    return parser


def _prepare(overrides: list[str], report: Report) -> None:
    config = compose(overrides).dataset
    source = prepare(config, report)
    report(_summary(source))
    if source.note:
        report(f"note: {source.note}")
    if source.cache:
        report(f"cache: {source.cache} ({amount(Path(source.cache).stat().st_size, 'B')})")


def _summary(source: Source) -> str:
    if source.sequences:
        return (
            f"{source.used}: {source.sequences:,} sequences of tokens from a vocabulary of "
            f"{source.num_classes} in {Path(source.root) / source.tokens}"
        )
    return (
        f"{source.used}: {len(source.train_files):,} training and {len(source.val_files):,} "
        f"validation images of {source.num_classes} classes in {source.root}"
    )


def _verify(what: list[str], report: Report) -> None:
    overrides = [item for item in what if "=" in item]
    wrong: list[str] = []
    if overrides:
        source = prepare(compose([*overrides, "dataset.loader=jpeg"]).dataset, report)
        root = Path(source.root)
        files = [root / name for name in source.train_files + source.val_files]
        wrong = inventory.damaged_images(files, root, report)
    names = [item for item in what if "=" not in item]
    if names or not overrides:
        wrong += inventory.verify(store(), names, report)
    for line in wrong:
        report(line)
    if wrong:
        raise DataError(f"{counted(len(wrong), 'file')} damaged, listed above")
    report("all files verified")


def _list() -> None:
    console = make_console()
    found = inventory.entries(store())
    table = make_table(
        str(store()),
        {"name": "left", "kind": "left", "images": "right", "size": "right", "state": "left"},
    )
    for entry in found:
        images = f"{entry.images:,}" if entry.images is not None else ""
        table.add_row(entry.name, entry.kind, images, amount(entry.nbytes, "B"), entry.state)
    if found:
        console.print(table)
    total = sum(entry.nbytes for entry in found)
    entries = counted(len(found), "entry", plural="entries")
    console.print(f"{entries}, {amount(total, 'B')}", markup=False)
