"""The data: sources prepare it once, loaders hand every rank its share.

Sources (exported here) do not import torch, so that commands start fast. Loaders are in
:mod:`dpeval.data.loading`.
"""

from __future__ import annotations

import importlib

__all__ = [
    "MakeSource",
    "Source",
    "generated_tokens",
    "image_folder",
    "imagenette",
    "imagenette_like",
    "prepare",
    "token_files",
    "used",
]
_MODULES = {
    "image_folder": "image_folder",
    "imagenette": "imagenette",
    "generated_tokens": "tokens",
    "token_files": "tokens",
    "MakeSource": "prepare",
    "prepare": "prepare",
    "used": "prepare",
    "Source": "source",
    "imagenette_like": "synthetic",
}


def __getattr__(name: str) -> object:
    # Late: `python -m dpeval.data` imports this first, before it has put the working folder, whose
    # files may have the names of modules, behind Python's own.
    if name in _MODULES:
        module = importlib.import_module(f"dpeval.data.sources.{_MODULES[name]}")
        return getattr(module, name)
    raise AttributeError(f"module 'dpeval.data' has no attribute '{name}'")
