"""Everything that one can act on, for each family of configurations."""

from __future__ import annotations

from dataclasses import dataclass

from dpeval.analysis.advice.levers.lever import Lever
from dpeval.analysis.advice.levers.ranking import ranked, situation
from dpeval.analysis.advice.levers.trials import Tried
from dpeval.analysis.advice.objectives import Option, Terms, options
from dpeval.analysis.advice.recommendation import Recommendation, recommend
from dpeval.analysis.scaling.best_configuration import Choice
from dpeval.analysis.scaling.findings import Findings
from dpeval.analysis.scaling.speedup import having

MOST_FAMILIES = 12
_MOST_LABEL = 3


@dataclass(frozen=True)
class Advice:
    """What to use of one family, and what to try next."""

    label: str
    """What sets the family apart from the others; empty: there is one."""
    recommendation: Recommendation
    options: list[Option]
    levers: list[Lever]
    tried: list[Tried]


def advise(findings: Findings, terms: Terms | None = None) -> list[Advice]:
    """Advice for every family: the one with the most configurations first, then the fastest.

    Args:
        findings: the results.
        terms: what the user told about the training to come.
    """
    ordered = sorted(findings.chosen, key=lambda one: _order(findings, one), reverse=True)
    return [_advice(findings, one, terms or Terms()) for one in ordered[:MOST_FAMILIES]]


def _order(findings: Findings, choice: Choice) -> tuple[int, float]:
    points = having(findings.points, choice.key)
    return len(points), float(points["img_per_s"].max())


def _advice(findings: Findings, choice: Choice, terms: Terms) -> Advice:
    levers: list[Lever] = []
    tried: list[Tried] = []
    if choice.best is not None:
        now = situation(findings, choice, choice.best)
        levers, tried = ranked(now, findings.points, findings.loaded.runs)
    return Advice(
        label=_label(findings, choice),
        recommendation=recommend(findings, choice),
        options=options(findings, choice.key, terms),
        levers=levers,
        tried=tried,
    )


def _label(findings: Findings, choice: Choice) -> str:
    """What sets a family apart, in the fewest words."""
    chosen = findings.chosen
    if len(chosen) < 2:
        return ""
    series = str(choice.key["series"])
    differing = findings.loaded.differences.get(series, {})
    parts = [
        f"{choice.key['scaling']} scaling" * (len({one.key["scaling"] for one in chosen}) > 1),
        str(choice.key["hardware"]).upper() * (len({one.key["hardware"] for one in chosen}) > 1),
    ]
    if 0 < len(differing) <= _MOST_LABEL:
        parts += [f"{name}={value or '–'}" for name, value in differing.items()]
    elif len({one.key["series"] for one in chosen}) > 1:
        parts.append(series)
    return ", ".join(part for part in parts if part)
