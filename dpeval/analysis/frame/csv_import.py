"""Import CSV files of other programs, one row per rank, as records that list what they lack.

A row holds the device count, the rank, the batch and the time of one step (or of an average step)
of that rank in seconds. Rows belong to one run if they share a `run_id`. Without that column, the
k-th row of each (size, batch, rank) belongs to repetition k, counted across files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from dpeval.analysis.frame.columns import text
from dpeval.config import global_batch_of, split_evenly
from dpeval.errors import ConfigError, nearest
from dpeval.record.machine import UNKNOWN_ENVIRONMENT, Environment
from dpeval.record.measurement import Balance, Window
from dpeval.record.phases import COMPUTE_PHASES, PHASES
from dpeval.record.plan import Plan, RankPlan
from dpeval.record.schema import PhaseStats, RankRecord, Record
from dpeval.stats.intervals import mean_interval
from dpeval.stats.steady_state import slowest_rank
from dpeval.stats.throughput import load_balance, throughput
from dpeval.util.version import __version__

Share = Literal["floor", "even", "nominal"]
SHARES: tuple[Share, ...] = ("floor", "even", "nominal")

TIMES = {
    "data_s": "data", "h2d_s": "h2d", "forward_s": "forward", "backward_s": "backward",
    "comm_s": "comm_exposed", "grad_copy_s": "grad_copy", "optimizer_s": "optimizer",
    "other_s": "other", "compute_s": "other",
}  # fmt: skip
"""Time columns and the phase of each; undivided computation counts as `other`."""
FIELDS = ("num_devices", "rank", "batch", "run_id", "model", "host", "hardware", "step_s", *TIMES)
NEEDED = ("num_devices", "batch")
MOST_RANKS = 100_000

ALWAYS_LACKING = (
    "warm-up: the number of steps before is unknown",
    "steady",
    "spread: one step per run, so no interval within a run",
    "environment: machine and versions are unknown",
    "memory", "conditions", "threads",
)  # fmt: skip


@dataclass(frozen=True)
class Mapped:
    """How to interpret the files."""

    columns: Mapping[str, str]
    """Column name in the file to one of :data:`FIELDS`."""
    share: Share = "floor"
    """How N ranks shared a global batch B: ``floor``: B//N each, the remainder is dropped;
    ``even``: as evenly as possible; ``nominal``: every rank gets the batch itself."""
    hardware: str = "cpu"

    @property
    def scaling(self) -> str:
        return "weak" if self.share == "nominal" else "strong"


def parse_columns(given: str) -> dict[str, str]:
    """``"size=num_devices,time=compute_s"`` as a mapping.

    Raises:
        ConfigError: the text has another form, names an unknown field, or lacks a required one.
    """
    found: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in given.split(","))):
        name, equals, field = (part.strip() for part in item.partition("="))
        if not equals or not name:
            raise ConfigError(f"--columns: '{text(item, 60)}' does not have the form name=field")
        if field not in FIELDS:
            raise ConfigError(
                f"--columns: '{text(field, 40)}' is not a field; choose from {', '.join(FIELDS)}"
                f"{nearest(field, FIELDS)}"
            )
        if field in found.values():
            raise ConfigError(f"--columns: {field} occurs twice")
        found[name] = field
    for field in NEEDED:
        if field not in found.values():
            raise ConfigError(f"--columns lacks {field}; add <column name>={field}")
    if not ({"step_s", *TIMES} & set(found.values())):
        raise ConfigError(
            f"--columns names no time; add <column name>=step_s or one of {', '.join(TIMES)}"
        )
    return found


def read(files: Sequence[Path], mapped: Mapped) -> tuple[list[Record], list[str]]:
    """Every run in `files` as a record of one step, and one line for each skipped row.

    Raises:
        ConfigError: a file cannot be read as CSV or lacks a mapped column.
    """
    tables = [_table(file, mapped) for file in files]
    rows = pd.concat(tables, ignore_index=True)
    problems: list[str] = []
    good = rows[[_is_usable(row, problems) for row in rows.to_dict("records")]].copy()
    good["repetition_key"] = _run_keys(good)
    records = []
    for (devices, batch, key), group in good.groupby(
        ["num_devices", "batch", "repetition_key"], sort=True
    ):
        where = f"{group['file'].iloc[0]} (size {devices}, batch {batch}, run {text(key, 40)})"
        try:
            records.append(_record(group, int(devices), int(batch), str(key), mapped))
        except ConfigError as error:
            problems.append(f"{where}: {error}")
    return _numbered(records), problems


def _table(file: Path, mapped: Mapped) -> pd.DataFrame:
    try:
        table = pd.read_csv(file, skipinitialspace=True)
    except (OSError, ValueError, UnicodeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else "empty"
        raise ConfigError(f"{file} cannot be read as CSV: {text(first, 200)}") from error
    table.columns = [str(name).strip() for name in table.columns]
    for name in mapped.columns:
        if name not in table.columns:
            raise ConfigError(
                f"{file} has no column '{text(name, 40)}'{nearest(name, table.columns)}; it has "
                f"{text(', '.join(table.columns), 200)}"
            )
    made = table[list(mapped.columns)].rename(columns=dict(mapped.columns))
    made["file"] = str(file)
    made["line"] = range(2, len(made) + 2)
    for name in ("num_devices", "rank", "batch", "step_s", *TIMES):
        if name in made:
            made[name] = pd.to_numeric(made[name], errors="coerce")
    if "rank" not in made:
        # Without ranks, the row stands for the slowest rank of its run.
        made["rank"] = 0
    return made


def _is_usable(row: dict[Any, Any], problems: list[str]) -> bool:
    where = f"{row['file']}, line {row['line']}"
    for name, least in (("num_devices", 1), ("batch", 1), ("rank", 0)):
        value = row[name]
        if not (math.isfinite(value) and value == int(value) and least <= value <= MOST_RANKS):
            problems.append(f"{where}: {name} is not an integer of at least {least}")
            return False
    if row["rank"] >= row["num_devices"]:
        problems.append(
            f"{where}: rank {row['rank']:g} is out of range for {row['num_devices']:g} ranks"
        )
        return False
    for name in ("step_s", *TIMES):
        value = row.get(name, 0.0)
        if not (math.isfinite(value) and 0 <= value < 1e9):
            problems.append(f"{where}: {name} is not a time in seconds")
            return False
    if _step_s(row) <= 0:
        problems.append(f"{where}: the step time is zero")
        return False
    return True


def _run_keys(rows: pd.DataFrame) -> pd.Series[Any]:
    if "run_id" in rows:
        return rows["run_id"].astype(str)
    count = rows.groupby(["num_devices", "batch", "rank"]).cumcount()
    return count.map(lambda number: f"{number:06d}")


def _step_s(row: Mapping[Any, Any]) -> float:
    if "step_s" in row:
        return float(row["step_s"])
    return math.fsum(float(row[name]) for name in TIMES if name in row)


def _per_device_batches(devices: int, batch: int, mapped: Mapped) -> list[int]:
    """Images that each rank processes in a step."""
    images = global_batch_of(mapped.scaling, batch, devices)
    if images < devices:
        raise ConfigError(f"a batch of {images} is too small for {devices} ranks")
    if mapped.share == "floor":
        images -= images % devices
    return split_evenly(images, devices)


def _record(group: pd.DataFrame, devices: int, batch: int, key: str, mapped: Mapped) -> Record:
    rows = {int(row["rank"]): row for row in group.sort_values("rank").to_dict("records")}
    if len(rows) != len(group):
        raise ConfigError("a rank occurs twice in one run")
    shares = _per_device_batches(devices, batch, mapped)
    lacking = [*ALWAYS_LACKING, *_lacking(rows, devices)]
    ranks = [_rank(rank, shares[rank], row) for rank, row in rows.items()]
    # Throughput counts the images of all ranks, also of those without a row of their own.
    steps = [_series(rank) for rank in ranks]
    slowest = ranks[slowest_rank(steps)]
    interval = mean_interval(slowest.step_s)
    found = throughput(sum(shares), steps, interval)
    first = next(iter(rows.values()))
    identity = hashlib.sha256(f"{devices}:{batch}:{mapped.share}".encode()).hexdigest()[:16]
    return Record(
        dpeval_version=__version__,
        run_id=text(f"{Path(first['file']).name}:{devices}:{batch}:{key}", 200),
        identity=identity,
        status="ok",
        study=text(Path(first["file"]).stem, 80),
        started_at="1970-01-01T00:00:00+00:00",
        wall_s=slowest.step_s[0],
        command="",
        config=_config(first, devices, batch, mapped),
        plan=_plan(global_batch_of(mapped.scaling, batch, devices), shares),
        environment=_environment(first),
        window=Window(
            first=0,
            steps=1,
            steady=True,
            stopped_by="max_steps",
            step_s=interval,
            rule="none: one step from a CSV file",
        ),
        throughput=found,
        ranks=ranks,
        balance=_balance(ranks) if len(ranks) == devices else None,
        missing=lacking,
    )


def _series(rank: RankRecord) -> Any:
    import numpy as np

    return np.array(rank.step_s)


def _lacking(rows: Mapping[int, Mapping[Any, Any]], devices: int) -> Iterator[str]:
    absent = [rank for rank in range(devices) if rank not in rows]
    if absent:
        shown = ", ".join(str(rank) for rank in absent[:5])
        yield f"ranks {shown}{' …' * (len(absent) > 5)}: no row, so the slowest rank may be missing"
    row = next(iter(rows.values()))
    if "compute_s" in row:
        yield "phases: `other` holds forward, backward, communication and optimizer"
    if not any(name in row for name in TIMES):
        yield "phases: whole steps only"


def _rank(rank: int, share: int, row: Mapping[Any, Any]) -> RankRecord:
    step_s = _step_s(row)
    phases = dict.fromkeys(PHASES, 0.0)
    known = [name for name in TIMES if name in row]
    for name in known:
        phases[TIMES[name]] += float(row[name])
    # Time that no column covers still belongs to the step.
    phases["other"] += max(0.0, step_s - sum(phases.values()))
    covered = {TIMES[name] for name in known} | {"other"}
    stats = {
        name: PhaseStats(median_s=value, mean_s=value, p05_s=value, p95_s=value)
        for name, value in {
            **{p: phases[p] for p in PHASES if p in covered},
            "step": step_s,
        }.items()
    }
    return RankRecord(
        rank=rank,
        host=_cell(row, "host"),
        pid=0,
        cpus=[],
        device="",
        per_device_batch_size=share,
        step_s=[step_s],
        phase_s={name: [value] for name, value in phases.items() if name in covered},
        stats=stats,
    )


def _balance(ranks: Iterable[RankRecord]) -> Balance:
    import numpy as np

    computed_s = [
        sum(one for name, (one,) in rank.phase_s.items() if name in COMPUTE_PHASES)
        for rank in ranks
    ]
    return load_balance([np.array([one]) for one in computed_s])


def _cell(row: Mapping[Any, Any], name: str) -> str:
    value = row.get(name)
    return "" if value is None or pd.isna(value) else text(value, 80)


def _config(row: Mapping[Any, Any], devices: int, batch: int, mapped: Mapped) -> dict[str, Any]:
    return {
        "hardware": {"kind": _cell(row, "hardware") or mapped.hardware},
        "model": {"name": _cell(row, "model")},
        "scaling": {"kind": mapped.scaling},
        "num_devices": devices,
        "batch": batch,
        "source": "runs from CSV files",
    }


def _plan(global_batch_size: int, shares: list[int]) -> Plan:
    devices = len(shares)
    ranks = [
        RankPlan(
            rank=rank,
            node=0,
            local_rank=rank,
            device="",
            cpus=[],
            threads=1,
            per_device_batch_size=share,
            weight=devices * share / sum(shares),
        )
        for rank, share in enumerate(shares)
    ]
    return Plan(world_size=devices, global_batch_size=global_batch_size, backend="", ranks=ranks)


def _environment(row: Mapping[Any, Any]) -> Environment:
    return UNKNOWN_ENVIRONMENT.model_copy(update={"host": _cell(row, "host")})


def _numbered(records: list[Record]) -> list[Record]:
    """Number the repetitions of each configuration."""
    seen: dict[str, int] = {}
    made = []
    for run in records:
        key = f"{run.config['num_devices']}:{run.config['batch']}"
        made.append(run.model_copy(update={"repetition": seen.get(key, 0)}))
        seen[key] = seen.get(key, 0) + 1
    return made
