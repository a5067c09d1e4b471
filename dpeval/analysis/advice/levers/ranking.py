"""All levers for one recommended configuration, the most promising first."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from dpeval.analysis.advice.levers import shape_rules, step_rules, trials
from dpeval.analysis.advice.levers.lever import Lever, Situation, separate
from dpeval.analysis.advice.levers.trials import Tried
from dpeval.analysis.scaling.best_configuration import DEVICE_SECONDS, Candidate, Choice
from dpeval.analysis.scaling.findings import Findings
from dpeval.analysis.scaling.speedup import having

Rule = Callable[[Situation], Lever | None]
RULES: tuple[Rule, ...] = (
    step_rules.loader,
    step_rules.keep_memory,
    step_rules.gradient_views,
    step_rules.bucket_size,
    step_rules.static_graph,
    shape_rules.batch,
    shape_rules.accumulation,
    shape_rules.precision,
    shape_rules.memory_format,
    shape_rules.threads,
    shape_rules.fewer_devices,
)
"""A new lever is one function and one line here."""


def situation(findings: Findings, choice: Choice, best: Candidate) -> Situation:
    """What the records say about the best configuration of a family.

    Args:
        findings: all results of the analysis.
        choice: the best configuration of the family, for some objective.
        best: that configuration.
    """
    key = {**choice.key, "num_devices": best.num_devices, "batch": best.batch}
    row = {str(name): value for name, value in having(findings.points, key).iloc[0].items()}
    waterfall = next((one for one in findings.waterfalls if one.key == key), None)
    cheapest = next(
        (
            one
            for one in findings.choices
            if one.objective is DEVICE_SECONDS and one.batch is None and one.key == choice.key
        ),
        None,
    )
    return Situation(
        row=row,
        points=having(findings.points, choice.key),
        pooled=having(findings.pooled, choice.key),
        runs=having(findings.loaded.runs, choice.key),
        factors=separate(waterfall),
        cheapest=cheapest,
    )


def ranked(
    now: Situation, points: pd.DataFrame, runs: pd.DataFrame
) -> tuple[list[Lever], list[Tried]]:
    """The levers that the records support, the highest gain first, and what was tried.

    A lever that was tried is not estimated again: it helped, and is proposed with its measured
    gain unless the configuration has it already, or it did not.

    Args:
        now: the recommended configuration.
        points: measured configurations of all series.
        runs: runs of all series.
    """
    tried = trials.trials(now, points, runs)
    known = {one.kind for one in tried}
    estimated = [lever for rule in RULES if (lever := rule(now)) is not None]
    found = [one for one in estimated if one.kind not in known and one.command]
    found += [trials.as_lever(one) for one in tried if one.helped and not one.is_used]
    return sorted(found, key=lambda one: -one.gain.value), tried
