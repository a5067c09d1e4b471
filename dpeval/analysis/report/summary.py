"""``summary.json``: all findings for programs; :func:`json_schema` describes it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict

from dpeval.analysis.advice.advise import Advice
from dpeval.analysis.advice.objectives import Cost, Option
from dpeval.analysis.advice.quantity import Quantity
from dpeval.analysis.frame.as_rows import as_rows
from dpeval.analysis.frame.columns import COLUMNS
from dpeval.analysis.pooling.repetitions import POOLED
from dpeval.analysis.report import verdict
from dpeval.analysis.scaling import efficiency
from dpeval.analysis.scaling.findings import Findings
from dpeval.analysis.scaling.scaling_laws import Curve, Estimate, Fit
from dpeval.analysis.scaling.speedup import POINT_COLUMNS
from dpeval.util.version import __version__

FILE_NAME = "summary.json"
VERSION = 3

Value = str | int | float | bool | None
"""A number that is not known or not finite is null."""
Cell = dict[str, Value]


class Part(BaseModel):
    """Base of what is written here."""

    model_config = ConfigDict(frozen=True)


class FittedLaw(Part):
    """One law fitted to one curve; see :class:`dpeval.analysis.scaling.scaling_laws.Fit`."""

    law: str
    source: str
    parameters: dict[str, Estimate]
    rate_one_img_per_s: Estimate
    residuals: dict[str, float]
    aicc: float | None
    misfit_p: float | None
    peak_devices: Estimate | None


class Laws(Part):
    """What the laws say of one scaling curve."""

    curve: Cell
    devices: list[int]
    best: str | None
    verdict: str
    fits: list[FittedLaw]


class Explained(Part):
    """A surprising claim with its evidence."""

    configuration: Cell
    kind: str
    text: str
    causes: list[str]
    evidence: list[str]


class Chosen(Part):
    """The best configuration for an objective; `batch` null: over all batches."""

    family: Cell
    batch: int | None
    objective: str
    unit: str
    best: Cell | None
    others: list[Cell]
    """All others that qualify, best value first: `could_be_best` of each, with 95 % confidence, and
    how far `behind` the best it is at most, as a share."""
    why_not: str
    doubtful: list[Cell] = []
    """Better ones of which it is not settled whether they reach the floor of efficiency."""


class Amount(Part):
    """A value with its 95 % interval."""

    value: float | None
    low: float | None
    high: float | None


class Costs(Part):
    """What it takes to process `samples`; null: not measured, or not told."""

    samples: float
    hours: float | None
    device_hours: float | None
    energy_kwh: float | None
    price: float | None


class ForObjective(Part):
    """The best configuration for one objective; `configuration` empty: none, see `why_not`."""

    objective: str
    title: str
    configuration: str
    num_devices: int
    batch: int
    unit: str
    throughput: Amount
    efficiency: Amount
    epoch: Costs | None
    training: Costs | None
    ties: int
    why_not: str


class ToTry(Part):
    """A lever: see :class:`dpeval.analysis.advice.levers.lever.Lever`."""

    kind: str
    title: str
    reason: str
    gain: Amount
    gain_of: str
    is_measured: bool
    caution: str
    command: str


class WasTried(Part):
    """A lever that was measured both ways; `gain` is that of throughput, as a share."""

    kind: str
    key: str
    before: str
    after: str
    configuration: str
    gain: Amount
    sentence: str


class Recommended(Part):
    """What to use of one family of configurations, and what to try next."""

    family: Cell
    label: str
    headline: str
    configuration: str
    num_devices: int
    batch: int
    unit: str
    throughput: Amount
    speedup: Amount
    efficiency: Amount
    is_settled: bool
    within_error: str
    settle: str
    settle_command: str
    settle_s: float | None
    objectives: list[ForObjective]
    levers: list[ToTry]
    tried: list[WasTried]


class Summary(Part):
    """Everything that the analysis found."""

    stated_spread: float | None = None
    """Standard deviation between runs that the user stated, over the mean; null: none."""
    summary_version: int = VERSION
    dpeval_version: str = __version__
    recommendations: list[Recommended]
    """One for each family, the one with the most configurations first."""
    verdict: list[str]
    claims_in_words: list[str]
    cautions: list[str]
    problems: list[str]
    differences: dict[str, dict[str, str]]
    configurations: list[Cell]
    factors: list[Cell]
    laws: list[Laws]
    claims: list[Explained]
    choices: list[Chosen]
    columns: dict[str, str]
    """Meaning and unit of every column of `configurations` and of ``runs.csv``."""


def summarise(
    findings: Findings, advice: Sequence[Advice], cautions: Iterable[str] = ()
) -> Summary:
    """The findings as a :class:`Summary`.

    Args:
        findings: the results.
        advice: what follows from them.
        cautions: what makes them less trustworthy.
    """
    return Summary(
        stated_spread=findings.stated_spread,
        recommendations=[_recommended(one) for one in advice],
        verdict=verdict.sentences(findings, advice),
        claims_in_words=verdict.claims(findings),
        cautions=list(cautions),
        problems=findings.loaded.problems,
        differences=findings.loaded.differences,
        configurations=cells(findings.summary),
        factors=cells(efficiency.table(findings.waterfalls)),
        laws=[_laws(curve) for curve in findings.curves],
        claims=[
            Explained(
                configuration=_plain(claim.key),
                kind=claim.kind,
                text=claim.text,
                causes=list(claim.causes),
                evidence=list(claim.evidence),
            )
            for claim in findings.claims
        ],
        choices=[
            Chosen(
                family=_plain(one.key),
                batch=one.batch,
                objective=one.objective.name,
                unit=one.unit,
                best=_plain(vars(one.best)) if one.best is not None else None,
                others=[_plain(vars(other)) for other in one.others],
                why_not=one.why_not,
                doubtful=[_plain(vars(other)) for other in one.doubtful],
            )
            for one in findings.choices
        ],
        columns={**COLUMNS, **POOLED, **POINT_COLUMNS},
    )


def _recommended(advice: Advice) -> Recommended:
    said = advice.recommendation
    return Recommended(
        family=_plain(said.key),
        label=advice.label,
        headline=said.headline,
        configuration=said.name,
        num_devices=said.num_devices,
        batch=said.batch,
        unit=said.unit,
        throughput=_amount(said.throughput),
        speedup=_amount(said.speedup),
        efficiency=_amount(said.efficiency),
        is_settled=said.is_settled,
        within_error=said.within_error,
        settle=said.settle,
        settle_command=said.settle_command,
        settle_s=_finite(said.settle_s),
        objectives=[_for_objective(one) for one in advice.options],
        levers=[
            ToTry(
                kind=one.kind, title=one.title, reason=one.reason, gain=_amount(one.gain),
                gain_of=one.of, is_measured=one.is_measured, caution=one.caution,
                command=one.command,
            )
            for one in advice.levers
        ],
        tried=[
            WasTried(
                kind=one.kind, key=one.key, before=one.before, after=one.after,
                configuration=one.name, gain=_amount(one.gain), sentence=one.sentence,
            )
            for one in advice.tried
        ],
    )  # fmt: skip


def _for_objective(option: Option) -> ForObjective:
    return ForObjective(
        objective=option.objective,
        title=option.title,
        configuration=option.name,
        num_devices=option.num_devices,
        batch=option.batch,
        unit=option.unit,
        throughput=_amount(option.throughput),
        efficiency=_amount(option.efficiency),
        epoch=_costs(option.epoch),
        training=_costs(option.training),
        ties=option.ties,
        why_not=option.why_not,
    )


def _amount(quantity: Quantity) -> Amount:
    return Amount(**{name: _finite(value) for name, value in vars(quantity).items()})


def _costs(cost: Cost | None) -> Costs | None:
    if cost is None:
        return None
    known = {name: _finite(value) for name, value in vars(cost).items() if name != "samples"}
    return Costs(samples=cost.samples, **known)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write(summary: Summary, path: Path) -> None:
    """Write it as JSON.

    Raises:
        OSError: the folder cannot be written.
    """
    path.write_text(as_json(summary) + "\n", encoding="utf-8")


def as_json(summary: Summary) -> str:
    """The text of ``summary.json``."""
    return summary.model_dump_json(indent=1)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``summary.json``."""
    return Summary.model_json_schema()


def cells(frame: pd.DataFrame) -> list[Cell]:
    """Rows as plain values, what is not finite as None."""
    return [_plain(row) for row in as_rows(frame)]


def _plain(values: Mapping[Any, Any]) -> Cell:
    return {str(name): _value(value) for name, value in values.items()}


def _value(value: Any) -> Value:
    if value is None or isinstance(value, str | bool):
        return value
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) else str(value)


def _laws(curve: Curve) -> Laws:
    return Laws(
        curve=_plain(curve.key),
        devices=curve.devices,
        best=curve.best,
        verdict=curve.verdict,
        fits=[_fit(fit) for fit in curve.fits],
    )


def _fit(fit: Fit) -> FittedLaw:
    return FittedLaw(
        law=fit.law,
        source=fit.source,
        parameters=fit.parameters,
        rate_one_img_per_s=fit.rate_one,
        residuals={str(devices): value for devices, value in fit.residuals.items()},
        aicc=fit.aicc,
        misfit_p=fit.misfit_p,
        peak_devices=fit.peak_devices,
    )
