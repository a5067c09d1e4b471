"""Exported runs are what the real MLflow, TensorBoard and Weights & Biases read back."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpeval import export, record
from dpeval.analysis.export import exporting
from dpeval.analysis.export.contents import contents
from dpeval.errors import MachineError
from dpeval.record.schema import Record
from tests.docs.conftest import ROOT
from tests.records import make_record

GOLDEN = ROOT / "tests" / "unit" / "golden"
_BLOCK, _HEAD, _IDENT = 32_768, 7, 7
_FULL, _FIRST, _LAST = 1, 2, 4


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One measured run and one that failed."""
    folder = tmp_path_factory.mktemp("sweep")
    for name in ("2", "failed"):
        shutil.copytree(GOLDEN / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def measured(sweep: Path) -> Record:
    return record.read(sweep / "2" / record.FILE_NAME)


def test_a_name_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    path = tmp_path / record.FILE_NAME
    run = make_record(2, study="../../etc", status="oom")
    assert contents(run, path).study == "_.._etc"


def test_tensorboard(sweep: Path, measured: Record) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = exporting.export([sweep], "tensorboard")
    assert (done.runs, done.earlier, done.problems) == (2, 0, [])
    (events,) = done.folder.glob("*/densenet121*/events*")
    read = EventAccumulator(str(events.parent)).Reload()
    assert measured.throughput is not None
    (rate,) = read.Scalars("img_per_s")
    assert rate.value == pytest.approx(measured.throughput.img_per_s)
    steps = [event.value for event in read.Scalars("steps/step_s")]
    assert steps == pytest.approx(measured.ranks[measured.throughput.slowest_rank].step_s)
    (image,) = read.Images("step_times")
    assert image.encoded_image_string.startswith(b"\x89PNG")
    hparams = read.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"num_devices" in hparams
    again = exporting.export([sweep], "tensorboard")
    assert (again.runs, again.earlier) == (0, 2)


def test_mlflow(sweep: Path, measured: Record) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    done = exporting.export([sweep], "mlflow")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{done.folder}/mlflow.db")
    studies = [one.experiment_id for one in client.search_experiments()]
    runs = {one.data.params["status"]: one for one in client.search_runs(studies)}
    assert set(runs) == {"ok", "failed"}
    assert runs["failed"].info.status == "FAILED"
    assert "injected failure" in runs["failed"].data.params["cause"]
    run = runs["ok"]
    assert run.info.status == "FINISHED"
    assert run.data.params["num_devices"] == "2"
    assert run.data.params["strategy.name"] == "ddp"
    assert measured.throughput is not None
    assert run.data.metrics["img_per_s"] == pytest.approx(measured.throughput.img_per_s)
    history = client.get_metric_history(run.info.run_id, "steps/step_s")
    slowest = measured.ranks[measured.throughput.slowest_rank]
    assert [one.value for one in history] == pytest.approx(slowest.step_s)
    files = {one.path for one in client.list_artifacts(run.info.run_id)}
    assert files == {"metrics.json", "figures"}
    figures = {one.path for one in client.list_artifacts(run.info.run_id, "figures")}
    assert "figures/step_times.png" in figures


def test_wandb(sweep: Path, measured: Record) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    done = exporting.export([sweep], "wandb")
    logs = sorted(done.folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(logs) == 2
    (log,) = (one for one in logs if measured.run_id in one.name)
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    steps: list[float] = []
    for entry in records_of(log):
        config |= {one.key: json.loads(one.value_json) for one in entry.run.config.update}
        summary |= {one.key: json.loads(one.value_json) for one in entry.summary.update}
        items = {one.key or "/".join(one.nested_key): one.value_json for one in entry.history.item}
        steps += [json.loads(items[key]) for key in ("steps/step_s",) if key in items]
    assert config["num_devices"] == 2
    assert measured.throughput is not None
    assert summary["img_per_s"] == pytest.approx(measured.throughput.img_per_s)
    slowest = measured.ranks[measured.throughput.slowest_rank]
    assert steps == pytest.approx(slowest.step_s)
    assert list(log.parent.glob("files/media/images/**/step_times*.png"))
    assert (log.parent / "files" / record.FILE_NAME).is_file()


def records_of(log: Path) -> Iterator[Any]:
    """The records of an offline run, from LevelDB's log format, which the library writes."""
    from wandb.proto import wandb_internal_pb2

    content, at, parts = log.read_bytes(), _IDENT, b""
    while at + _HEAD <= len(content):
        left = _BLOCK - at % _BLOCK
        if left < _HEAD:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + _HEAD])
        parts = (b"" if kind in (_FULL, _FIRST) else parts) + content[at + _HEAD :][:length]
        at += _HEAD + length
        if kind in (_FULL, _LAST):
            entry = wandb_internal_pb2.Record()
            entry.ParseFromString(parts)
            yield entry


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["absent", "--to", "mlflow"], "absent does not exist; give the folder of a sweep"),
        ([".", "--to", "tensorboard"], "there is no readable metrics.json below ."),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dpeval export", *words])
    assert export.main() == 2
    assert capsys.readouterr().err.startswith(f"dpeval: {said}")


def test_what_is_not_installed_is_told_with_how_to_install_it(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "dpeval.analysis.export.to_wandb", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MachineError, match=r"pip install 'dpeval\[export\]'"):
        exporting.export([sweep], "wandb")
