"""Prints the status of every run of a sweep."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dpeval.launchers.tracking import manifest as manifests
from dpeval.launchers.tracking.reconcile import reconciled
from dpeval.launchers.tracking.run_status import FINAL, RunStatus, counts, run_statuses
from dpeval.launchers.tracking.tracker import tracker
from dpeval.launchers.tracking.wait import line, settle
from dpeval.util.display.tables import make_console
from dpeval.util.files import remove_leftovers

_COLOURS = {
    "ok": "green",
    "running": "cyan",
    "queued": "blue",
    "failed": "red",
    "oom": "red",
    "lost": "red",
    "interrupted": "yellow",
}


def statuses_of(sweep_dir: Path) -> list[RunStatus]:
    """The status of every run; see :func:`looked_at`."""
    return looked_at(sweep_dir)[0]


def looked_at(sweep_dir: Path) -> tuple[list[RunStatus], str]:
    """The status of every run, and what to do about jobs that measure none, in words.

    Writes a record for runs that ended without one.

    Raises:
        LaunchError: the folder is not that of a sweep, or the scheduler does not respond.
    """
    remove_leftovers(sweep_dir)  # of a writer that was killed, even before there was a manifest
    manifest = manifests.read(sweep_dir)
    own = tracker(manifest)
    whole = reconciled(manifest, sweep_dir, own)
    manifest = whole.manifest
    found = run_statuses(manifest, sweep_dir, own)
    for run in manifest.runs:
        remove_leftovers(sweep_dir / run.folder)
    for status in found:
        # A run that looks lost may have a record that the network file system does not show yet.
        if status.standing != "lost" or manifest.process is not None:
            settle(status, sweep_dir, manifest.launcher)
    return found, whole.words(sweep_dir)


def as_table(found: list[RunStatus]) -> Table:
    """One row per run."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("run", justify="right")
    table.add_column("overrides", max_width=48)
    table.add_column("job", no_wrap=True)
    table.add_column("status", no_wrap=True)
    units = {item.unit for item in found if item.img_per_s is not None} or {"img"}
    rate = units.pop() if len(units) == 1 else "samples"
    table.add_column(f"{escape(rate)}/s", justify="right", no_wrap=True)
    table.add_column("what is known")
    for item in found:
        colour = _COLOURS.get(item.standing, "default")
        table.add_row(
            str(item.run.number),
            escape(item.run.label),
            item.run.job_id or "–",
            f"[{colour}]{item.standing}[/]",
            f"{item.img_per_s:.2f}" if item.img_per_s is not None else "–",
            escape(item.text),
        )
    return table


def show(sweep_dir: Path) -> bool:
    """Print the status of a sweep; return whether all of its runs have ended."""
    found, strays = looked_at(sweep_dir)
    console = make_console()
    summary = Text(f"{sweep_dir}: {counts(found)}", style="bold")
    if console.is_terminal:
        console.print(Group(summary, as_table(found)))
    else:
        console.print(summary)
        for item in found:
            console.print(f"{item.run.number}: {line(item)}", markup=False)
    if strays:
        console.print(strays, markup=False)
    for item in found:
        if item.log and item.standing in ("failed", "oom", "lost"):
            console.print(f"\nend of the log of run {item.run.number}:", style="bold")
            console.print("\n".join(item.log.splitlines()[-8:]), markup=False)
    return all(item.standing in FINAL for item in found)
