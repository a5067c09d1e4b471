"""``python -m dpeval.data``: prepare, verify, list and delete data from the command line."""

from __future__ import annotations

import argparse
import sys
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
from dpeval.data.sources.progress import Advance, Say, amount
from dpeval.data.sources.source import Source, store
from dpeval.errors import DataError
from dpeval.util.tables import make_console, make_table

EPILOG = """examples:
  python -m dpeval.data prepare dataset=imagenette_160
  python -m dpeval.data prepare dataset=imagenette_like dataset.loader=resident
  python -m dpeval.data verify dataset=image_folder dataset.root=PICTURES dataset.num_classes=3
  python -m dpeval.data list
  python -m dpeval.data delete imagenette2-160.tgz

DPEVAL_DATA names the folder in which dpeval keeps data (default: ~/.cache/dpeval)."""


class Told:
    """Says lines, and draws a bar where standard output is a terminal."""

    def __init__(self) -> None:
        self._console = make_console()

    def __call__(self, line: str) -> None:
        self._console.print(line, markup=False)

    @contextmanager
    def bar(self, what: str, total: int, unit: str) -> Iterator[Advance]:
        """See :class:`dpeval.data.sources.progress.Bars`."""
        self(what)
        count = DownloadColumn() if unit == "B" else MofNCompleteColumn()
        columns = (BarColumn(), TextColumn("{task.percentage:3.0f} %"), count)
        with Progress(*columns, TimeRemainingColumn(), console=self._console) as display:
            task = display.add_task(what, total=total)
            yield lambda count: display.advance(task, count)


def main() -> int:
    """The command line; returns the exit status."""
    asked = _parser().parse_args()
    console = make_console()
    told = Told()
    say = told if console.is_terminal else told.__call__
    commands = {
        "prepare": lambda: _prepare(asked.overrides, say),
        "verify": lambda: _verify(asked.what, say),
        "list": lambda: _list(),
        "delete": lambda: inventory.delete(store(), asked.names, say),
    }
    return run_main(commands[asked.command])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dpeval.data",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("prepare", help="download or generate, verify, build the cache")
    one.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for dpeval.train")
    one = commands.add_parser("verify", help="read every byte and decode every image")
    one.add_argument("what", nargs="*", metavar="NAME|KEY=VALUE", help="default: everything kept")
    commands.add_parser("list", help="what is kept, and how large it is")
    one = commands.add_parser("delete", help="delete what list names")
    one.add_argument("names", nargs="+", metavar="NAME")
    return parser


def _prepare(overrides: list[str], say: Say) -> None:
    config = compose(overrides).dataset
    source = prepare(config, say)
    say(_line(source))
    if source.note:
        say(f"note: {source.note}")
    if source.cache:
        say(f"cache: {source.cache} ({amount(Path(source.cache).stat().st_size, 'B')})")


def _line(source: Source) -> str:
    return (
        f"{source.used}: {len(source.train_files):,} training and {len(source.val_files):,} "
        f"validation images of {source.num_classes} classes in {source.root}"
    )


def _verify(what: list[str], say: Say) -> None:
    overrides = [word for word in what if "=" in word]
    wrong: list[str] = []
    if overrides:
        source = prepare(compose([*overrides, "dataset.loader=jpeg"]).dataset, say)
        root = Path(source.root)
        files = [root / name for name in source.train_files + source.val_files]
        wrong = inventory.damaged_images(files, root, say)
    names = [word for word in what if "=" not in word]
    if names or not overrides:
        wrong += inventory.verify(store(), names, say)
    for line in wrong:
        say(line)
    if wrong:
        raise DataError(f"damaged: {len(wrong)}, as listed above")
    say("everything is as it should be")


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
    console.print(f"{len(found)} things, {amount(total, 'B')}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
