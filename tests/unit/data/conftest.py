"""Small data sets, real files all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpeval.config import DatasetConfig
from dpeval.data import Source, prepare
from dpeval.data.loading.loaders import Loader, make_loader
from dpeval.devices.cpu import CpuDevice

FolderOf = Callable[..., DatasetConfig]
CONFIG = DatasetConfig(
    name="imagenette_like",
    _target_="dpeval.data.imagenette_like",
    image_px=32,
    size="160px",
    train_images=40,
    loader="cached",
)


def silent(_: str) -> None:
    pass


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where dpeval keeps data during one test."""
    folder = tmp_path / "store"
    monkeypatch.setenv("DPEVAL_DATA", str(folder))
    return folder


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """The stand-in with 40 images, in a folder of the session."""
    root = tmp_path_factory.mktemp("stand-in")
    config = dataclasses.replace(CONFIG, root=str(root), loader="jpeg")
    return prepare(config, silent)


@pytest.fixture
def loader_of(source: Source) -> Iterator[Callable[..., Loader]]:
    """Make loaders of the stand-in, and close them at the end."""
    made: list[Loader] = []

    def make(
        loader: str,
        *,
        shares: tuple[int, ...] = (8,),
        rank: int = 0,
        channels_last: bool = True,
        **keys: object,
    ) -> Loader:
        config = dataclasses.replace(
            CONFIG,
            root=str(Path(source.root).parent),
            loader=loader,
            **keys,  # type: ignore[arg-type]
        )
        new = make_loader(
            prepare(config, silent),
            config,
            shares=shares,
            rank=rank,
            seed=7,
            device=CpuDevice(),
            channels_last=channels_last,
            spare_cpus=[],
        )
        made.append(new)
        return new

    yield make
    for one in made:
        one.close()


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[..., DatasetConfig]:
    """Write images into class folders and return the configuration that reads them."""

    def make(name: str = "own", **classes: int) -> DatasetConfig:
        root = tmp_path / name
        for split in ("train", "val"):
            for class_name, count in classes.items():
                (root / split / class_name).mkdir(parents=True)
                for number in range(count):
                    noise = np.random.default_rng(number).integers(0, 255, (40, 50, 3), np.uint8)
                    Image.fromarray(noise).save(root / split / class_name / f"{number}.jpg")
        return dataclasses.replace(
            CONFIG,
            name="image_folder",
            _target_="dpeval.data.image_folder",
            root=str(root),
            num_classes=len(classes),
        )

    return make
