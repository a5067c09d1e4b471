"""A record is kept whatever the file system does."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from dpeval import record
from dpeval.commands.callbacks import without_record
from dpeval.commands.sweep_status import statuses_of
from dpeval.config import identity, to_plain
from dpeval.launchers.tracking.local_process import LocalSweep
from dpeval.record.schema import Cause, Record, blank
from dpeval.run.recording.record_files import RecordFiles, keep_provisional
from tests.unit.test_run_status import CONFIG


@pytest.fixture
def made() -> Record:
    return blank(
        to_plain(CONFIG), identity(CONFIG), [], "failed", Cause(kind="exit", message="an end")
    )


@pytest.fixture(autouse=True)
def _temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


@pytest.mark.parametrize("kind", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_write_that_fails_once_is_tried_again(
    made: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, kind: int
) -> None:
    owner, name = (os, "fsync") if call == "fsync" else (Path, "replace")
    real = getattr(owner, name)
    failed: list[bool] = []

    def fail_once(*arguments: object) -> object:
        if not failed:
            failed.append(True)
            raise OSError(kind, os.strerror(kind))
        return real(*arguments)

    monkeypatch.setattr(owner, name, fail_once)
    files = RecordFiles()
    files.keep(made, tmp_path / "run")
    assert failed
    assert files.elsewhere == {}
    assert record.read(tmp_path / "run" / record.FILE_NAME) == made
    assert [path.name for path in (tmp_path / "run").iterdir()] == [record.FILE_NAME]


def test_a_record_whose_folder_cannot_be_written_is_kept_elsewhere_and_brought_home(
    made: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep" / "0"
    own = LocalSweep({folder: CONFIG}, {folder: []}, folder.parent, {folder: "run 0"}, {})
    folder.write_text("a file where the folder should be")
    files = RecordFiles()
    files.keep(made, folder)
    own.note_elsewhere(files.elsewhere)
    (place,) = (tmp_path / "tmp").rglob(record.FILE_NAME)
    assert record.read(place) == made
    assert f"it was saved as {place}: copy it there" in capsys.readouterr().err
    assert without_record(folder.parent) == [folder]
    folder.unlink()
    own.start([folder])
    (status,) = statuses_of(folder.parent)
    assert (status.standing, status.text) == ("failed", "an end")
    assert record.read(folder / record.FILE_NAME) == made
    assert without_record(folder.parent) == []


def test_a_provisional_record_does_not_stand_for_one_that_is_kept_elsewhere(
    made: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    keep_provisional(made.model_copy(update={"status": "interrupted"}), folder)
    assert record.read(folder / record.FILE_NAME).status == "interrupted"
    real = record.write

    def write(one: Record, path: Path) -> None:
        if path.parent == folder:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(one, path)

    monkeypatch.setattr(record, "write", write)
    files = RecordFiles()
    files.keep(made, folder)
    place = files.elsewhere[folder]
    assert place is not None
    assert record.read(place) == made
    assert not (folder / record.FILE_NAME).exists()
    keep_provisional(made, folder)  # what cannot be written is left


def test_what_can_be_written_nowhere_is_printed(
    made: Record,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "run"))
    files = RecordFiles()
    files.keep(made, tmp_path / "run")
    assert files.elsewhere == {tmp_path / "run": None}
    assert record.parse(capsys.readouterr().out.encode(), "printed") == made
