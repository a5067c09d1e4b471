"""Progress and results on the console: live in a terminal, plain lines when piped."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID
from rich.table import Table

from dpeval.config import SERIAL, Config
from dpeval.record.codes import SHORT_STOPS
from dpeval.record.phases import PHASE_WORDS, PHASES
from dpeval.record.schema import Record
from dpeval.run.job import Job, Snapshot, take_turns
from dpeval.run.sweep_progress import TimeLeft, progress_text, share_done
from dpeval.util.display.plural import counted
from dpeval.util.display.ranges import UNKNOWN, percent, span
from dpeval.util.display.tables import WIDE, is_roomy, make_console, make_table
from dpeval.util.paths import shown

PLAIN_EVERY_S = 10.0
ROOM_FOR_INTERVALS = 110
"""A terminal with fewer columns gets live lines without intervals."""
LIVE_EVERY_S = 0.5
"""If no core is spare, drawing takes CPU time from the ranks, so draw no more often than this."""


class Reporter(Protocol):
    """Reports the progress of runs to the user."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def say(self, line: str) -> None: ...

    def sweep_started(self, jobs: list[Job], folder: Path) -> None: ...

    def run_started(self, job: Job) -> None: ...

    def progress(self, job: Job, snapshot: Snapshot) -> None: ...

    def run_ended(self, job: Job, record: Record) -> None: ...

    def sweep_ended(self, jobs: list[Job], records: list[Record], folder: Path) -> None:
        """Show the results of a sweep.

        Args:
            jobs: its runs.
            records: their records, in the same order; fewer if the sweep was interrupted.
            folder: the folder that holds the records.
        """

    def one(self, record: Record, folder: Path) -> None: ...


def make_reporter() -> Reporter:
    """Live display where standard output is a terminal, plain lines elsewhere."""
    console = make_console()
    return LiveReporter(console) if is_roomy() else PlainReporter(console)


class PlainReporter:
    """One line per event."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._total = 0
        self._numbers: dict[Path, int] = {}
        """Position of every run in the sweep, from 1, by its folder."""
        self._shown_s: dict[Path, float] = {}
        """When the progress of a run was last shown."""
        self._left = TimeLeft([])
        self._stopped: set[Path] = set()
        """Runs that have left the rounds of their sitting."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def say(self, line: str) -> None:
        self.console.print(escape(line))

    def sweep_started(self, jobs: list[Job], folder: Path) -> None:
        self._total = len(jobs)
        self._left = TimeLeft(jobs)
        how = "taking turns" if take_turns(jobs) else "one after another"
        self.say(f"{counted(len(jobs), 'run')}, {how}; records in {shown(folder)}")

    def run_started(self, job: Job) -> None:
        self._begin(job)
        if job.plan.skip is None:
            self.say(f"{self._position(job)}{describe(job.config)}: started")

    def progress(self, job: Job, snapshot: Snapshot) -> None:
        self._left.progress(job, snapshot)
        if self._is_due(job, PLAIN_EVERY_S, snapshot):
            self.say(f"{self._position(job)}{describe(job.config)}: {progress_text(snapshot)}")

    def run_ended(self, job: Job, record: Record) -> None:
        self._shown_s.pop(job.folder, None)
        self.say(f"{self._position(job)}{describe(job.config)}: {outcome_text(record)}")
        for warning in record.warnings:
            self.say(f"    warning: {warning.text}")
        self._tell_left(job)

    def _tell_left(self, job: Job) -> None:
        """Say how much of a sweep is left, as one run of it has ended."""
        self._left.ended(job)
        if self._total > 1 and not self._left.is_over:
            self.say(f"sweep: {self._left.words()}")

    def sweep_ended(self, jobs: list[Job], records: list[Record], folder: Path) -> None:
        """Print one table row per run.

        Args:
            jobs: the sweep's runs.
            records: their records, in the same order.
            folder: the folder that holds the records.
        """
        self.console.print(summary_table([job.config for job in jobs], records))
        self.say(f"records: {shown(folder)}")

    def one(self, record: Record, folder: Path) -> None:
        """Show the phases of a run's step and where its record is.

        Args:
            record: the run's.
            folder: the folder that holds the record.
        """
        if (table := phase_table(record)) is not None:
            self.console.print(table)
        has_traceback = record.cause is not None and "Traceback" in record.cause.log
        also = ", with the traceback" * has_traceback
        self.say(f"record{also}: {shown(folder / 'metrics.json')}")

    def _begin(self, job: Job) -> None:
        self._numbers[job.folder] = len(self._numbers) + 1
        self._shown_s[job.folder] = time.monotonic()

    def _is_due(self, job: Job, every_s: float, snapshot: Snapshot) -> bool:
        """Whether to show the progress of `job` now.

        Runs that take turns are each shown less often, and once when one leaves the rounds.
        """
        if snapshot.stopped_by is not None:
            is_new = job.folder not in self._stopped
            self._stopped.add(job.folder)
            return is_new
        now_s = time.monotonic()
        if now_s - self._shown_s.get(job.folder, now_s) < every_s * max(1, len(self._shown_s)):
            return False
        self._shown_s[job.folder] = now_s
        return True

    def _position(self, job: Job) -> str:
        return f"[{self._numbers[job.folder]}/{self._total}] " if self._total else ""


class LiveReporter(PlainReporter):
    """One line for each finished run, and one live line for each of the others."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        run, words = "{task.fields[position]}[bold]{task.description}", "{task.fields[words]}"
        columns: list[str | ProgressColumn] = [run, BarColumn(bar_width=24), words]
        if console.width < WIDE:  # in one column, what is too long is cut at its end alone
            columns = [f"{run}[/bold]: {words}"]
        self._is_brief = console.width < ROOM_FOR_INTERVALS
        self._bar = Progress(
            *columns,
            console=console,
            auto_refresh=False,
            transient=True,
        )
        self._tasks: dict[Path, TaskID] = {}
        self._sweep_line: TaskID | None = None
        """The line of the whole sweep, below those of its runs."""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def run_started(self, job: Job) -> None:
        self._begin(job)
        self._tasks[job.folder] = self._bar.add_task(
            escape(describe(job.config)),
            total=1.0,
            words="starting",
            position=escape(self._position(job)),
        )
        self._move_sweep_line()
        self._bar.refresh()

    def progress(self, job: Job, snapshot: Snapshot) -> None:
        self._left.progress(job, snapshot)
        if not self._is_due(job, LIVE_EVERY_S, snapshot):
            return
        if self._sweep_line is not None:
            self._bar.update(self._sweep_line, words=self._left.words())
        self._bar.update(
            self._tasks[job.folder],
            completed=share_done(job, snapshot),
            words=progress_text(snapshot, None if self._total else job, is_brief=self._is_brief),
        )
        self._bar.refresh()

    def run_ended(self, job: Job, record: Record) -> None:
        if job.folder in self._tasks:
            self._bar.remove_task(self._tasks.pop(job.folder))
            self._bar.refresh()
        super().run_ended(job, record)

    def _tell_left(self, job: Job) -> None:
        self._left.ended(job)
        if self._sweep_line is not None:
            done = self._left.runs_done
            self._bar.update(self._sweep_line, completed=done, words=self._left.words())

    def _move_sweep_line(self) -> None:
        """Put the line of the sweep below that of the run that has begun."""
        if self._total < 2:
            return
        if self._sweep_line is not None:
            self._bar.remove_task(self._sweep_line)
        self._sweep_line = self._bar.add_task(
            "sweep",
            total=self._total,
            completed=self._left.runs_done,
            words=self._left.words(),
            position="",
        )


def describe(config: Config) -> str:
    """A run in brief: model, devices, batch, repetition."""
    unit = "GPU" if config.hardware.kind == "gpu" else "core"
    cores = config.num_devices * (
        config.hardware.compute_threads if config.hardware.kind == "cpu" else 1
    )
    each = " each" if config.scaling.kind == "weak" else ""
    again = f", repetition {config.repetition + 1}/{config.repeat}" if config.repeat > 1 else ""
    serial = ", serial" if config.strategy.name == SERIAL else ""
    where = f"{config.model.name} on {counted(cores, unit)}{serial}"
    return f"{where}, batch {config.batch}{each}{again}"


def outcome_text(record: Record) -> str:
    """The result of one run on one line."""
    if record.throughput is not None and record.window is not None:
        found = record.throughput
        steps = counted(record.window.steps, "step")
        text = f"{found.img_per_s:.2f} {record.unit}/s {_interval(record)}, "
        if found.sequences_per_s is not None:
            text += f"{found.sequences_per_s:.2f} sequences/s, "
        text += f"{steps} ({SHORT_STOPS[record.window.stopped_by]})"
    else:
        text = ""
    if record.status == "ok":
        return text
    reason = record.cause.message if record.cause is not None else ""
    return f"{record.status.upper()}: {reason}" + (
        f" — measured until then: {text}" if text else ""
    )


def common_unit(records: Iterable[Record]) -> str:
    """The unit of samples, for the heading of a table of `records`."""
    units = {record.unit for record in records if record.throughput is not None}
    return escape(units.pop()) if len(units) == 1 else "img" if not units else "samples"


def _interval(record: Record) -> str:
    """The 95 % interval of throughput; a single step has none."""
    found, window = record.throughput, record.window
    if found is None or window is None or window.steps < 2:
        return UNKNOWN
    return span(found.img_per_s, found.low, found.high, 2)


def phase_table(record: Record) -> Table | None:
    """Step time of the slowest rank by phase; None if it has taken no step."""
    slowest = record.slowest
    if slowest is None or not slowest.stats:
        return None
    stats = slowest.stats
    table = make_table(
        "Step time" + f" of rank {slowest.rank}, the slowest" * (len(record.ranks) > 1),
        {
            "phase": "left",
            "median": "right",
            "mean": "right",
            "5 % … 95 %": "right",
            "share": "right",
        },
    )
    whole_s = stats["step"].mean_s
    for phase in (*PHASES, "step"):
        words = PHASE_WORDS.get(phase, "whole step")
        item = stats.get(phase)
        if item is None:
            table.add_row(words, "not measured", *["–"] * 3)
            continue
        table.add_row(
            words,
            seconds(item.median_s),
            seconds(item.mean_s),
            f"{seconds(item.p05_s)} … {seconds(item.p95_s)}",
            percent(item.mean_s / whole_s, 1),
            end_section=phase == PHASES[-1],
        )
    return table


def summary_table(configs: Sequence[Config], records: Sequence[Record]) -> Table:
    """One row per run of a sweep."""
    table = make_table(
        "What was measured",
        {
            "run": "left",
            "status": "left",
            f"{common_unit(records)}/s": "right",
            "95 % interval": "right",
            "median step": "right",
            "exposed comm.": "right",
            "data wait": "right",
        },
    )
    for config, record in zip(configs, records, strict=False):
        table.add_row(escape(describe(config)), *_cells(record))
    return table


def _cells(record: Record) -> list[str]:
    found, slowest = record.throughput, record.slowest
    if found is None or record.window is None or slowest is None:
        reason = record.cause.kind if record.cause is not None else ""
        return [f"{record.status} ({reason})" if reason else record.status, *["–"] * 5]
    stats = slowest.stats
    step_s = stats["step"].mean_s
    exposed = stats.get("comm_exposed")
    mark = " (unsteady)" if record.window.steadiness == "drifting" else ""
    return [
        f"{record.status}{mark}",
        f"{found.img_per_s:.2f}",
        _interval(record),
        seconds(stats["step"].median_s),
        percent(exposed.mean_s / step_s, 1) if exposed is not None else "not measured",
        percent(stats["data"].mean_s / step_s, 1) if "data" in stats else "not measured",
    ]


def seconds(value_s: float) -> str:
    """A time in the unit that suits its size."""
    if abs(value_s) >= 1:
        return f"{value_s:.2f} s"
    if abs(value_s) >= 1e-3:
        return f"{value_s * 1e3:.2f} ms"
    return f"{value_s * 1e6:.0f} µs"
