"""What is fed: sources that make data ready once, feeds that hand every rank its share."""

from __future__ import annotations

from dpeval.data.feeds import Feed, make_feed
from dpeval.data.folder import image_folder
from dpeval.data.imagenette import imagenette
from dpeval.data.source import Source, prepare, used
from dpeval.data.stand_in import imagenette_like

__all__ = [
    "Feed",
    "Source",
    "image_folder",
    "imagenette",
    "imagenette_like",
    "make_feed",
    "prepare",
    "used",
]
