"""What is fed: sources that make data ready once, loaders that hand every rank its share.

Sources (here) import no torch, so that commands and generators start fast; the loaders of a rank
are in :mod:`dpeval.data.loading`.
"""

from __future__ import annotations

from dpeval.data.sources.image_folder import image_folder
from dpeval.data.sources.imagenette import imagenette
from dpeval.data.sources.prepare import MakeSource, prepare, used
from dpeval.data.sources.source import Source
from dpeval.data.sources.synthetic import imagenette_like

__all__ = [
    "MakeSource",
    "Source",
    "image_folder",
    "imagenette",
    "imagenette_like",
    "prepare",
    "used",
]
