"""All commands behind one name."""

from __future__ import annotations

import importlib
import sys

import pytest

from dpeval.__main__ import COMMANDS, Command, main


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["dpeval", *words])
    return main()


@pytest.mark.parametrize("words", [(), ("--help",), ("help",)])
def test_the_commands_are_listed_each_with_an_example(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *words) == 0
    said = capsys.readouterr().out
    for one in COMMANDS:
        assert f"  {one.name} " in said
        assert f"dpeval {one.name} " in one.example
        assert one.example in said


@pytest.mark.parametrize("command", COMMANDS, ids=lambda one: one.name)
def test_every_command_is_there(command: Command) -> None:
    assert callable(importlib.import_module(command.module).main)


def test_the_words_after_the_command_are_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "analyze", "no/such/folder") == 2
    assert capsys.readouterr().err.startswith("dpeval: no/such/folder does not exist")


def test_a_mistyped_command_is_told_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "analyse") == 2
    said = capsys.readouterr().err
    assert "there is no command 'analyse'; did you mean 'analyze'" in said
    assert len(said.splitlines()) == 1
