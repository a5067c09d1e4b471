"""Rows of a frame as dictionaries."""

from __future__ import annotations

from typing import Any

import pandas as pd


def as_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """What ``frame.to_dict("records")`` gives, several times faster where there are few
    rows and many columns."""
    names = frame.columns.tolist()
    values = zip(*(column.tolist() for _, column in frame.items()), strict=True)
    return [dict(zip(names, row, strict=True)) for row in values]
