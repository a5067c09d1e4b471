"""The loaders that dpeval brings: one line each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BuiltInLoader:
    """A value of ``dataset.loader`` that is no import path."""

    path: str
    """What makes it, called as ``target(shard)``; imported by the ranks alone, because it needs
    torch."""
    needs_cache: bool = False
    """Whether it reads images that were decoded once, at ``shard.source.cache``."""


LOADERS = {
    "jpeg": BuiltInLoader("dpeval.data.loading.loaders.jpeg"),
    "cached": BuiltInLoader("dpeval.data.loading.loaders.cached", needs_cache=True),
    "resident": BuiltInLoader("dpeval.data.loading.loaders.resident", needs_cache=True),
    "constant": BuiltInLoader("dpeval.data.loading.loaders.ConstantLoader"),
}
