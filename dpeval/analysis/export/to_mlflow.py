"""Writes runs into a local store of MLflow: a database of SQLite and a folder of artifacts."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from dpeval.analysis.export.contents import Contents

WHERE = "mlflow"
LOOK = "mlflow ui --backend-store-uri sqlite:///{}/mlflow.db"
_MOST_PARAMS, _MOST_METRICS, _LONGEST = 100, 1_000, 6_000
"""Of one call, and of one value: limits of MLflow."""
_Entry = TypeVar("_Entry")


def write(run: Contents, folder: Path) -> None:
    """Write one run into the store in `folder`; its study is the experiment."""
    client = _client(folder)
    begin_ms, end_ms = (int(1000 * at_s) for at_s in (run.begin_s, run.begin_s + run.wall_s))
    tags = {"dpeval.run_id": run.run_id}
    made = client.create_run(_experiment(folder, run.study), begin_ms, tags, run.name)
    name = made.info.run_id
    params = [Param(key, str(value)[:_LONGEST]) for key, value in run.params.items()]
    metrics = [Metric(key, value, end_ms, 0) for key, value in run.metrics.items()]
    metrics += [
        Metric(key, value, begin_ms, step)
        for key, series in run.series.items()
        for step, value in enumerate(series)
    ]
    for some in _parts(params, _MOST_PARAMS):
        client.log_batch(name, params=some)
    for some in _parts(metrics, _MOST_METRICS):
        client.log_batch(name, metrics=some)
    client.log_batch(name, tags=[RunTag("dpeval.status", str(run.params["status"]))])
    client.log_artifact(name, str(run.record))
    with tempfile.TemporaryDirectory() as made_in:
        for figure, png in run.figures.items():
            path = Path(made_in) / f"{figure}.png"
            path.write_bytes(png)
            client.log_artifact(name, str(path), "figures")
    client.set_terminated(name, "FINISHED" if run.ok else "FAILED", end_ms)


@cache
def _client(folder: Path) -> MlflowClient:
    folder.mkdir(parents=True, exist_ok=True)
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # tells of every table that it creates
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=f"sqlite:///{folder.resolve()}/mlflow.db")


@cache
def _experiment(folder: Path, study: str) -> str:
    client = _client(folder)
    found = client.get_experiment_by_name(study)
    if found is not None:
        return str(found.experiment_id)
    return str(client.create_experiment(study, (folder.resolve() / "artifacts").as_uri()))


def _parts(values: Sequence[_Entry], size: int) -> Iterator[list[_Entry]]:
    for begin in range(0, len(values), size):
        yield list(values[begin : begin + size])
