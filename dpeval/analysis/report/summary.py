"""``summary.json``: all findings for programs; :func:`json_schema` describes it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict

from dpeval.analysis.frame.columns import COLUMNS
from dpeval.analysis.pooling.repetitions import POOLED
from dpeval.analysis.report import verdict
from dpeval.analysis.scaling import efficiency
from dpeval.analysis.scaling.findings import Findings
from dpeval.analysis.scaling.scaling_laws import Curve, Estimate, Fit
from dpeval.analysis.scaling.speedup import POINT_COLUMNS
from dpeval.util.version import __version__

FILE_NAME = "summary.json"
VERSION = 2

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


class Summary(Part):
    """Everything that the analysis found."""

    summary_version: int = VERSION
    dpeval_version: str = __version__
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


def summarise(findings: Findings, cautions: Iterable[str] = ()) -> Summary:
    """The findings as a :class:`Summary`."""
    return Summary(
        verdict=verdict.sentences(findings),
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


def write(summary: Summary, path: Path) -> None:
    """Write it as JSON.

    Raises:
        OSError: the folder cannot be written.
    """
    path.write_text(summary.model_dump_json(indent=1) + "\n", encoding="utf-8")


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``summary.json``."""
    return Summary.model_json_schema()


def cells(frame: pd.DataFrame) -> list[Cell]:
    """Rows as plain values, what is not finite as None."""
    return [_plain(row) for row in frame.to_dict("records")]


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
