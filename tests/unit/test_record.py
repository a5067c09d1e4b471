"""The record: what is written can be read, and what is not a record is told in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import dpeval
from dpeval import record
from dpeval.errors import RecordError
from dpeval.record.codes import CauseCode, WarningCode
from dpeval.record.schema import Cause, Warning
from tests.records import make_record

SCHEMA = Path(dpeval.__file__).with_name("metrics.schema.json")


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    made = make_record(2)
    record.write(made, tmp_path / "metrics.json")
    assert record.read(tmp_path / "metrics.json") == made


def test_records_hold_against_the_schema_in_the_repository() -> None:
    schema = json.loads(SCHEMA.read_text())
    assert schema == json.loads(json.dumps(record.json_schema())), "regenerate the schema"
    jsonschema.validate(json.loads(make_record(2).model_dump_json()), schema)
    jsonschema.validate(json.loads(make_record(status="skipped").model_dump_json()), schema)


def test_a_writer_that_dies_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.json"
    record.write(make_record(1), path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        record.write(make_record(2), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.json"]


@given(cut=st.integers(0, 200))
def test_a_file_cut_off_anywhere_is_refused(cut: int) -> None:
    text = make_record(1, steps=3).model_dump_json().encode()
    with pytest.raises(RecordError, match="not complete JSON"):
        record.parse(text[: len(text) * cut // 201], "x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[]", "not a dpeval record"),
        (b"{}", "not a dpeval record"),
        (b'{"schema_version": 99}', "has schema version 99"),
        (b'{"schema_version": 1}', "not a valid record"),
        (b"\xff\xfe", "not complete JSON"),
        (b"[" * 100_000, "not complete JSON"),
    ],
)
def test_what_is_no_record_is_told_in_a_line(text: bytes, words: str) -> None:
    with pytest.raises(RecordError) as caught:
        record.parse(text, "file")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_nothing_but_a_record_error_leaves_the_reader(text: bytes) -> None:
    with pytest.raises(RecordError):
        record.parse(text, "file")


def test_a_code_that_is_not_listed_is_refused_where_it_is_made_and_where_it_is_read() -> None:
    with pytest.raises(ValidationError, match="input_bond"):
        Warning.model_validate({"code": "input_bond", "text": ""})
    with pytest.raises(ValidationError, match="oomm"):
        Cause.model_validate({"kind": "oomm", "message": ""})
    text = make_record(1, warnings=[Warning(code="jitter", text="")]).model_dump_json()
    with pytest.raises(RecordError, match=r"not a valid record: warnings\.0\.code"):
        record.parse(text.replace("jitter", "jiter").encode(), "file")


def test_every_code_that_a_record_may_hold_is_read() -> None:
    """Records keep their codes: none of these may be renamed or dropped."""
    causes = (
        "bug cancelled devices disk_full exception exit hang interrupt lost lost_node memory "
        "node_fail oom oom_kill peer preempted record refused setup signal time_limit"
    )
    codes = (
        "cold_start conditions drift imprecise input_bound jitter loss plan shared_node stand_in "
        "straggler unsteady"
    )
    assert {*causes.split()} <= {*get_args(CauseCode)}
    assert {*codes.split()} <= {*get_args(WarningCode)}


def test_infinities_and_nans_are_refused() -> None:
    text = make_record(1, steps=3).model_dump_json().replace('"wall_s":1.0', '"wall_s":NaN')
    with pytest.raises(RecordError):
        record.parse(text.encode(), "file")
