"""The base of every value that passes between packages or into a record."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable, validated value; unknown fields of a later version are kept, not refused."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
