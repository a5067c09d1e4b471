"""Images in one folder per class: ``train/<class>/*.jpg`` and ``val/<class>/*.jpg``."""

from __future__ import annotations

import os
from pathlib import Path

from dpeval.config import DatasetConfig
from dpeval.data.sources.progress import Report
from dpeval.data.sources.source import Source
from dpeval.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp")


def image_folder(config: DatasetConfig, root: Path, report: Report) -> Source:
    """A user's own folder, ``dataset.root``.

    Args:
        config: the keys of ``dataset``.
        root: the folder.
        report: unused.

    Raises:
        DataError: no such folder, no class, or a class without images.
    """
    if config.root is None:
        raise DataError(
            "dataset=image_folder needs dataset.root=FOLDER, a folder with train/<class>/*.jpg"
        )
    return scan(config.name, config.name, root)


def scan(requested: str, used: str, root: Path, note: str = "") -> Source:
    """List the images below `root`. Labels are indices into the sorted class names.

    Args:
        requested: name of the requested dataset.
        used: name of the dataset in use.
        root: folder with ``train`` and, optionally, ``val``.
        note: what a reader of the figures must know about the data.

    Raises:
        DataError: a folder is missing or empty, or train and val differ in their classes.
    """
    classes, files, labels = split(root, "train")
    val_files: list[str] = []
    val_labels: list[int] = []
    if (root / "val").is_dir():
        val_classes, val_files, val_labels = split(root, "val")
        if val_classes != classes:
            raise DataError(
                f"{root}: train and val have different classes "
                f"({len(classes)} and {len(val_classes)}); give both the same class folders"
            )
    return Source(
        requested=requested,
        used=used,
        root=str(root),
        note=note,
        num_classes=len(classes),
        train_files=files,
        train_labels=labels,
        val_files=val_files,
        val_labels=val_labels,
    )


def split(root: Path, name: str) -> tuple[list[str], list[str], list[int]]:
    """Classes, files (relative to `root`) and labels of one split, in a fixed order.

    Raises:
        DataError: a folder is missing or empty.
    """
    folder = root / name
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; put images into {folder}/<class>/*.jpg")
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not classes:
        raise DataError(f"{folder} has no class folders; put images into {folder}/<class>/")
    files: list[str] = []
    labels: list[int] = []
    for label, class_name in enumerate(classes):
        names = sorted(
            entry.name
            for entry in os.scandir(folder / class_name)
            if entry.name.lower().endswith(EXTENSIONS) and entry.is_file()
        )
        if not names:
            raise DataError(f"{folder / class_name} contains no images; add some or delete it")
        files += [f"{name}/{class_name}/{image}" for image in names]
        labels += [label] * len(names)
    return classes, files, labels
