"""What the columns of another program's table may hold, and in which units."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dpeval.analysis.frame.row import text
from dpeval.errors import ConfigError, nearest

PHASE_OF = {
    "data_s": "data", "h2d_s": "h2d", "forward_s": "forward", "backward_s": "backward",
    "comm_s": "comm_exposed", "grad_copy_s": "grad_copy", "optimizer_s": "optimizer",
    "other_s": "other", "compute_s": "other",
}  # fmt: skip
"""Time fields and their phases; computation that is not split further counts as `other`."""
TIMES = ("step_s", *PHASE_OF)
"""Fields with a time. Rows hold seconds; a column may hold another unit: ``step_ms``, or ``step``
in the unit that the column's name gives."""


@dataclass(frozen=True)
class Rate:
    """A throughput: how much, and of what, per second."""

    of: str
    """``samples``, ``tokens`` or ``steps``."""
    per_device: bool = False


RATES = {
    "samples_per_s": Rate("samples"),
    "img_per_s": Rate("samples"),
    "throughput": Rate("samples"),
    "samples_per_s_per_device": Rate("samples", per_device=True),
    "img_per_s_per_device": Rate("samples", per_device=True),
    "steps_per_s": Rate("steps"),
    "tokens_per_s": Rate("tokens"),
    "tokens_per_s_per_device": Rate("tokens", per_device=True),
}
"""Fields with a throughput, from which the step time is derived if no column holds it."""
BATCHES = ("batch", "global_batch", "per_device_batch")
"""`batch` is what ``--per-rank-batch`` says it is."""
COUNTS = ("num_devices", "num_nodes", "devices_per_node", "rank", *BATCHES, "seq_len")
"""Fields with an integer."""
TEXTS = (
    "run_id", "iteration", "model", "host", "hardware", "device_name", "precision", "placement",
    "variant",
)  # fmt: skip
"""Fields with text. `iteration` numbers the steps of a run, where a row is one step. `placement`
has one digit per node, the number of its devices. `variant` columns, of which there may be several,
separate runs that must not be pooled."""
FIELDS = (*COUNTS, *TEXTS, *TIMES, *RATES)

SECONDS = {
    "s": 1.0, "sec": 1.0, "secs": 1.0, "second": 1.0, "seconds": 1.0,
    "ms": 1e-3, "msec": 1e-3, "msecs": 1e-3, "millis": 1e-3, "milliseconds": 1e-3,
    "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "usec": 1e-6, "usecs": 1e-6, "microseconds": 1e-6,
    "ns": 1e-9, "nsec": 1e-9, "nanoseconds": 1e-9,
    "min": 60.0, "mins": 60.0, "minutes": 60.0,
}  # fmt: skip
"""Names of units of time, and their lengths in s."""
TIME_UNITS = ("s", "ms", "us", "ns", "min")

_UNIT = "|".join(sorted(SECONDS, key=len, reverse=True))
_ENDING = "|".join(unit for unit in SECONDS if not unit.startswith("min"))  # time_min is a minimum
UNIT_IN_NAME = re.compile(rf"[(\[]\s*({_UNIT})\s*[)\]]|(?:^|[\s_./-])({_ENDING})$", re.IGNORECASE)
"""A unit of time at the end of a column's name, or anywhere in brackets."""


@dataclass(frozen=True)
class Column:
    """One column that is read."""

    name: str
    """Its name in the file."""
    field: str
    """One of :data:`FIELDS`."""
    unit_s: float = 1.0
    """For a time, its unit in s."""


def parse(
    given: str, time_unit: str | None = None, constants: Mapping[str, str] | None = None
) -> tuple[Column, ...]:
    """``"size=num_devices,time (ms)=step"`` as columns.

    A name that contains a comma is put in double quotes, together with its field.

    Args:
        given: the text of ``--columns``.
        time_unit: the unit of times for which neither the field nor the column name gives one.
        constants: fields that need no column.

    Raises:
        ConfigError: the text is malformed, names an unknown field, or lacks a required one.
    """
    found: list[Column] = []
    for item in next(csv.reader([given], skipinitialspace=True), []):
        name, equals, field = (part.strip() for part in item.rpartition("="))
        if not item.strip():
            continue
        if not equals or not name:
            raise ConfigError(f"--columns: '{text(item, 60)}' does not have the form name=field")
        column = _column(name, field, time_unit)
        if column.field != "variant" and column.field in {one.field for one in found}:
            raise ConfigError(f"--columns: {column.field} occurs twice")
        found.append(column)
    require(found, "--columns", constants)
    return tuple(found)


def parse_constants(given: str) -> dict[str, str]:
    """``"batch=64,model=resnet50"``, values shared by all rows, as a mapping of field to text.

    Raises:
        ConfigError: the text is malformed or names an unknown field.
    """
    found: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in given.split(","))):
        field, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not value:
            raise ConfigError(f"--set: '{text(item, 60)}' does not have the form field=value")
        if field not in (*COUNTS, *TEXTS) or field == "rank":
            known = [one for one in (*COUNTS, *TEXTS) if one != "rank"]
            raise ConfigError(
                f"--set: '{text(field, 40)}' cannot be the same in every row; choose from "
                f"{', '.join(known)}{nearest(field, known)}"
            )
        found[field] = value
    return found


def require(
    columns: Iterable[Column], where: str, constants: Mapping[str, str] | None = None
) -> None:
    """Check that the columns give devices, batch and time.

    Args:
        columns: those that are read.
        where: what the message says lacks a column.
        constants: fields that need no column.

    Raises:
        ConfigError: one is missing.
    """
    fields = {one.field for one in columns} | set(constants or ())
    per_node = {"num_nodes", "devices_per_node"} <= fields
    if not {"num_devices", "placement"} & fields and not per_node:
        raise ConfigError(
            f"{where} lacks num_devices; add <column name>=num_devices to --columns, or, if it is "
            "the same in every row, --set num_devices=<count>"
        )
    if not set(BATCHES) & fields:
        raise ConfigError(
            f"{where} lacks batch; add <column name>=global_batch or =per_device_batch to "
            "--columns, or, if it is the same in every row, --set global_batch=<images>"
        )
    if len(set(BATCHES) & fields) > 1:
        raise ConfigError(
            f"{where} has the batch twice ({', '.join(b for b in BATCHES if b in fields)}); "
            "keep one"
        )
    if not {*TIMES, *RATES} & fields:
        raise ConfigError(
            f"{where} has no time and no throughput; add <column name>=step, one of "
            f"{', '.join(PHASE_OF)}, or one of {', '.join(RATES)} to --columns"
        )
    of = {RATES[one].of for one in fields & set(RATES)}
    if of == {"tokens"} and "seq_len" not in fields and not set(TIMES) & fields:
        raise ConfigError(
            f"{where} has tokens per second but no sequence length; add <column name>=seq_len to "
            "--columns, or --set seq_len=<tokens per sample>"
        )


def unit_in(name: str) -> str | None:
    """The unit of time in a column's name, if any: ``"time (ms)"`` → ``"ms"``."""
    found = UNIT_IN_NAME.search(name)
    return (found[1] or found[2]).casefold() if found else None


def time_column(name: str, field: str, time_unit: str | None) -> Column:
    """A column of times whose field has no unit: taken from its name, or else `time_unit`.

    Args:
        name: as in the file.
        field: one of :data:`TIMES`.
        time_unit: None: s.
    """
    unit = unit_in(name) or time_unit or "s"
    return Column(name, field, SECONDS[unit])


def _column(name: str, field: str, time_unit: str | None) -> Column:
    if f"{field}_s" in TIMES:
        return time_column(name, f"{field}_s", time_unit)
    base, _, unit = field.rpartition("_")
    if f"{base}_s" in TIMES and unit in SECONDS:
        told = unit_in(name) or time_unit
        if told is not None and SECONDS[told] != SECONDS[unit]:
            raise ConfigError(
                f"--columns: '{text(name, 40)}' is in {told} by its name or --time-unit, but in "
                f"{unit} by {field}; write {base} to use the former"
            )
        return Column(name, f"{base}_s", SECONDS[unit])
    if field not in FIELDS:
        raise ConfigError(
            f"--columns: '{text(field, 40)}' is not a field; choose from {', '.join(FIELDS)}"
            f"{nearest(field, FIELDS)}"
        )
    return Column(name, field)
