"""The base class of values that pass between packages or into a record."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable, validated value; unknown fields, from a later version, are kept."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
