"""What the findings come to, in sentences, the most telling first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from dpeval.analysis.frame.labels import baseline, cell_name, device_count
from dpeval.analysis.scaling import best_configuration
from dpeval.analysis.scaling.best_configuration import Candidate, Choice
from dpeval.analysis.scaling.efficiency import MEANING, REMAINDER, Waterfall
from dpeval.analysis.scaling.evidence import FAULT_SHARE
from dpeval.analysis.scaling.findings import Findings
from dpeval.analysis.scaling.scaling_laws import Curve
from dpeval.analysis.scaling.speedup import having
from dpeval.util.plural import counted, some_of

MOST_FAMILIES = 12
WINDOWS_AGREE = 0.1
"""Ablation windows whose step differs by less than this fraction from the main window's."""
_MOST_CLAIMS = 8


def sentences(findings: Findings) -> list[str]:
    """For every family: the best configuration, what its efficiency is lost to, its law."""
    best = [
        one for one in findings.choices
        if one.objective is findings.objective and one.batch is None
    ]  # fmt: skip
    said = [line for one in best[:MOST_FAMILIES] for line in _family(findings, one)]
    more = len(best) - MOST_FAMILIES
    return said + [f"{more} more series: see the tables."] * (more > 0)


def claims(findings: Findings) -> list[str]:
    """What must be explained before it is believed."""
    said = [claim.sentence for claim in findings.claims[:_MOST_CLAIMS]]
    more = len(findings.claims) - _MOST_CLAIMS
    return said + [f"{counted(more, 'more claim')}: see summary.json."] * (more > 0)


def lacking(findings: Findings) -> list[str]:
    """What records of foreign files cannot say, a sentence for each set of lacks."""
    runs = findings.loaded.runs
    counts = runs.loc[runs["lacks"] != "", "lacks"].value_counts()
    return [
        f"Not recorded in {some_of(count, len(runs), 'run')}: {words}."
        for words, count in counts.head(_MOST_CLAIMS).items()
    ]


def _family(findings: Findings, chosen: Choice) -> Iterator[str]:
    if chosen.best is None:
        yield f"{chosen.key['series']}: no best configuration, {chosen.why_not}."
        return
    key, best = chosen.key, chosen.best
    row = _row(findings.points, chosen, best)
    yield f"{_where(findings, chosen)}, {row['model'] or 'the model'} {_best(chosen, best, row)}"
    if pd.notna(row["speedup"]) and best.num_devices > row["baseline_devices"]:
        base = int(row["baseline_devices"])
        times = row["speedup"] / base
        yield (
            f"Against {baseline(base, row['baseline'])}, that is {times:.2f} times the "
            f"throughput at an efficiency of {row['efficiency']:.0%}"
            f"{_range(row['efficiency_low'], row['efficiency_high'], '.0%')}."
        )
    for item in findings.waterfalls:
        if item.key["num_devices"] == best.num_devices and _same(item.key, key, best.batch):
            yield _loss(item)
    for curve in findings.curves:
        if _same(curve.key, key, best.batch):
            yield _law(curve)
    yield from _page_faults(findings.points, key)


def _same(found: dict[str, Any], key: dict[str, Any], batch: int) -> bool:
    return found["batch"] == batch and all(found[name] == value for name, value in key.items())


def _row(points: pd.DataFrame, chosen: Choice, best: Candidate) -> dict[str, Any]:
    wanted = {**chosen.key, "num_devices": best.num_devices, "batch": best.batch}
    return {str(k): v for k, v in having(points, wanted).iloc[0].to_dict().items()}


def _where(findings: Findings, chosen: Choice) -> str:
    runs = findings.loaded.runs
    hosts = [host for host in runs.loc[runs["series"] == chosen.key["series"], "host"].unique()
             if host]  # fmt: skip
    if len(hosts) == 1:
        return f"On {hosts[0]}"
    return f"On {len(hosts)} machines" if hosts else "On an unnamed machine"


def _best(chosen: Choice, best: Candidate, row: dict[str, Any]) -> str:
    hardware, is_weak = chosen.key["hardware"], chosen.key["scaling"] == "weak"
    words = {
        best_configuration.THROUGHPUT.name: "is fastest on",
        best_configuration.DEVICE_SECONDS.name: "takes the fewest device-seconds per image on",
        best_configuration.ENERGY.name: "takes the least energy per image on",
        best_configuration.EFFICIENT.name: "is fastest above the efficiency floor on",
    }[chosen.objective.name]
    at = f"batch {best.batch}{' per device' * is_weak}"
    stand_in = " with stand-in data" if row["stand_in"] else ""
    value = f"{best.value:.3g} {chosen.objective.unit}{_range(best.low, best.high, '.3g')}"
    on = device_count(best.num_devices, hardware)
    return f"{words} {on} at {at}{stand_in}: {value}.{_ties(chosen)}"


def _range(low: float, high: float, form: str) -> str:
    if not (np.isfinite(low) and np.isfinite(high)):
        return " (no interval known)"
    return f" ({low:{form}} to {high:{form}}, 95 %)" if low != high else ""


def _ties(chosen: Choice) -> str:
    if not chosen.ties:
        return ""
    shown = [
        f"{one.num_devices} at batch {one.batch}"
        for one in sorted(chosen.ties, key=lambda one: (one.num_devices, one.batch))[:4]
    ]
    more = len(chosen.ties) - len(shown)
    said = ", ".join(shown) + (f" and {more} more" if more else "")
    return f" Within the error, {said} {'does' if len(chosen.ties) == 1 else 'do'} as well."


def _loss(item: Waterfall) -> str:
    factor = item.largest_loss
    product = " × ".join(f"{f.name} {f.value:.2f}" for f in item.factors)
    doubt = _doubt(item)
    if factor.value > 0.99:
        return f"No factor of that efficiency loses more than 1 % ({product}).{doubt}"
    is_one = len(factor.parts) == 1
    because = f"because of {MEANING[factor.parts[0]]}" if is_one else factor.note
    return (
        f"The largest loss is {factor.name} (× {factor.value:.2f}), {because}; in all: {product}."
        f"{doubt}"
    )


def _doubt(item: Waterfall) -> str:
    """What to hold against the factors where the windows behind them were not as the main one."""
    off = next((f.value for f in item.factors if f.parts == (REMAINDER,)), 1.0)
    if abs(off - 1) <= WINDOWS_AGREE:
        return ""
    return (
        f" The windows behind these factors took {off:.2f} times the main window's step: the "
        "machine or the training was in another state there, and no factor is surer than that."
    )


def _page_faults(points: pd.DataFrame, key: dict[str, Any]) -> Iterator[str]:
    """Which configurations of a family lose time to freed memory that is faulted in again."""
    family = having(points, key)
    losing = family[family["page_fault_share"] > FAULT_SHARE].sort_values("page_fault_share")
    if losing.empty:
        return
    worst = losing.iloc[-1]
    others = f" ({len(losing)} of {len(family)} configurations lose over {FAULT_SHARE:.0%})"
    same = family[family["batch"] == worst["batch"]]
    more = same[same["num_devices"] > worst["num_devices"]]
    is_owed = (worst["page_fault_share"] - more["page_fault_share"] > FAULT_SHARE).any()
    yield (
        f"{cell_name(worst)} loses at least {worst['page_fault_share']:.0%} of its step to "
        f"{worst['page_faults']:,.0f} page faults: freed memory is returned to the OS and faulted "
        f"in again by the next step{others if len(losing) > 1 else ''}; "
        "hardware.keep_memory=true avoids that."
        + " Part of a speedup over it is owed to that, not to devices."
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
