"""What is fed: sources that make data ready once, feeds that hand every rank its share.

Sources (here) import no torch, so that commands and generators start fast; the feeds of a rank
are in :mod:`dpeval.data.feeds`.
"""

from __future__ import annotations

from dpeval.data.archive import imagenette
from dpeval.data.folder import image_folder
from dpeval.data.source import Source, prepare, used
from dpeval.data.stand_in import imagenette_like

__all__ = ["Source", "image_folder", "imagenette", "imagenette_like", "prepare", "used"]
