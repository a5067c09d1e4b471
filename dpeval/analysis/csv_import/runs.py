"""From rows of other programs' tables to records, which list what they lack.

A row holds the device count, the batch, and a throughput or the time of one step or an average
step: those of one rank if the table has a column for the rank, otherwise those of the whole run.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import pandas as pd

from dpeval.analysis.csv_import import rows, run_keys, text_table
from dpeval.analysis.csv_import.fields import PHASE_OF, RATES, TIMES
from dpeval.analysis.csv_import.rows import Layout
from dpeval.analysis.csv_import.settle import (
    CONFIGURATION,
    MOST_S,
    Share,
    processed,
    step_s,
    why_no_time,
)
from dpeval.analysis.frame.as_rows import as_rows
from dpeval.analysis.frame.row import text
from dpeval.config import global_batch_of, split_evenly
from dpeval.errors import ConfigError
from dpeval.record.machine import UNKNOWN_ENVIRONMENT, Environment, Gpu
from dpeval.record.measurement import Balance, Window
from dpeval.record.phases import COMPUTE_PHASES, PHASES
from dpeval.record.plan import Plan, RankPlan
from dpeval.record.schema import PhaseStats, RankRecord, Record
from dpeval.stats.intervals import mean_interval
from dpeval.stats.steady_state import slowest_rank
from dpeval.stats.throughput import load_balance, throughput
from dpeval.util.display.plural import counted
from dpeval.util.version import __version__

ALWAYS_LACKING = (
    "warm-up: the number of steps before is unknown",
    "steady",
    "spread: one step per run, so no interval within a run",
    "environment: machine and versions are unknown",
    "memory", "conditions", "threads",
)  # fmt: skip
PLAUSIBLE_S = (1e-5, 100.0)
"""Median step times outside this range suggest another unit, s."""


@dataclass(frozen=True)
class Imported:
    """What was read from tables."""

    records: list[Record]
    problems: list[str]
    """One line for each row, run or file that was left out, and why."""
    notes: list[str]
    """The assumptions made, one line each."""


def read(paths: Sequence[Path], layout: Layout) -> Imported:
    """Every run in `paths` as a record of one step.

    An unusable file is left out if a folder or a pattern stood for it.

    Args:
        paths: files, folders and patterns (:func:`dpeval.analysis.csv_import.text_table.expand`).
        layout: how to read them.

    Raises:
        ConfigError: a named file cannot be used, or no file can.
    """
    found: list[rows.Rows] = []
    problems: list[str] = []
    sources = text_table.expand(paths)
    for source in sources:
        try:
            found.append(rows.of_table(text_table.read(source.file), layout))
        except ConfigError as error:
            if source.is_named:
                raise
            problems.append(str(error))
    if not found:
        raise ConfigError(f"none of {counted(len(sources), 'file')} can be read: {problems[0]}")
    problems += [problem for one in found for problem in one.problems]
    notes = [note for one in found for note in one.notes]
    frame = pd.concat([one.frame for one in found], ignore_index=True)
    if frame.empty:
        return Imported([], problems, notes)
    frame["run_key"], untold = run_keys.run_keys(frame)
    is_usable = frame["run_key"].ne("") & _have_times(frame, problems)
    if not is_usable.any():
        return Imported([], [*problems, *untold], notes)
    chosen, count = run_keys.thinned(frame[is_usable])
    records = list(_records(chosen, problems))
    if len(chosen) < is_usable.sum():
        notes.append(
            f"{paths[0]}: {count:,} runs; where a configuration has very many, the run of median "
            f"step time stands for several that follow one another: {len(records):,} are kept"
        )
    return Imported(_numbered(records), [*problems, *untold], [*notes, *_doubts(records)])


def _have_times(frame: pd.DataFrame, problems: list[str]) -> pd.Series[bool]:
    """Which rows have times that can be used; `problems` receives a line for each other."""
    times = frame[[name for name in TIMES if name in frame]].to_numpy(dtype=float)
    is_time = np.isnan(times) | ((times >= 0) & (times < MOST_S))
    is_good = frame["unread"].eq("") & is_time.all(axis=1) & (run_keys.step_times(frame) > 0)
    for row in as_rows(frame[~is_good & frame["run_key"].ne("")]):
        problems.append(f"{row['file']}, line {row['line']}: {why_no_time(_known(row))}")
    return is_good


def _records(frame: pd.DataFrame, problems: list[str]) -> Iterator[Record]:
    rows = as_rows(frame.sort_values([*CONFIGURATION, "run_key"], kind="stable"))
    for _, group in itertools.groupby(rows, lambda row: [row[name] for name in _OF_RUN]):
        of_run = sorted(map(_known, group), key=lambda row: row["rank"])
        try:
            yield _record(of_run)
        except ConfigError as error:
            lines = ", ".join(str(row["line"]) for row in of_run[:4])
            problems.append(f"{of_run[0]['file']}, line {lines}: {error}")


_OF_RUN = (*CONFIGURATION, "run_key")


def _known(row: Mapping[Any, Any]) -> dict[str, Any]:
    """The row without fields that only other tables have."""
    return {name: value for name, value in row.items() if not _is_nan(value)}


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _doubts(records: Sequence[Record]) -> Iterator[str]:
    """Warn if the times suggest another unit."""
    times = [run.window.step_s.mean for run in records if run.window is not None]
    if not times:
        return
    typical = median(times)
    least, most = PLAUSIBLE_S
    if not least <= typical <= most:
        yield (
            f"caution: the median step takes {typical:.3g} s; if the times are in another unit, "
            "say so with --time-unit ms (or us)"
        )


def _per_device_batches(devices: int, batch: int, share: Share) -> list[int]:
    """Images that each rank processes in a step."""
    images = processed(devices, batch, share)
    if images < devices:
        raise ConfigError(f"a batch of {batch} is too small for {devices} ranks")
    return split_evenly(images, devices)


def _record(group: Sequence[Mapping[str, Any]]) -> Record:
    of_rank = {int(row["rank"]): row for row in group}
    if len(of_rank) != len(group):
        raise ConfigError(
            "a rank occurs twice in one run; map the column that distinguishes the runs with "
            "=model, =run_id, =iteration or =variant"
        )
    first = next(iter(of_rank.values()))
    devices, batch, share = int(first["num_devices"]), int(first["batch"]), first["share"]
    shares = _per_device_batches(devices, batch, share)
    ranks = [_rank(rank, shares[rank], row) for rank, row in sorted(of_rank.items())]
    # Throughput counts the images of all ranks, including those without a row.
    steps = [np.array(rank.step_s) for rank in ranks]
    slowest = ranks[slowest_rank(steps)]
    interval = mean_interval(slowest.step_s)
    speed = throughput(sum(shares), steps, interval)
    told = [str(first[name]) for name in CONFIGURATION]
    identity = hashlib.sha256(":".join(told).encode()).hexdigest()[:16]
    return Record(
        dpeval_version=__version__,
        run_id=text(f"{Path(first['file']).name}:{devices}:{batch}:{first['run_key']}", 200),
        identity=identity,
        status="ok",
        study=text(Path(first["file"]).stem, 80),
        started_at="1970-01-01T00:00:00+00:00",
        wall_s=slowest.step_s[0],
        command="",
        config=_config(first),
        plan=_plan(first, shares),
        environment=_environment(first),
        window=Window(
            first=0,
            steps=1,
            steady=True,
            stopped_by="max_steps",
            step_s=interval,
            rule="none: one step from a CSV file",
        ),
        throughput=speed.model_copy(update={"slowest_rank": slowest.rank}),
        ranks=ranks,
        balance=_balance(ranks) if len(ranks) == devices else None,
        missing=[*ALWAYS_LACKING, *_lacking(of_rank, devices)],
    )


def _lacking(of_rank: Mapping[int, Mapping[str, Any]], devices: int) -> Iterator[str]:
    absent = [rank for rank in range(devices) if rank not in of_rank]
    row = next(iter(of_rank.values()))
    if row["stands_for"] > 1:
        yield "runs: the one of median step time stands for several that follow one another"
    if not row["by_rank"]:
        yield "ranks: one row stands for all of them"
    elif absent:
        shown = ", ".join(str(rank) for rank in absent[:5])
        yield f"ranks {shown}{' …' * (len(absent) > 5)}: no row, so the slowest rank may be missing"
    if "compute_s" in row:
        yield "phases: `other` holds forward, backward, communication and optimizer"
    if not any(name in row for name in PHASE_OF):
        yield "phases: whole steps only"
    if any(name in row for name in RATES) and not any(name in row for name in PHASE_OF):
        yield "step times: derived from a throughput"


def _rank(rank: int, share: int, row: Mapping[Any, Any]) -> RankRecord:
    whole_s = step_s(row)
    phases = dict.fromkeys(PHASES, 0.0)
    known = [name for name in PHASE_OF if name in row]
    for name in known:
        phases[PHASE_OF[name]] += float(row[name])
    # Time that no column covers still belongs to the step.
    phases["other"] += max(0.0, whole_s - sum(phases.values()))
    covered = {PHASE_OF[name] for name in known} | {"other"}
    stats = {
        name: PhaseStats(median_s=value, mean_s=value, p05_s=value, p95_s=value)
        for name, value in {
            **{p: phases[p] for p in PHASES if p in covered},
            "step": whole_s,
        }.items()
    }
    return RankRecord(
        rank=rank,
        host=_cell(row, "host"),
        pid=0,
        cpus=[],
        device="",
        per_device_batch_size=share,
        step_s=[whole_s],
        phase_s={name: [value] for name, value in phases.items() if name in covered},
        stats=stats,
    )


def _balance(ranks: Iterable[RankRecord]) -> Balance:
    computed_s = [
        sum(one for name, (one,) in rank.phase_s.items() if name in COMPUTE_PHASES)
        for rank in ranks
    ]
    return load_balance([np.array([one]) for one in computed_s])


def _cell(row: Mapping[Any, Any], name: str) -> str:
    value = row.get(name)
    return "" if value is None or pd.isna(value) else text(value, 80)


def _config(row: Mapping[str, Any]) -> dict[str, Any]:
    config = {
        "hardware": {"kind": row["hardware"]},
        "model": {"name": _cell(row, "model")},
        "scaling": {"kind": _scaling(row["share"])},
        "num_devices": int(row["num_devices"]),
        "num_nodes": int(row["num_nodes"]),
        "batch": int(row["batch"]),
        "source": "runs from CSV files",
    }
    told = {name: _cell(row, name) for name in ("precision", "variant")}
    return config | {name: value for name, value in told.items() if value}


def _scaling(share: Share) -> Literal["weak", "strong"]:
    return "weak" if share == "nominal" else "strong"


def _plan(row: Mapping[str, Any], shares: list[int]) -> Plan:
    devices = len(shares)
    on_node = math.ceil(devices / int(row["num_nodes"]))
    ranks = [
        RankPlan(
            rank=rank,
            node=rank // on_node,
            local_rank=rank % on_node,
            device="",
            cpus=[],
            threads=1,
            per_device_batch_size=share,
            weight=devices * share / sum(shares),
        )
        for rank, share in enumerate(shares)
    ]
    asked = global_batch_of(_scaling(row["share"]), int(row["batch"]), devices)
    return Plan(world_size=devices, global_batch_size=asked, backend="", ranks=ranks)


def _environment(row: Mapping[str, Any]) -> Environment:
    name = _cell(row, "device_name")
    is_gpu = bool(name) and row["hardware"] == "gpu"
    return UNKNOWN_ENVIRONMENT.model_copy(
        update={
            "host": _cell(row, "host"),
            "cpu_model": "" if is_gpu else name,
            "gpus": [Gpu(index=0, name=name, total_bytes=0)] if is_gpu else [],
        }
    )


def _numbered(records: list[Record]) -> list[Record]:
    """Number the repetitions of each configuration."""
    seen: Counter[str] = Counter()
    made = []
    for run in records:
        made.append(run.model_copy(update={"repetition": seen[run.identity]}))
        seen[run.identity] += 1
    return made
