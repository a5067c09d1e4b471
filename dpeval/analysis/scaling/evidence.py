"""Evidence against a claim: one finder per cause, which returns a clause or None."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dpeval.analysis.scaling.efficiency import GRANULARITY, Waterfall
from dpeval.record.codes import SHORT_WARNINGS
from dpeval.record.phases import PHASE_WORDS, PHASES
from dpeval.stats.intervals import robust_deviation
from dpeval.util.display.ranges import percent

OUTLIER_SHARE = 0.10
"""A repetition this far from the median of the others …"""
OUTLIER_SCORE = 3.5
"""… and by this many robust standard deviations is an outlier (Iglewicz & Hoaglin 1993, How to
Detect and Handle Outliers, section 3)."""
INPUT_SHARE = 0.05
NOISE_SHARE = 0.05
FULL_SHARE = 0.90
"""A rank this close to its memory budget may swap, or free and reallocate."""
GAIN = 1.03
RISE = 0.05
UNEVEN = 1.05
MAJOR_FAULTS = 100
FAULT_SHARE = 0.03
"""Share of a step spent in minor page faults, not counting the cache lines they evict."""


@dataclass(frozen=True)
class Pair:
    """A configuration and the one it is compared with, each with its runs."""

    base: dict[str, Any]
    cell: dict[str, Any]
    base_runs: pd.DataFrame
    cell_runs: pd.DataFrame
    waterfall: Waterfall | None = None
    before: Waterfall | None = None


Finder = Callable[[Pair], str | None]


def outlier(pair: Pair) -> str | None:
    times = pair.base_runs["step_s"]
    if len(times) < 3:
        return None
    centre = float(times.median())
    spread = robust_deviation(times.dropna().to_numpy())
    far = times[(times - centre > OUTLIER_SHARE * centre)
                & (times - centre > OUTLIER_SCORE * spread)]  # fmt: skip
    if far.empty:
        return None
    without = float(pair.base["step_s"]) / float(times.drop(far.index).mean())
    efficiency = float(pair.cell["efficiency"]) / without
    return (
        f"{len(far)} of the {len(times)} repetitions of its baseline took up to "
        f"{float(far.max()) / centre:.2f} times the median step, like a cold run (without "
        f"{'it' if len(far) == 1 else 'them'}, efficiency {efficiency:.2f})"
    )


def _first_step(pair: Pair) -> str | None:
    runs = pair.base_runs
    if bool((runs["steps"] <= 1).any()):
        return (
            "its baseline is a single step with unknown warm-up, so it may include start-up costs"
        )
    if runs["warning_codes"].str.contains(r"\bcold_start\b").any():
        return "its baseline had a cold start"
    return None


def _unsteady(pair: Pair) -> str | None:
    which = [
        name
        for name, runs in (("its baseline", pair.base_runs), ("it", pair.cell_runs))
        if any(value is False for value in runs["steady"])
    ]
    return f"{' and '.join(which)} reached {SHORT_WARNINGS['unsteady']}" if which else None


def _threads(pair: Pair) -> str | None:
    one, many = pair.base["threads"], pair.cell["threads"]
    if pd.isna(one) or pd.isna(many) or one == many:
        return None
    return f"its baseline ran {one:g} threads per rank, not {many:g}"


def _waits(row: dict[str, Any]) -> float:
    """The share of a step added by waits for data; 0 if unknown."""
    share = float(row["input_s"]) / float(row["step_s"])
    return 0.0 if math.isnan(share) else share


def _input_bound(pair: Pair) -> str | None:
    one, many = _waits(pair.base), _waits(pair.cell)
    if one < INPUT_SHARE or one <= many:
        return None
    return f"its baseline spent {percent(one)} of a step waiting for data, not {percent(many)}"


def _page_faults(pair: Pair) -> str | None:
    one, many = pair.base["page_fault_share"], pair.cell["page_fault_share"]
    if pd.isna(one) or pd.isna(many) or one - many < FAULT_SHARE:
        return None
    return (
        f"page faults took at least {percent(one)} of its baseline's step, and {percent(many)} of "
        "its own (freed memory is returned to the OS and faulted in again; "
        "hardware.keep_memory=true avoids that)"
    )


def _machine(slower: dict[str, Any], other: dict[str, Any], name: str) -> str | None:
    one, many = slower["machine_s"], other["machine_s"]
    if pd.isna(one) or pd.isna(many) or one < (1 + RISE) * many:
        return None
    slower_by = one / many - 1
    return (
        f"the machine itself was {percent(slower_by)} slower for {name} "
        "(reference work between steps)"
    )


def _starved(pair: Pair) -> str | None:
    peak, budget = pair.base["peak_bytes"], pair.base["budget_bytes"]
    if pd.notna(peak) and pd.notna(budget) and budget > 0 and peak >= FULL_SHARE * budget:
        return f"its baseline filled {percent(peak / budget)} of its memory"
    faults = pair.base_runs["major_faults"].max()
    if pd.notna(faults) and faults >= MAJOR_FAULTS:
        return f"its baseline read {faults:g} pages back from disk"
    return None


def _accumulated(pair: Pair) -> str | None:
    one, many = pair.base["micro_batches"], pair.cell["micro_batches"]
    if pd.isna(one) or pd.isna(many) or one <= many:
        return None
    return f"its baseline split a batch into {one:g} micro-batches, not {many:g}"


def _noisy(pair: Pair) -> str | None:
    for name, row, runs in (
        ("its baseline", pair.base, pair.base_runs),
        ("it", pair.cell, pair.cell_runs),
    ):
        bad = next((text for text in runs["conditions_bad"] if text), "")
        if bad:
            return (
                f"{name} ran while {bad}"
                if len(bad) < 200
                else f"the machine was disturbed while {name} ran"
            )
        below, above = (row[end] / row["img_per_s"] - 1 for end in ("low", "high"))
        if above - below > 2 * NOISE_SHARE:
            whose = "its throughput" if name == "it" else f"the throughput of {name}"
            ends = " and ".join(percent(end, signed=True) for end in (below, above))
            return f"{whose} is known only to within {ends}"
        if runs["warning_codes"].str.contains(r"\bjitter\b|\bnoisy\b").any():
            return f"the steps of {name} jitter" if name != "it" else "its steps jitter"
    return None


def _regime(pair: Pair) -> str | None:
    factors = pair.waterfall.factors if pair.waterfall is not None else []
    found = next((factor for factor in factors if factor.parts == (GRANULARITY,)), None)
    if found is None or not found.value > GAIN or found.low < 1:
        return None
    gain, share = found.value, pair.cell["alone_batch"]
    if share == pair.base["per_device_batch_max"]:
        return (
            f"one rank alone is {gain:.2f} times as fast as the one-device run with the same "
            "batch: something changed between the two runs"
        )
    return (
        f"one rank alone is {gain:.2f} times as fast per image at its {share:g} images as one "
        "device with the whole batch (caches, memory, other kernels)"
    )


def _hardware(pair: Pair) -> str | None:
    for column, name in (("cpu_model", "CPU"), ("gpu_name", "GPU"), ("host", "host")):
        one, many = (set(runs[column]) - {""} for runs in (pair.base_runs, pair.cell_runs))
        if one and many and one != many:
            return (
                f"its baseline ran on another {name} ({', '.join(sorted(one)[:3])}; it: "
                f"{', '.join(sorted(many)[:3])})"
            )
    return None


def _oversubscribed(pair: Pair) -> str | None:
    return "its ranks share cores or GPUs" if pair.cell["oversubscribed"] else None


def _uneven(pair: Pair) -> str | None:
    row = pair.cell
    fullest, images = row["per_device_batch_max"], row["images_per_step"]
    if pd.isna(fullest) or pd.isna(images):
        return None
    over = fullest * row["num_devices"] / images
    if over < UNEVEN:
        return None
    return (
        f"{images:g} images do not divide evenly among {int(row['num_devices'])} ranks: the "
        f"largest share is {fullest:g}, {percent(over - 1)} above the mean"
    )


def _straggler(pair: Pair) -> str | None:
    one, many = pair.base["balance"], pair.cell["balance"]
    if pd.isna(many) or many > 1 - RISE or (pd.notna(one) and many > one - RISE):
        return None
    ranks = pair.cell_runs["slowest_rank"].dropna().unique()
    where = f" (rank {ranks[0]:g} is the slowest)" if len(ranks) == 1 else ""
    return f"its load balance is {many:.2f}{where}"


def _phase(pair: Pair) -> str | None:
    """The phase, other than forward and backward, whose share of the step rose most."""
    shares = {
        phase: (_phase_share(pair.base, phase), _phase_share(pair.cell, phase))
        for phase in PHASES
        if phase not in ("forward", "backward")
    }
    rises = {phase: now - before for phase, (before, now) in shares.items() if now - before > RISE}
    if not rises:
        return None
    phase = max(rises, key=lambda name: rises[name])
    name, share = PHASE_WORDS.get(phase, phase), shares[phase][1]
    return f"{name} takes {percent(share)} of its step, {rises[phase] * 100:.0f} points more"


_DELAYS = {"data": "input_s", "comm_exposed": "exposed_s"}
"""Columns with the delay of a step by any rank's wait, not the wait of one rank."""


def _phase_share(row: dict[str, Any], phase: str) -> float:
    """The share of a step that a phase takes."""
    known = [row[_DELAYS[phase]]] if phase in _DELAYS and pd.notna(row[_DELAYS[phase]]) else []
    return float([*known, row[f"{phase}_s"]][0]) / float(row["step_s"])


def _factor(pair: Pair) -> str | None:
    """The factor of the waterfall that fell most, unless that may be chance."""
    if pair.waterfall is None:
        return None
    factors = pair.before.factors if pair.before is not None else []
    before = {factor.parts: factor for factor in factors}
    falls = {
        factor.parts: factor.value / (before[factor.parts].value if factor.parts in before else 1)
        for factor in pair.waterfall.factors
    }
    now = min(pair.waterfall.factors, key=lambda factor: falls[factor.parts])
    then = before.get(now.parts)
    half = math.hypot(now.half, then.half) if then is not None else now.half
    if falls[now.parts] > 1 - RISE or math.log(falls[now.parts]) > -half:
        return None
    against = f" against {then.value:.2f}" if then is not None else ""
    return f"its {now.name} is {now.value:.2f}{against} ({now.meaning})"


def _nodes(pair: Pair) -> str | None:
    one, many = pair.base["num_nodes"], pair.cell["num_nodes"]
    return f"it spans {many:g} hosts, and the smaller configuration {one:g}" if many > one else None


OF_SUPER_LINEAR: dict[str, Finder] = {
    "baseline_outlier": outlier,
    "baseline_first_step": _first_step,
    "unsteady": _unsteady,
    "other_threads": _threads,
    "baseline_input_bound": _input_bound,
    "baseline_memory": _starved,
    "baseline_page_faults": _page_faults,
    "slower_machine": lambda pair: _machine(pair.base, pair.cell, "its baseline"),
    "baseline_accumulated": _accumulated,
    "noisy": _noisy,
    "faster_regime": _regime,
    "other_hardware": _hardware,
}
OF_SLOW: dict[str, Finder] = {
    "oversubscribed": _oversubscribed,
    "uneven_shares": _uneven,
    "more_nodes": _nodes,
    "straggler": _straggler,
    "phase": _phase,
    "factor": _factor,
    "other_threads": _threads,
    "other_hardware": _hardware,
    "slower_machine": lambda pair: _machine(pair.cell, pair.base, "it"),
    "unsteady": _unsteady,
    "noisy": _noisy,
}


def held_against(other: Pair) -> dict[str, Finder]:
    """The finders of losses, which compare with the base of `other` instead of their pair's."""

    def held(finder: Finder) -> Finder:
        return lambda _: finder(other)

    return {code: held(OF_SLOW[code]) for code in ("straggler", "phase", "factor")}
