"""The loaders that come with dpeval, one line each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BuiltInLoader:
    """A loader that ``dataset.loader`` selects by name rather than by import path."""

    path: str
    """Import path of the loader, called as ``target(shard)``; only ranks import it, because it
    needs torch."""
    needs_cache: bool = False
    """Whether it reads the decoded images at ``shard.source.cache``."""


LOADERS = {
    "jpeg": BuiltInLoader("dpeval.data.loading.loaders.jpeg"),
    "cached": BuiltInLoader("dpeval.data.loading.loaders.cached", needs_cache=True),
    "resident": BuiltInLoader("dpeval.data.loading.loaders.resident", needs_cache=True),
    "constant": BuiltInLoader("dpeval.data.loading.loaders.ConstantLoader"),
}
