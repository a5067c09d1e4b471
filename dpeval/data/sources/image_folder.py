"""Images in one folder per class: ``train/<class>/*.jpg`` and ``val/<class>/*.jpg``.

As in torchvision's ImageFolder, images in folders below a class belong to it.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dpeval.config import DatasetConfig
from dpeval.data.sources.progress import Report
from dpeval.data.sources.source import Source
from dpeval.errors import DataError
from dpeval.util.display.plural import counted

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""File name extensions of images, as in torchvision."""
NO_CLASSES = ("__MACOSX", "__pycache__", "lost+found")
"""Folders that other programs create, besides hidden ones."""
_MOST_ENDINGS = 5
_MOST_NAMED = 3
_TRAIN_NAMES = ("training", "train_images", "trainset", "train_set", "train")
_SPLITS = (*_TRAIN_NAMES, "val", "valid", "validation", "test")
"""Usual names of the folders above the classes."""
_PLURALS = {
    "hidden file": "hidden files",
    "broken link or no file": "broken links or no files",
    "link to a folder above it": "links to folders above them",
}


@dataclass(frozen=True)
class Split:
    """The images of ``train`` or ``val``, in a fixed order."""

    classes: list[str]
    files: list[str]
    """Relative to the root."""
    labels: list[int]
    left_out: Mapping[str, int]
    """Counts of everything else that was found."""


def image_folder(config: DatasetConfig, root: Path, report: Report) -> Source:
    """The user's folder of images, ``dataset.root``.

    Args:
        config: the keys of ``dataset``.
        root: the folder.
        report: prints what was found.

    Raises:
        DataError: the folder is missing, or has no classes, or a class has no images.
    """
    if config.root is None:
        raise DataError(
            "dataset=image_folder needs dataset.root=FOLDER, a folder with train/<class>/*.jpg"
        )
    source = scan(config.name, config.name, root)
    report(_told(source))
    return source


def _told(source: Source) -> str:
    found = f"{len(source.train_files):,} images to train on"
    if source.val_files:
        found += f" and {len(source.val_files):,} to validate"
    left_out = _listed(source.left_out)
    classes = counted(source.num_classes, "class", plural="classes")
    return f"{source.root}: {found}, {classes}" + (f"; left out: {left_out}" if left_out else "")


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
    train = split(root, "train")
    val = split(root, "val") if (root / "val").is_dir() else None
    if val is not None and val.classes != train.classes:
        raise DataError(
            f"{root}: train and val have different classes "
            f"({len(train.classes)} and {len(val.classes)}); give both the same class folders"
            f"{_differing(train.classes, val.classes)}"
        )
    left_out = Counter(train.left_out) + Counter(val.left_out if val is not None else {})
    return Source(
        requested=requested,
        used=used,
        root=str(root),
        note=note,
        num_classes=len(train.classes),
        train_files=train.files,
        train_labels=train.labels,
        val_files=val.files if val is not None else [],
        val_labels=val.labels if val is not None else [],
        left_out=dict(left_out),
    )


def _differing(train: list[str], val: list[str]) -> str:
    only = sorted(set(train) ^ set(val))
    return f" (in only one of them: {', '.join(only[:3])}{' …' * (len(only) > 3)})"


def split(root: Path, name: str) -> Split:
    """The images of one split; labels are indices into the sorted class names.

    Raises:
        DataError: a folder is missing or empty.
    """
    folder = root / name
    if not root.exists():
        raise DataError(
            f"dataset.root={root} does not exist; give the folder with {name}/<class>/*.jpg"
        )
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; {_where_classes_are(root, name)}")
    left_out: Counter[str] = Counter()
    classes = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not _is_folder(entry):
            left_out[_why_no_image(entry.name, "beside the class folders")] += 1
        elif _is_no_class(entry.name):
            left_out[f"folder {entry.name}"] += 1
        else:
            classes.append(entry.name)
    if not classes:
        raise DataError(f"{folder} has no class folders; put images into {folder}/<class>/")
    files: list[str] = []
    labels: list[int] = []
    for label, class_name in enumerate(classes):
        in_class: Counter[str] = Counter()
        images = sorted(_images(folder / class_name, "", in_class, set()))
        if not images:
            raise DataError(f"{folder / class_name} contains no images{_instead(in_class)}")
        left_out += in_class
        files += [f"{name}/{class_name}/{image}" for image in images]
        labels += [label] * len(images)
    return Split(classes, files, labels, left_out)


def _where_classes_are(root: Path, split: str) -> str:
    """What to do where `root` has no folder `split`; many tools expect the classes in the root."""
    found = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    named = [f"{name}/" for name in found if not _is_no_class(name)][:_MOST_NAMED]
    if named and root.name in _SPLITS:
        return f"if {root} holds the classes itself, give its parent: dataset.root={root.parent}"
    inside = [name for name in found if (root / name / split).is_dir()]
    if len(inside) == 1:
        return f"{root / inside[0]} has one: set dataset.root={root / inside[0]}"
    other = next((name for name in found if name.lower() in _TRAIN_NAMES), None)
    if other is not None and split == "train":
        return f"rename {root / other} to {split}"
    put = f"put images into {root / split}/<class>/*.jpg"
    if not named:
        return put
    return f"{put} ({root} holds {', '.join(named)}: if these are classes, move them there)"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself
        return False


def _is_no_class(name: str) -> bool:
    return name.startswith(".") or name in NO_CLASSES


def _images(folder: Path, prefix: str, left_out: Counter[str], seen: set[str]) -> Iterator[str]:
    """Images below `folder`, links followed, as paths relative to it.

    Args:
        folder: where to look.
        prefix: start of the paths.
        left_out: counts of entries that are not images; updated.
        seen: parent folders; following a link to one of them would never end.
    """
    here = os.path.realpath(folder)
    if here in seen:
        left_out["link to a folder above it"] += 1
        return
    for entry in os.scandir(folder):
        is_image = entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith(".")
        if _is_folder(entry):
            if _is_no_class(entry.name):
                left_out[f"folder {entry.name}"] += 1
            else:
                below = f"{prefix}{entry.name}/"
                yield from _images(folder / entry.name, below, left_out, seen | {here})
        elif is_image and Path(entry).is_file():
            yield prefix + entry.name
        elif is_image:
            left_out["broken link or no file"] += 1
        else:
            left_out[_why_no_image(entry.name)] += 1


def _listed(left_out: Mapping[str, int]) -> str:
    """``3 hidden files, 2 .txt``."""
    return ", ".join(
        f"{count:,} {what if count == 1 else _plural(what)}" for what, count in left_out.items()
    )


def _plural(what: str) -> str:
    return _PLURALS.get(what) or re.sub(r"^folder ", "folders ", what)


def _why_no_image(name: str, where: str = "") -> str:
    if name.startswith("."):
        return "hidden file"
    ending = Path(name).suffix.lower() or "no ending"
    return f"{ending} {where}".strip()


def _instead(found: Mapping[str, int]) -> str:
    shown = _listed(dict(list(found.items())[:_MOST_ENDINGS]))
    has = f" but {shown}" if shown else ""
    return f"{has}; images end in {', '.join(EXTENSIONS)}: add some, or delete the folder"
