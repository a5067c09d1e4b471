"""Warnings of one record: what makes its figures less trustworthy."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpeval.record.measurement import Window
from dpeval.record.phases import COMPUTE_PHASES
from dpeval.record.schema import Record, Warning
from dpeval.stats.diagnostics import Diagnostic, diagnose
from dpeval.stats.intervals import coefficient, is_constant
from dpeval.util.arrays import Floats
from dpeval.util.display.ranges import percent, span

FEWEST_STEPS, FEWEST_INDEPENDENT = 20, 5
"""Intervals of windows with fewer steps, or fewer independent ones, are unreliable. In simulation
(benchmarks/coverage.py), 93 to 98 % of intervals of 20 steps or more cover the truth while the
lag-1 correlation is 0.8 or less."""


SLOW_CORRELATION, SLOW_PROBABILITY = 0.75, 0.7
"""Steps wander slowly if their lag-1 correlation exceeds the first with the second probability. In
simulation (benchmarks/coverage.py) up to 4 % of runs are called so where it is 0.6, and 45 to 100 %
where it is 0.9, by preset."""


def find_warnings(record: Record) -> list[Warning]:
    """Everything about a finished run that readers of its figures must know."""
    found: list[Warning] = []
    if record.dataset is not None and record.dataset.is_stand_in:
        found.append(Warning(code="stand_in", text=record.dataset.note))
    if record.status == "ok" and record.window is not None:
        is_repeated = record.config.get("repeat", 1) > 1
        found += of_window(
            record.window, _main(record), record.config["measure"], is_repeated=is_repeated
        )
    if record.loss is not None and record.loss.end is None:
        found.append(Warning(code="loss", text="the loss is not finite: training diverged"))
    if record.plan is not None:
        found += [Warning(code="plan", text=note) for note in record.plan.notes]
    if record.conditions is not None:
        found += [Warning(code="conditions", text=text) for text in record.conditions.bad]
    found += [_warning(diagnostic, record) for diagnostic in _diagnostics(record)]
    return found


def of_window(
    window: Window, step_s: Floats, asked: dict[str, Any], *, is_repeated: bool = False
) -> list[Warning]:
    """What makes the mean of a window less trustworthy.

    Args:
        window: the main window.
        step_s: its steps, s, on the rank that is slowest in it; none if they are not known.
        asked: the configuration's ``measure``.
        is_repeated: whether the run is repeated: the spread of repetitions shows what a single
            window cannot.
    """
    found = _limited(window, asked)
    return found if is_repeated else found + _few_steps(window) + _slow_wander(step_s)


def _main(record: Record) -> Floats:
    """The steps of the main window on the rank that is slowest in it, s."""
    window, found = record.window, record.throughput
    if window is None or found is None or not record.ranks:
        return np.empty(0)
    steps = record.ranks[found.slowest_rank].step_s
    return np.array(steps[window.first : window.first + window.steps])


def _limited(window: Window, asked: dict[str, Any]) -> list[Warning]:
    """What the window did not reach because of a limit; `asked` is the configuration's
    ``measure``."""
    key = {"time_limit": "time_limit_s", "max_steps": "max_steps"}.get(window.stopped_by)
    limit = f"measure.{key}={asked[key]:g}" if key is not None else ""
    if window.stopped_by == "ended":
        limit = "the script"
    if window.steadiness == "drifting":
        text = "no steady state was reached" + f" within {limit}" * bool(limit)
        return [Warning(code="unsteady", text=text)]
    half, wanted = window.step_s.rel_half_width, asked["rel_precision"]
    if not limit or half <= wanted:
        return []
    low, high = (end / window.step_s.mean - 1 for end in (window.step_s.low, window.step_s.high))
    known = span(0.0, low, high, 1 if half > 0.01 else 2, as_percent=True)
    text = (
        f"{limit} ended the run with its mean step known to {known}, not to "
        f"± {percent(wanted, None)} (measure.rel_precision={wanted:g})"
    )
    return [Warning(code="imprecise", text=text)]


def _few_steps(window: Window) -> list[Warning]:
    """A warning if the interval of the mean is based on too few steps."""
    if window.steps < FEWEST_STEPS:
        text = (
            f"{window.steps} steps are too few to show how strongly they are correlated: the "
            "interval of their mean is too wide if they are not, and too narrow if they are"
        )
    elif window.step_s.effective_samples < FEWEST_INDEPENDENT:
        text = (
            f"{window.steps} correlated steps are worth about "
            f"{window.step_s.effective_samples:.0f} independent ones: the error of their mean may "
            "exceed its interval"
        )
    else:
        return []
    return [Warning(code="few_steps", text=f"{text}; measure longer, or repeat the run")]


def _slow_wander(step_s: Floats) -> list[Warning]:
    """A warning if steps are probably correlated for long."""
    if len(step_s) < FEWEST_STEPS or not is_slowly_wandering(step_s):
        return []
    text = (
        "the step time wanders slowly (neighbouring steps are correlated by more than "
        f"{SLOW_CORRELATION:g}): the mean of one window may miss the long-run mean by more than "
        "its interval; repeat the run (repeat=5), or compare runs that take turns "
        "(sweep.order=interleaved)"
    )
    return [Warning(code="slow_wander", text=text)]


def is_slowly_wandering(step_s: Floats) -> bool:
    """Whether the lag-1 correlation of steps is more than :data:`SLOW_CORRELATION`, probably."""
    centred = step_s - step_s.mean()
    if is_constant(step_s):
        return False
    known = coefficient(centred, [np.ones(len(step_s))])
    return bool(known.weights[known.correlations > SLOW_CORRELATION].sum() > SLOW_PROBABILITY)


def _diagnostics(record: Record) -> list[Diagnostic]:
    if record.window is None or not record.ranks:
        return []
    phases = [
        {name: np.array(series) for name, series in rank.phase_s.items()} for rank in record.ranks
    ]
    return diagnose(
        record.window,
        [np.array(rank.step_s) for rank in record.ranks],
        [
            np.sum([phase[name] for name in COMPUTE_PHASES if name in phase], axis=0)
            for phase in phases
        ],
        [phase["data"] for phase in phases],
        [rank.per_device_batch_size for rank in record.ranks],
    )


def _warning(diagnostic: Diagnostic, record: Record) -> Warning:
    """A diagnostic as a warning, with the remedy if there is one."""
    text = diagnostic.text
    if diagnostic.code == "input_bound" and record.dataset is not None:
        faster = {"jpeg": "cached", "cached": "resident"}.get(record.dataset.loader)
        text += f"; use dataset.loader={faster}" if faster else ""
    return Warning(code=diagnostic.code, text=text, ranks=diagnostic.ranks)
