"""The fast composer must give the same result as Hydra."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dpeval.commands import hydra_app
from dpeval.launchers.compose import Composer
from dpeval.util.paths import conf_dir


@pytest.fixture(scope="module")
def loader() -> Iterator[tuple[Any, DictConfig]]:
    """Hydra's loader and the master configuration of a sweep."""
    hydra_app.register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        yield loader, loader.load_configuration("config", ["measure=quick"], RunMode.MULTIRUN)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["batch=16"],
        ["measure=quick", "num_devices=2", "batch=16"],
        ["model=calibrated", "scaling=weak", "+model.args.faults.jitter=0.1", "batch=3"],
        ["hardware=gpu", "site=jean_zay", "study='a b; $(c)'", "++site.options.hint=x"],
        ["optimizer.args={lr: 0.5}", "~optimizer.args.momentum", "dataset.image_px=8"],
        ["model=calibrated", "model.args.num_classes=7"],
    ],
)
def test_equal_to_what_hydra_composes(loader: tuple[Any, DictConfig], overrides: list[str]) -> None:
    hydra, master = loader
    composer = Composer(hydra, master)
    for again in range(2):  # the second time from the cache
        ours = composer.compose([*overrides, f"seed={again}"])
        theirs = hydra.load_sweep_config(master, [*overrides, f"seed={again}"])
        assert OmegaConf.to_container(ours) == OmegaConf.to_container(theirs)


def test_a_job_does_not_affect_the_next(loader: tuple[Any, DictConfig]) -> None:
    composer = Composer(*loader)
    assert composer.compose(["model=calibrated", "batch=7"]).batch == 7
    assert composer.compose(["model=calibrated"]).batch == 32
