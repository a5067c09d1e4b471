"""Atomic writing: the old file, the new one, or none."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dpeval.util.files import remove_leftovers, replacing, write_atomically, write_new


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text in ("old", "new"):
        write_atomically(path, text)
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_the_umask_decides_who_may_read_a_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "x.json", "")
        write_new(tmp_path / "y.json", "")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {0o666 & ~umask}


@pytest.mark.parametrize("kind", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_new_file_replaces_none_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(kind, os.strerror(kind))

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "x.json"
    assert write_new(path, "first")
    assert not write_new(path, "second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "metrics.json"
    killed = "from dpeval.util.files import replacing; from pathlib import Path; import os\n"
    killed += f"with replacing(Path({str(path)!r})): os._exit(9)"
    subprocess.run([sys.executable, "-c", killed], check=False)
    (left,) = tmp_path.iterdir()
    with replacing(path) as temporary:
        remove_leftovers(tmp_path)
        assert temporary.exists()
        assert not left.exists()
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_raises_changes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("old")
    with pytest.raises(IsADirectoryError), replacing(path):
        tmp_path.write_text("a folder is no file")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_never_replaces_one_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert write_new(path, "first")
    assert not write_new(path, "second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_new(tmp_path / "gone" / "x.json", "")
    assert not (tmp_path / "gone").exists()
