"""From the cells of a row to what it says of a run, in SI units."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from dpeval.analysis.csv_import.fields import (
    BATCHES,
    PHASE_OF,
    RATES,
    SECONDS,
    TEXTS,
    TIMES,
    Column,
)
from dpeval.analysis.csv_import.text_table import NumberReader
from dpeval.analysis.frame.row import text
from dpeval.config import global_batch_of

Share = Literal["floor", "even", "nominal"]
SHARES: tuple[Share, ...] = ("floor", "even", "nominal")
MOST_RANKS = 100_000
MOST_S = 1e9

CONFIGURATION = ["model", "device_name", "hardware", "precision", "variant",
                 "num_nodes", "num_devices", "batch", "share"]  # fmt: skip
"""Columns that are equal in repetitions of one run."""

_WITH_UNIT = re.compile(rf"(.*\d)\s*({'|'.join(sorted(SECONDS, key=len, reverse=True))})",
                        re.IGNORECASE)  # fmt: skip


def enter(row: dict[str, Any], column: Column, cell: str, convert: NumberReader) -> None:
    """Put a cell into its row; NaN, and an entry of `unread`, if it is not a number.

    Args:
        row: what was entered so far.
        column: of the cell; not a time.
        cell: its text.
        convert: how to read numbers.
    """
    if column.field in TEXTS:
        entered = text(cell, 80)
        if column.field == "variant" and "variant" in row:
            entered = f"{row['variant']}, {column.name} {entered}"
        elif column.field == "variant":
            entered = f"{column.name} {entered}"
        row[column.field] = entered
        return
    row[column.field] = value = number(cell, convert)
    if math.isnan(value):
        row.setdefault("unread", {})[column.field] = cell


def number(cell: str, convert: NumberReader) -> float:
    """The number in `cell`; NaN if there is none."""
    try:
        return convert(cell)
    except ValueError:
        return math.nan


def seconds(cell: str, unit_s: float, convert: NumberReader) -> float:
    """The time in `cell`, s; NaN if it is not a number.

    Args:
        cell: a number, perhaps with a unit of its own.
        unit_s: the unit of numbers without one, s.
        convert: how to read numbers.
    """
    found = _WITH_UNIT.fullmatch(cell.strip())
    if found:
        cell, unit_s = found[1], SECONDS[found[2].casefold()]
    return number(cell, convert) * unit_s


def settle(row: dict[str, Any], share: Share, hardware: str) -> str | None:
    """Derive the row's other fields; return why the row cannot be used, if so.

    Args:
        row: what :func:`enter` made of it.
        share: how N ranks shared a global batch.
        hardware: what it ran on, if no cell tells.
    """
    unread = row.pop("unread", {})
    if "placement" in row and "num_devices" not in row:
        if not re.fullmatch(r"[1-9]+", row["placement"]):
            return f"placement '{text(row['placement'], 20)}' is not one digit per node"
        row["num_devices"] = float(sum(map(int, row["placement"])))
        row.setdefault("num_nodes", float(len(row["placement"])))
        if len(set(row["placement"])) > 1:  # otherwise nodes and devices say the same
            row["variant"] = f"{row.get('variant', '')} placement {row['placement']}".strip()
    if "devices_per_node" in row and "num_devices" not in row:
        row["num_devices"] = row["devices_per_node"] * row.get("num_nodes", math.nan)
    for batch in BATCHES:
        if batch in row:
            row["batch"] = row.pop(batch)
    _settle_hardware(row, hardware)
    row["by_rank"] = "rank" in row
    for name in ("num_devices", "batch", "rank", "num_nodes"):
        least = 0 if name == "rank" else 1
        value = row.setdefault(name, 0.0 if name == "rank" else 1.0)
        if not (math.isfinite(value) and value == int(value) and least <= value <= MOST_RANKS):
            shown = unread.get(name, f"{value:g}")
            return f"{name} is '{text(shown, 20)}', not an integer of at least {least}"
    if row["rank"] >= row["num_devices"]:
        return f"rank {row['rank']:g} is out of range for {row['num_devices']:g} ranks"
    if row["num_nodes"] > row["num_devices"]:
        return f"{row['num_devices']:g} devices cannot be on {row['num_nodes']:g} nodes"
    for name in ("num_devices", "batch", "rank", "num_nodes"):
        row[name] = int(row[name])
    row["unread"] = "; ".join(
        f"{name} is '{text(cell, 20)}', not a number" for name, cell in unread.items()
    )
    return None


def _settle_hardware(row: dict[str, Any], default: str) -> None:
    given = row.get("hardware", "")
    row["hardware"] = {"cpu": "cpu", "gpu": "gpu", "cuda": "gpu"}.get(given.casefold(), default)
    if given and row["hardware"] == default and given.casefold() not in ("cpu", "gpu", "cuda"):
        row.setdefault("device_name", given)


def of_step(row: Mapping[Any, Any], rate: str) -> float:
    """What a step takes, in the amounts that `rate` counts: the step time is it over the rate.

    Args:
        row: a settled row.
        rate: one of :data:`~dpeval.analysis.csv_import.fields.RATES`.
    """
    images = processed(row["num_devices"], row["batch"], row["share"])
    amounts = {"samples": images, "steps": 1.0, "tokens": images * row.get("seq_len", math.nan)}
    devices = row["num_devices"] if RATES[rate].per_device else 1
    return float(amounts[RATES[rate].of] / devices)


def processed(devices: int, batch: int, share: Share) -> int:
    """Images that all devices process in a step.

    Args:
        devices: the world size.
        batch: the batch in the table, images.
        share: how it was divided (:attr:`Layout.share`).
    """
    images = global_batch_of("weak" if share == "nominal" else "strong", batch, devices)
    return images - images % devices if share == "floor" else images


def step_s(row: Mapping[Any, Any]) -> float:
    """Time of the row's step, s."""
    if "step_s" in row:
        return float(row["step_s"])
    return math.fsum(float(row[name]) for name in PHASE_OF if name in row)


def why_no_time(row: Mapping[Any, Any]) -> str | None:
    """Why the times of the row cannot be used, if so."""
    if row["unread"]:
        return str(row["unread"])
    for name in TIMES:
        value = float(row.get(name, 0.0))
        if not (math.isfinite(value) and 0 <= value < MOST_S):
            return f"{name} is {value:g}, not a time"
    return None if step_s(row) > 0 else "the step time is zero"
