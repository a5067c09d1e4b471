"""The findings in sentences, the most important first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dpeval.analysis.advice.advise import Advice
from dpeval.analysis.advice.recommendation import Recommendation
from dpeval.analysis.advice.settling import row_of
from dpeval.analysis.frame.labels import baseline, cell_name, configuration
from dpeval.analysis.pooling.repetitions import TURNS
from dpeval.analysis.pooling.run_spread import ASSUMED_SHARE, COHORT
from dpeval.analysis.scaling import best_configuration
from dpeval.analysis.scaling.best_configuration import Candidate, Choice
from dpeval.analysis.scaling.contrasts import took_turns
from dpeval.analysis.scaling.efficiency import REMAINDER, Waterfall
from dpeval.analysis.scaling.evidence import FAULT_SHARE
from dpeval.analysis.scaling.findings import Findings
from dpeval.analysis.scaling.scaling_laws import Curve
from dpeval.analysis.scaling.speedup import having
from dpeval.util.display.plural import counted, some_of
from dpeval.util.display.ranges import decimals_of, percent, percents, with_span

WINDOWS_AGREE = 0.1
"""Ablation windows whose step differs by less than this fraction from the main window's."""
_MOST_CLAIMS = 8
_MOST_NAMED = 4


def sentences(findings: Findings, advice: Sequence[Advice]) -> list[str]:
    """For every family: the best configuration, what its efficiency is lost to, its law.

    Where the records cannot tell which configuration is best, the first sentence of the family says
    so, and the next ones what would settle it.

    Args:
        findings: the results.
        advice: what follows from them, for the families to speak of, in their order.
    """
    said = [line for one in advice for line in _family(findings, one.recommendation)]
    more = len(findings.chosen) - len(advice)
    said += [f"{more} more series: see the tables."] * (more > 0)
    return [*said, *_spread(findings)]


def _spread(findings: Findings) -> list[str]:
    """The spread between runs that comparisons allow for, once for all series."""
    points = findings.points
    if len(points) < 2:
        return []
    return [*_allowed_for(points, findings.stated_spread), *_not_allowed_for(points)]


def _allowed_for(points: pd.DataFrame, stated: float | None) -> Iterator[str]:
    # Runs of one step are compared by their median, with an interval from these runs alone.
    points = points[points["centre"] == "mean"]
    families = [rows for _, rows in points.groupby(best_configuration.FAMILY, dropna=False)]
    if all(took_turns(rows) for rows in families if len(rows) > 1):
        return
    compared = "Comparisons" + " of runs that did not take turns" * bool(points["is_paired"].any())
    is_measured = points["spread_freedom"].notna()
    if is_measured.any():
        known = points[is_measured].drop_duplicates(COHORT)
        shares = sorted(known["spread_share"])
        ends = dict.fromkeys(percent(share, None) for share in (shares[0], shares[-1]))
        freedom = int(known["spread_freedom"].sum())
        yield (
            f"{compared} allow for the spread between runs: a standard deviation of "
            f"{' to '.join(ends)}, measured on the repetitions "
            f"({counted(freedom, 'degree')} of freedom)."
        )
    if not is_measured.all():
        where = "Where too little was repeated, they" if is_measured.any() else compared
        if stated is not None:
            yield (
                f"{where} allow for the spread between runs that was stated, "
                f"{percent(stated, None)} (standard deviation)."
            )
            return
        yield (
            f"{where} assume a spread between runs of {percent(ASSUMED_SHARE)} (standard "
            "deviation); measure=repeated repeat=5 measures it, and --spread states another."
        )


def _not_allowed_for(points: pd.DataFrame) -> Iterator[str]:
    sat = points[[len(turns) > 0 for turns in points[TURNS]]]
    if len(sat):
        is_single = bool((sat["n_runs"] == 1).any())
        yield (
            "Ratios of runs that took turns come from their rounds, so the spread between runs is "
            "not in their intervals"
            + "; repeat=5 shows what differs between processes" * is_single
            + "."
        )


def claims(findings: Findings) -> list[str]:
    """Surprising results, with the evidence about each."""
    said = [claim.sentence for claim in findings.claims[:_MOST_CLAIMS]]
    more = len(findings.claims) - _MOST_CLAIMS
    return said + [f"{counted(more, 'more claim')}: see summary.json."] * (more > 0)


def lacking(findings: Findings) -> list[str]:
    """What imported records lack, one sentence per set of gaps."""
    runs = findings.loaded.runs
    counts = runs.loc[runs["lacks"] != "", "lacks"].value_counts()
    return [
        f"Not recorded in {some_of(count, len(runs), 'run')}: {words}."
        for words, count in counts.head(_MOST_CLAIMS).items()
    ]


def _family(findings: Findings, recommended: Recommendation) -> Iterator[str]:
    chosen = recommended.choice
    if chosen.best is None:
        yield f"{chosen.key['series']}: no best configuration, {chosen.why_not}."
        yield from _doubtful(chosen)
        return
    key, best = chosen.key, chosen.best
    found = row_of(findings.points, chosen, best).to_dict()
    row = {str(name): value for name, value in found.items()}
    if chosen.ties:
        yield from _undecided(findings, recommended, row)
    else:
        where, model = _where(findings, chosen), row["model"] or "the model"
        yield f"{where}, {model} {_OBJECTIVE_WORDS[chosen.objective.name]} {_told(chosen, row)}."
    yield from _doubtful(chosen)
    if pd.notna(row["speedup"]) and best.num_devices > row["baseline_devices"]:
        base = int(row["baseline_devices"])
        times = row["speedup"] / base
        low, high = row["efficiency_low"], row["efficiency_high"]
        yield (
            f"{_named(chosen, best)} have {times:.2f} times the throughput of "
            f"{baseline(base, row['baseline'])}: an efficiency of {percent(row['efficiency'])}"
            f"{_interval(low, high)}."
        )
    for item in findings.waterfalls:
        if item.key["num_devices"] == best.num_devices and _same(item.key, key, best.batch):
            yield loss(item)
    for curve in findings.curves:
        if _same(curve.key, key, best.batch):
            yield _law(curve)
    yield from _page_faults(findings.points, key)


def _same(found: dict[str, Any], key: dict[str, Any], batch: int) -> bool:
    return found["batch"] == batch and all(found[name] == value for name, value in key.items())


def _where(findings: Findings, chosen: Choice) -> str:
    runs = findings.loaded.runs
    hosts = [host for host in runs.loc[runs["series"] == chosen.key["series"], "host"].unique()
             if host]  # fmt: skip
    if len(hosts) == 1:
        return f"On {hosts[0]}"
    return f"On {len(hosts)} machines" if hosts else "On an unnamed machine"


_OBJECTIVE_WORDS = {
    best_configuration.THROUGHPUT.name: "is fastest on",
    best_configuration.DEVICE_SECONDS.name: "takes the fewest device-seconds per image on",
    best_configuration.ENERGY.name: "takes the least energy per image on",
    best_configuration.EFFICIENT.name: "is fastest above the efficiency floor on",
}


def _told(chosen: Choice, row: dict[str, Any]) -> str:
    """The configuration with the best value, and that value."""
    best = chosen.best
    assert best is not None
    stand_in = " with stand-in data" if row["stand_in"] else ""
    places = decimals_of(best.value)
    value = f"{best.value:.{places}f} {chosen.unit}{_interval(best.low, best.high, places)}"
    return f"{_named(chosen, best)}{stand_in}: {value}"


def _named(chosen: Choice, one: Candidate) -> str:
    return configuration(one.num_devices, one.batch, chosen.key["scaling"], chosen.key["hardware"])


def _undecided(
    findings: Findings, recommended: Recommendation, row: dict[str, Any]
) -> Iterator[str]:
    """That several configurations could be the best, and what would settle it."""
    chosen = recommended.choice
    best, able = chosen.best, len(chosen.ties) + 1
    assert best is not None
    where, model = _where(findings, chosen), row["model"] or "the model"
    if able == len(chosen.others) + 1:
        yield (
            f"{where}, no configuration of {model} can be told from the best: "
            f"{some_of(able, able, 'configuration')} could have the {chosen.description} "
            "(95 % confidence)."
        )
    else:
        others = sorted(chosen.ties, key=lambda one: (one.num_devices, one.batch))
        shown = ", ".join(_named(chosen, one) for one in others[:_MOST_NAMED])
        more = f" and {len(others) - _MOST_NAMED} more" * (len(others) > _MOST_NAMED)
        yield (
            f"{where}, {able} of {len(chosen.others) + 1} configurations of {model} could have the "
            f"{chosen.description} (95 % confidence): {_named(chosen, best)}, "
            f"{shown}{more}."
        )
    within = f", within {percent(best.behind)} of the best" if np.isfinite(best.behind) else ""
    yield f"The best estimate is that of {_told(chosen, row)}{within}."
    if recommended.settle:
        yield f"{recommended.settle} {recommended.settle_command}".rstrip()


def _doubtful(chosen: Choice) -> Iterator[str]:
    """Candidates whose efficiency is not known well enough to choose or reject them."""
    for one in chosen.doubtful[:_MOST_NAMED]:
        name = _named(chosen, one)
        faster = f"{name} {'is faster' if chosen.objective.highest else 'takes less'}, but"
        if chosen.best is None:
            faster = f"{name}:"
        if np.isnan(one.efficiency):
            yield (
                f"{faster} its efficiency is not known: no run on one device at that batch was "
                "measured."
            )
            continue
        found = percent(one.efficiency) + _interval(one.efficiency_low, one.efficiency_high)
        yield (
            f"{faster} whether it reaches {percent(chosen.floor or 0)} efficiency is not settled: "
            f"{found}; more repetitions settle it."
        )
    more = len(chosen.doubtful) - _MOST_NAMED
    if more > 0:
        yield f"The efficiency of {more} more is not known or not settled: see summary.json."


def _interval(low: float, high: float, places: int | None = None) -> str:
    """The 95 % interval in parentheses, with that many decimal places; None: of a share."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return " (no interval known)"
    ends = percents(low, high) if places is None else f"{low:.{places}f} to {high:.{places}f}"
    return f" (95 % interval {ends})" if low != high else ""


def loss(item: Waterfall) -> str:
    """The largest loss, where it can be told apart from the others, and all factors."""
    lowest, *rivals = item.largest_losses
    product = " × ".join(f"{f.name} {with_span(f.value, f.low, f.high, 2)}" for f in item.factors)
    doubt = _doubt(item)
    if lowest.value > 0.99:
        return f"No factor of this efficiency loses more than 1 % ({product}).{doubt}"
    named = f"{lowest.name} (× {with_span(lowest.value, lowest.low, lowest.high, 2)})"
    is_one = len(lowest.parts) == 1
    because = f"because of {lowest.meaning}" if is_one else lowest.note
    if not np.isfinite(lowest.half):
        return (
            f"The lowest factor is {named}, {because}; its interval is unknown because nothing was "
            f"repeated. In all: {product}.{doubt}"
        )
    if all(one.high >= 1 for one in [lowest, *rivals]):
        return f"No factor of this efficiency can be told from 1 ({product}).{doubt}"
    if rivals:
        names = ", ".join(one.name for one in [lowest, *rivals[:-1]])
        return (
            f"The largest loss is one of {names} and {rivals[-1].name}: their intervals do not "
            f"tell which. In all: {product}.{doubt}"
        )
    return f"The largest loss is {named}, {because}. In all: {product}.{doubt}"


def _doubt(item: Waterfall) -> str:
    """A warning where the ablation windows were unlike the main window."""
    off = next((f.value for f in item.factors if f.parts == (REMAINDER,)), 1.0)
    if abs(off - 1) <= WINDOWS_AGREE:
        return ""
    return (
        f" The ablation windows took {off:.2f} times as long per step as the main window: the "
        "machine or the training was in a different state, so trust no factor beyond that."
    )


def _page_faults(points: pd.DataFrame, key: dict[str, Any]) -> Iterator[str]:
    """The configurations of a family that lose time to page faults."""
    family = having(points, key)
    losing = family[family["page_fault_share"] > FAULT_SHARE].sort_values("page_fault_share")
    if losing.empty:
        return
    worst = losing.iloc[-1]
    others = f" ({len(losing)} of {len(family)} configurations lose over {percent(FAULT_SHARE)})"
    same = family[family["batch"] == worst["batch"]]
    more = same[same["num_devices"] > worst["num_devices"]]
    is_owed = (worst["page_fault_share"] - more["page_fault_share"] > FAULT_SHARE).any()
    yield (
        f"{cell_name(worst)} loses at least {percent(worst['page_fault_share'])} of its step to "
        f"{worst['page_faults']:,.0f} page faults: freed memory is returned to the OS and faulted "
        f"in again by the next step{others if len(losing) > 1 else ''}; "
        "hardware.keep_memory=true avoids this."
        + " Part of any speedup over it comes from this, not from more devices."
        * bool(is_owed)
    )


def _law(curve: Curve) -> str:
    fitted = next((fit for fit in curve.fits if fit.law == curve.best), None)
    peak = ""
    if fitted is not None and fitted.peak_devices is not None:
        high = fitted.peak_devices.high
        end = f"{high:.0f}" if np.isfinite(high) else "any number"
        peak = (
            f" Its throughput would peak at {fitted.peak_devices.value:.0f} devices "
            f"({fitted.peak_devices.low:.0f} to {end})."
        )
    return curve.verdict + peak
