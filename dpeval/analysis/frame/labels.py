"""How text, tables and figures name a configuration and mark its weaknesses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpeval.config import SERIAL
from dpeval.record.codes import SHORT_WARNINGS

_UNITS = {"cpu": "CPU device", "gpu": "GPU"}


def device_count(count: object, hardware: object = None) -> str:
    """``1 device``, or ``2 GPUs`` if the kind of `hardware` is given."""
    return f"{count} {_UNITS.get(str(hardware), 'device')}{'' if str(count) == '1' else 's'}"


def baseline(devices: int, strategy: str) -> str:
    """What speedup is relative to: ``1 device, serial (strategy=none)``, ``1 device with ddp``.

    Args:
        devices: its world size.
        strategy: its strategy; empty: not known.
    """
    if strategy == SERIAL:
        return f"{device_count(devices)}, serial (strategy=none)"
    return device_count(devices) + (f" with {strategy}" if strategy else "")


def configuration(
    num_devices: object, batch: object, scaling: object = "strong", hardware: object = None
) -> str:
    """``2 devices at batch 32``, or ``2 GPUs at batch 16 each``.

    Args:
        num_devices: the world size.
        batch: the user's ``batch``; with weak scaling, per device.
        scaling: ``strong`` or ``weak``.
        hardware: ``cpu``, ``gpu``, or None to say "device".
    """
    each = " each" if scaling == "weak" else ""
    return f"{device_count(num_devices, hardware)} at batch {batch}{each}"


def cell_name(cell: Any) -> str:
    """:func:`configuration` of one row of a table of cells."""
    return configuration(cell.num_devices, cell.batch, cell.scaling)


def marks(row: Mapping[Any, Any]) -> list[str]:
    """What makes a row with `steady`, `stand_in` and `oversubscribed` less trustworthy."""
    is_unsteady = row["steady"] is not None and not bool(row["steady"])
    return [
        *[SHORT_WARNINGS["unsteady"]] * is_unsteady,
        *["oversubscribed"] * bool(row["oversubscribed"]),
        *[SHORT_WARNINGS["stand_in"]] * bool(row["stand_in"]),
    ]
