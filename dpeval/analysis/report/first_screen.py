"""What a reader sees first: what to use, what it costs, what it loses, and what to try next."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dpeval.analysis.advice.advise import Advice
from dpeval.analysis.advice.levers.lever import Lever
from dpeval.analysis.advice.objectives import Cost, Option
from dpeval.analysis.advice.quantity import Quantity
from dpeval.analysis.advice.recommendation import Recommendation
from dpeval.analysis.advice.settling import time_text
from dpeval.analysis.report import loss_bars
from dpeval.analysis.report.loss_bars import Bar
from dpeval.analysis.scaling.findings import Findings
from dpeval.analysis.scaling.speedup import having
from dpeval.util.display.ranges import number, percent, percents

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Big:
    """One of the three figures beside the recommendation."""

    value: str
    unit: str
    interval: str


@dataclass(frozen=True)
class LeverCard:
    """A lever as the page shows it."""

    title: str
    gain: str
    interval: str
    basis: str
    reason: str
    caution: str
    command: str


@dataclass(frozen=True)
class Screen:
    """One family of configurations."""

    label: str
    lead: str
    """What comes before the configuration: Use, or why it is only an estimate."""
    name: str
    headline: str
    big: list[Big]
    within: str
    settle: str
    command: str
    columns: list[str]
    rows: list[list[str]]
    """Of the table of objectives."""
    bars: list[Bar]
    bars_title: str
    levers: list[LeverCard]
    tried: list[str]


def screens(findings: Findings, advice: list[Advice]) -> list[Screen]:
    """One screen for each family, the most important first."""
    return [_screen(findings, one) for one in advice]


def _screen(findings: Findings, advice: Advice) -> Screen:
    said = advice.recommendation
    columns, rows = _table(advice.options)
    best = (said.num_devices, said.batch)
    bars = loss_bars.of_waterfalls(findings.waterfalls, said.key, best)
    title = "What holds it back: from ideal to measured"
    if not bars and said.name:
        key = {**said.key, "num_devices": said.num_devices, "batch": said.batch}
        row = {str(k): v for k, v in having(findings.points, key).iloc[0].items()}
        bars, title = loss_bars.of_phases(row), "Where the time of a step goes"
    lead, _, rest = said.headline.partition(said.name) if said.name else (said.headline, "", "")
    return Screen(
        label=advice.label,
        lead=lead.strip().rstrip(":"),
        name=said.name,
        headline=said.headline + "." * (not rest.endswith(".") and bool(rest)),
        big=_big(said, advice.options) if said.name else [],
        within=said.within_error,
        settle=said.settle,
        command=said.settle_command,
        columns=columns,
        rows=rows,
        bars=bars,
        bars_title=title,
        levers=[_card(one) for one in advice.levers],
        tried=[one.sentence for one in advice.tried],
    )


def _big(said: Recommendation, options: list[Option]) -> list[Big]:
    """Throughput, speedup and efficiency; on one device, what an epoch takes instead."""
    made = [_figure(said.throughput, f"{said.unit}/s")]
    if said.speedup.is_known:
        one = {"cpu": "one CPU device", "gpu": "one GPU"}.get(said.key["hardware"], "one device")
        made.append(Big(f"{said.speedup.value:.1f}×", one, _ends(said.speedup, 1)))
        share = said.efficiency
        ends = percents(share.low, share.high) if share.has_interval else ""
        made.append(Big(percent(share.value), "efficient", ends))
        return made
    fastest = next((one for one in options if one.name == said.name), None)
    if fastest is not None and fastest.epoch is not None:
        samples = f"per epoch of {fastest.epoch.samples:,.0f} {said.unit}"
        made.append(Big(time_text(3600 * fastest.epoch.hours), samples, ""))
        made.append(Big(number(fastest.epoch.device_hours), "device-hours per epoch", ""))
    return made


def _figure(quantity: Quantity, unit: str) -> Big:
    value, _, ends = quantity.text().partition(" (")
    return Big(value, unit, ends.rstrip(")"))


def _ends(quantity: Quantity, places: int) -> str:
    if not quantity.has_interval:
        return ""
    return f"{quantity.low:.{places}f}–{quantity.high:.{places}f}"


def _table(options: list[Option]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table of objectives; a column that nobody knows is left out."""
    costs: list[tuple[str, str]] = []
    epoch = next((one.epoch for one in options if one.epoch is not None), None)
    training = next((one.training for one in options if one.training is not None), None)
    if epoch is not None:
        costs.append(("epoch", "per epoch"))
    if training is not None:
        costs.append(("training", f"for {training.samples:,.0f} samples"))
    is_priced = any(
        cost is not None and math.isfinite(cost.price)
        for one in options
        for cost in (one.epoch, one.training)
    )
    columns = ["objective", "configuration", "throughput", "efficiency"]
    for _, of in costs:
        columns += [f"time {of}", f"device-hours {of}", f"energy {of}"]
        columns += [f"price {of}"] * is_priced
    rows = []
    for one in options:
        if not one.name:
            blank = ["–"] * (len(columns) - 2)
            rows.append([one.title, one.why_not, *blank])
            continue
        row = [one.title, one.name + f" (or {one.ties} more)" * (one.ties > 0),
               one.throughput.text(f"{one.unit}/s"), _efficiency(one)]  # fmt: skip
        for kind, _ in costs:
            row += _cost(one.epoch if kind == "epoch" else one.training, is_priced)
        rows.append(row)
    return columns, rows


def _efficiency(option: Option) -> str:
    if option.num_devices == 1:
        return "one device"
    return option.efficiency.percent() if option.efficiency.is_known else NOT_MEASURED


def _cost(cost: Cost | None, is_priced: bool) -> list[str]:
    if cost is None:
        return [NOT_MEASURED] * (3 + is_priced)
    energy = number(cost.energy_kwh) if math.isfinite(cost.energy_kwh) else ""
    cells = [
        time_text(3600 * cost.hours),
        number(cost.device_hours),
        f"{energy} kWh" if energy else NOT_MEASURED,
    ]
    return [*cells, number(cost.price)] if is_priced else cells


def _card(lever: Lever) -> LeverCard:
    gain = lever.gain
    sign = "−" if lever.of == "device-hours" else "+"
    what = "device-hours" if lever.of == "device-hours" else "throughput"
    interval = f"{what}, {percents(gain.low, gain.high)}"
    return LeverCard(
        title=lever.title,
        gain=f"{sign}{percent(gain.value)}",
        interval=interval,
        basis="measured" if lever.is_measured else "estimate",
        reason=lever.reason[:1].upper() + lever.reason[1:] + ".",
        caution=lever.caution[:1].upper() + lever.caution[1:] + "." * bool(lever.caution),
        command=lever.command,
    )
