"""A dataset: a function that prepares the files once and lists them with their labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from dpeval.config import DatasetConfig
from dpeval.data import Source


def build(config: DatasetConfig, root: Path, say: Callable[[str], None], per_class: int) -> Source:
    """Dark images of class 0 and bright ones of class 1."""
    folder = root / "my_dataset"
    folder.mkdir(parents=True, exist_ok=True)
    files = [f"{label}_{number}.png" for label in range(2) for number in range(per_class)]
    for name in files:
        if not (folder / name).exists():
            grey = 64 + 128 * int(name[0])
            Image.new("RGB", (config.image_px, config.image_px), (grey, grey, grey)).save(
                folder / name
            )
    return Source(
        root=str(folder),
        num_classes=2,
        train_files=files,
        train_labels=[int(name[0]) for name in files],
    )
