"""``python -m dpeval.data`` and ``python -m dpeval.input_bench``, in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dpeval.commands import data_command as command
from dpeval.commands import loader_bench

SMALL = ["dataset=imagenette_like", "dataset.train_images=20", "dataset.image_px=32"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["python -m dpeval.data", *arguments])
    return command.run()


def test_data_are_prepared_verified_listed_and_deleted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: Path
) -> None:
    assert run(monkeypatch, "list") == 0
    assert "0 entries" in capsys.readouterr().out
    assert run(monkeypatch, "prepare", *SMALL, "dataset.loader=cached") == 0
    assert "20 training and 10 validation images of 10 classes" in capsys.readouterr().out
    (store / "cache" / "other.12345678.building").write_bytes(b"abc")
    assert run(monkeypatch, "list") == 0
    listed = capsys.readouterr().out
    (data_set,) = (path.name for path in store.glob("imagenette_like-*"))
    (kept,) = store.glob("cache/*.u8")
    for cells in ((data_set, "dataset", "30"), (kept.name, "cache", "20"), ("leftover",)):
        assert any(all(cell in line for cell in cells) for line in listed.splitlines())
    assert run(monkeypatch, "verify") == 0
    assert "all files verified" in capsys.readouterr().out

    content = bytearray(kept.read_bytes())
    content[5] ^= 1
    kept.write_bytes(content)
    image = next(store.glob("imagenette_like-*/train/*/*.JPEG"))
    image.write_bytes(image.read_bytes()[:900])
    assert run(monkeypatch, "verify") == 2
    printed = capsys.readouterr()
    advice = f"delete it with python -m dpeval.data delete cache/{kept.name}"
    assert f"{kept} is damaged; {advice}" in printed.out
    assert f"{image} is not a readable image" in printed.out
    assert printed.err == "dpeval: 2 files damaged, listed above\n"
    assert run(monkeypatch, "verify", *SMALL) == 2
    assert image.name in capsys.readouterr().out

    assert run(monkeypatch, "delete", "imagenette_lik") == 2
    assert "did you mean" in capsys.readouterr().err
    assert run(monkeypatch, "delete", data_set, f"cache/{kept.name}") == 0
    assert not list(store.glob("imagenette_like-*"))
    assert not list(store.glob("cache/*.u8")) + list(store.glob("cache/*.json"))


def test_deleting_stays_inside_the_data_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: Path
) -> None:
    store.mkdir()
    outside = store.parent / "precious"
    outside.mkdir()
    for name in ("../precious", str(outside), ".", "cache"):
        assert run(monkeypatch, "delete", name) == 2
    assert outside.is_dir()
    capsys.readouterr()


def test_worker_counts_double_up_to_the_spare_cores() -> None:
    assert [workers for loader, workers, _ in loader_bench.plan([0]) if loader == "jpeg"] == [0]
    planned = [one for one in loader_bench.plan(list(range(10, 16))) if one[0] == "jpeg"]
    assert [workers for _, workers, _ in planned] == [0, 1, 2, 4, 5]
    assert planned[2][2] == [10, 11, 12]
