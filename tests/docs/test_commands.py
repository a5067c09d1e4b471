"""Every command in the documents is one that dpeval accepts."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from dpeval.__main__ import COMMANDS
from dpeval.commands import analysis_command, data_command, hydra_app
from dpeval.commands.batch_search import expand
from dpeval.config import Config
from tests.docs.conftest import commands

PARSERS = {"analyze": analysis_command._parser, "data": data_command._parser}
SHOWN = commands()


@pytest.fixture(scope="module")
def own_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the files that the pages name."""
    tmp_path = tmp_path_factory.mktemp("own")
    (tmp_path / "train.py").write_text("print()\n")
    (tmp_path / "mine.py").write_text("def make(rank, width=64): ...\n")
    for group, more in {"model": "args: {width: 64}", "site": "partition: gpu"}.items():
        folder = tmp_path / "conf" / group
        folder.mkdir(parents=True)
        target = "_target_: dpeval.components.torchvision_classifier\n" * (group == "model")
        (folder / "mine.yaml").write_text(f"name: mine\n{target}{more}\n")
    return tmp_path


def composed(words: list[str]) -> list[Config]:
    """The first and the last run of a ``dpeval train`` command."""
    runs = expand([word for word in words if word not in ("-m", "--multirun")])
    return [hydra_app.compose(run) for run in (runs[0], runs[-1])]


def test_the_documents_show_every_command() -> None:
    assert {one.name for one in COMMANDS} <= {words[0] for _, words in SHOWN}


@pytest.mark.parametrize(("where", "words"), SHOWN, ids=[where for where, _ in SHOWN])
def test_it_is_accepted(
    where: str, words: list[str], own_parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if any(one in where for one in ("mine", "train.py")):
        monkeypatch.chdir(own_parts)
    name, *arguments = words
    assert name in {one.name for one in COMMANDS}
    if name in PARSERS and "{" not in where:
        given = PARSERS[name]().parse_args(arguments)
        assert composed(getattr(given, "overrides", []))
    elif name in ("train", "fit", "input_bench"):
        assert composed(arguments)
    elif name in ("status", "cancel"):
        assert importlib.import_module(f"dpeval.{name}")
        assert arguments[0].startswith(("outputs/", "FOLDER"))
