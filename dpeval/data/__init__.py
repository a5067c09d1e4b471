"""The data: sources prepare it once, loaders hand every rank its share.

Sources (exported here) do not import torch, so that commands start fast. Loaders are in
:mod:`dpeval.data.loading`.
"""

from __future__ import annotations

from dpeval.data.sources.image_folder import image_folder
from dpeval.data.sources.imagenette import imagenette
from dpeval.data.sources.prepare import MakeSource, prepare, used
from dpeval.data.sources.source import Source
from dpeval.data.sources.synthetic import imagenette_like
from dpeval.data.sources.tokens import generated_tokens, token_files

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
