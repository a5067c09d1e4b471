"""What a tracking tool is given of one record: parameters, metrics, series and figures."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from dpeval.analysis import api
from dpeval.analysis.frame import runs_frame
from dpeval.errors import UnsupportedError
from dpeval.record.schema import Loss, Record
from dpeval.util.display.plural import counted

FIGURES = ("step_times", "time_components")
"""Those that one run alone can show."""
_LONGEST = 150
"""Of a name, which becomes a folder's."""
Value = str | int | float | bool


@dataclass(frozen=True)
class Contents:
    """One run, as a tracking tool sees it."""

    run_id: str
    name: str
    study: str
    ok: bool
    begin_s: float
    """Seconds since 1970."""
    wall_s: float
    params: Mapping[str, Value]
    metrics: Mapping[str, float]
    series: Mapping[str, list[float]]
    """One value per step, warm-up included, s."""
    figures: Mapping[str, bytes]
    """PNG files by name."""
    record: Path
    """The record itself, ``metrics.json``."""


def contents(run: Record, path: Path) -> Contents:
    """What to export of `run`, which was read from `path`."""
    return Contents(
        run_id=run.run_id,
        name=_plain(_name(run)),
        study=_plain(run.study),
        ok=run.status == "ok",
        begin_s=datetime.fromisoformat(run.started_at).timestamp(),
        wall_s=run.wall_s,
        params=dict(_params(run)),
        metrics=dict(_metrics(run)),
        series=dict(_series(run)),
        figures=dict(_figures(run, path)),
        record=path,
    )


def _name(run: Record) -> str:
    config = run.config
    devices = counted(int(config["num_devices"]), f"{config['hardware']['kind'].upper()} device")
    again = f", repetition {run.repetition + 1}" if run.repetition else ""
    return f"{config['model']['name']}, {devices}, batch {config['batch']}{again}"


def _plain(name: str) -> str:
    """`name` with what no tool takes for a folder, a project or a path."""
    return re.sub(r"[^\w.,=+ -]", "_", name).strip(". ")[:_LONGEST] or "_"


def _params(run: Record) -> Iterator[tuple[str, Value]]:
    """The configuration with dotted keys, and how and where the run was made."""
    yield from _flat(run.config, "")
    yield "status", run.status
    yield "cause", "" if run.cause is None else f"{run.cause.kind}: {run.cause.message}"
    yield "warnings", ", ".join(warning.code for warning in run.warnings)
    yield "host", run.environment.host
    yield "dpeval_version", run.dpeval_version
    yield "command", run.command


def _flat(node: Mapping[str, object], prefix: str) -> Iterator[tuple[str, Value]]:
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            plain = isinstance(value, str | int | float | bool)
            yield f"{prefix}{name}", value if plain else json.dumps(value)  # type: ignore[misc]


def _metrics(run: Record) -> Iterator[tuple[str, float]]:
    """The figures of the record, s and bytes; only those that were measured."""
    if (made := run.throughput) is not None:
        yield f"{run.unit}_per_s", made.img_per_s
        yield f"{run.unit}_per_s_low", made.low
        yield f"{run.unit}_per_s_high", made.high
    if (window := run.window) is not None:
        yield "step_s", window.step_s.mean
        yield "step_s_low", window.step_s.low
        yield "step_s_high", window.step_s.high
        yield "warmup_steps", window.first
        yield "measured_steps", window.steps
    if (sitting := run.sitting) is not None and sitting.speedup is not None:
        yield "speedup", sitting.speedup.mean
        yield "speedup_low", sitting.speedup.low
        yield "speedup_high", sitting.speedup.high
    if (rank := run.slowest) is not None:
        for phase, stats in rank.stats.items():
            if phase != "step":
                yield f"phase/{phase}_s", stats.mean_s
    loss = run.loss or Loss(start=None, end=None)
    others: dict[str, float | None] = {
        "load_balance": run.balance.value if run.balance is not None else None,
        "first_step_s": run.setup.first_step_s if run.setup is not None else None,
        "loss_start": loss.start,
        "loss_end": loss.end,
        "energy_j_per_sample": run.energy_j_per_img,
        "peak_bytes": max((rank.peak_bytes or 0 for rank in run.ranks), default=0) or None,
    }
    for name, value in others.items():
        if value is not None:
            yield name, float(value)


def _series(run: Record) -> Iterator[tuple[str, list[float]]]:
    if (rank := run.slowest) is not None and rank.step_s:
        yield "steps/step_s", rank.step_s
        for phase, values in rank.phase_s.items():
            yield f"steps/{phase}_s", values


def _figures(run: Record, path: Path) -> Iterator[tuple[str, bytes]]:
    frame = runs_frame.of_records([(run, path.parent)]).runs
    for name in FIGURES if run.window is not None else ():
        try:
            figure = api.plot(frame, name)
        except UnsupportedError:  # such as imported tables, which have no steps
            continue
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=100)
        yield name, drawn.getvalue()
