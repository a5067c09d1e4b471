"""How texts, tables and figures name a configuration."""

from __future__ import annotations

from typing import Any

_UNITS = {"cpu": "CPU device", "gpu": "GPU"}


def device_count(count: object, hardware: object = None) -> str:
    """``1 device``; ``2 GPUs`` where the kind of `hardware` is told."""
    return f"{count} {_UNITS.get(str(hardware), 'device')}{'' if str(count) == '1' else 's'}"


def configuration(
    num_devices: object, batch: object, scaling: object = "strong", hardware: object = None
) -> str:
    """``2 devices at batch 32``; with weak scaling the batch is that of each device."""
    each = " each" if scaling == "weak" else ""
    return f"{device_count(num_devices, hardware)} at batch {batch}{each}"


def cell_name(cell: Any) -> str:
    """:func:`configuration` of one row of a table of cells."""
    return configuration(cell.num_devices, cell.batch, cell.scaling)
