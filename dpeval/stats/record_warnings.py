"""What makes the figures of one record less trustworthy, in words."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpeval.record.measurement import Window
from dpeval.record.phases import OWN_PHASES
from dpeval.record.schema import Record, Warning
from dpeval.stats.diagnostics import Fault, faults


def find(record: Record) -> list[Warning]:
    """Everything about a finished run that a reader of its figures has to know."""
    found: list[Warning] = []
    if record.dataset is not None and record.dataset.is_stand_in:
        found.append(Warning(code="stand_in", text=record.dataset.note))
    if record.status == "ok" and record.window is not None:
        found += _limited(record.window, record.config["measure"])
    if record.loss is not None and record.loss.end is None:
        found.append(Warning(code="loss", text="the loss is not finite: this training diverged"))
    if record.plan is not None:
        found += [Warning(code="plan", text=note) for note in record.plan.notes]
    if record.conditions is not None:
        found += [Warning(code="conditions", text=text) for text in record.conditions.bad]
    found += [_worded(fault, record) for fault in _faults(record)]
    return found


def _limited(window: Window, asked: dict[str, Any]) -> list[Warning]:
    """What a window that a limit ended did not reach; `asked` is the configuration's measure."""
    key = {"time_limit": "time_limit_s", "max_steps": "max_steps"}.get(window.stopped_by)
    limit = f"measure.{key}={asked[key]:g}" if key is not None else ""
    if not window.steady:
        text = "no steady state was reached" + f" within {limit}" * bool(limit)
        return [Warning(code="unsteady", text=text)]
    half, wanted = window.step_s.rel_half_width, asked["rel_precision"]
    if not limit or half <= wanted:
        return []
    text = (
        f"{limit} ended the run with its mean step known to ±{half:.2g}, wider than the "
        f"measure.rel_precision={wanted:g} that was asked for"
    )
    return [Warning(code="imprecise", text=text)]


def _faults(record: Record) -> list[Fault]:
    if record.window is None or not record.ranks:
        return []
    phases = [
        {name: np.array(series) for name, series in rank.phase_s.items()} for rank in record.ranks
    ]
    own = [name for name in OWN_PHASES if name != "data"]
    return faults(
        record.window,
        [np.array(rank.step_s) for rank in record.ranks],
        [np.sum([phase[name] for name in own], axis=0) for phase in phases],
        [phase["data"] for phase in phases],
        [rank.per_device_batch_size for rank in record.ranks],
    )


def _worded(fault: Fault, record: Record) -> Warning:
    """A fault as the record tells it, with the way out where there is one."""
    text = fault.text
    if fault.code == "input_bound" and record.dataset is not None:
        faster = {"jpeg": "cached", "cached": "resident"}.get(record.dataset.loader)
        text += f"; dataset.loader={faster} would lift that" if faster else ""
    return Warning(code=fault.code, text=text, ranks=fault.ranks)
