"""The best configuration for each objective, with what an epoch or a job of it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dpeval.analysis.advice.quantity import Quantity
from dpeval.analysis.advice.settling import row_of
from dpeval.analysis.frame.labels import configuration
from dpeval.analysis.scaling.best_configuration import (
    DEVICE_SECONDS,
    EFFICIENT,
    ENERGY,
    MIN_EFFICIENCY,
    THROUGHPUT,
    Choice,
)
from dpeval.analysis.scaling.findings import Findings
from dpeval.util.display.ranges import percent

JOULES_PER_KWH = 3.6e6
ORDER = (THROUGHPUT, DEVICE_SECONDS, ENERGY, EFFICIENT)


@dataclass(frozen=True)
class Terms:
    """What the user told about the training to come."""

    samples: float | None = None
    """Samples that the whole training processes; None: not told."""
    price_per_device_hour: float | None = None
    """In any currency; None: not told."""


@dataclass(frozen=True)
class Cost:
    """What it takes to process a number of samples; NaN: not known."""

    samples: float
    hours: float
    device_hours: float
    energy_kwh: float
    price: float


@dataclass(frozen=True)
class Option:
    """The best configuration for one objective."""

    objective: str
    title: str
    name: str
    """The configuration in words; empty: none, for the reason in `why_not`."""
    num_devices: int
    batch: int
    throughput: Quantity
    efficiency: Quantity
    """Against one device; NaN where the batch was not measured on one."""
    epoch: Cost | None
    """None: the size of the data is not known."""
    training: Cost | None
    """Of :attr:`Terms.samples`; None: not told."""
    ties: int
    """How many others could be the best for this objective as well."""
    unit: str
    """What a sample is."""
    why_not: str = ""


def options(findings: Findings, key: dict[str, Any], terms: Terms) -> list[Option]:
    """One option per objective, for one family.

    Args:
        findings: the results.
        key: names the family (:data:`~dpeval.analysis.scaling.best_configuration.FAMILY`).
        terms: what the user told.
    """
    overall = {
        one.objective: one for one in findings.choices if one.batch is None and one.key == key
    }
    return [_option(findings, overall[one], terms) for one in ORDER if one in overall]


def title(choice: Choice) -> str:
    """The objective in the words of a table."""
    titles = {
        THROUGHPUT: "fastest",
        DEVICE_SECONDS: "fewest device-hours",
        ENERGY: "least energy",
        EFFICIENT: f"fastest at {percent(choice.floor or MIN_EFFICIENCY)} efficiency or more",
    }
    return titles[choice.objective]


def _option(findings: Findings, choice: Choice, terms: Terms) -> Option:
    best = choice.best
    if best is None:
        nothing = Quantity(math.nan)
        why_not = "not measured" if choice.objective is ENERGY else choice.why_not
        return Option(
            choice.objective.name, title(choice), "", 0, 0, nothing, nothing, None, None, 0,
            choice.sample, why_not,
        )  # fmt: skip
    row = row_of(findings.points, choice, best)
    name = configuration(
        best.num_devices, best.batch, choice.key["scaling"], choice.key["hardware"]
    )
    images = train_images(findings.loaded.runs, choice.key)
    return Option(
        objective=choice.objective.name,
        title=title(choice),
        name=name,
        num_devices=best.num_devices,
        batch=best.batch,
        throughput=Quantity.throughput(row),
        efficiency=Quantity(best.efficiency, best.efficiency_low, best.efficiency_high),
        epoch=cost(row, images, terms) if math.isfinite(images) else None,
        training=cost(row, terms.samples, terms) if terms.samples is not None else None,
        ties=len(choice.ties),
        unit=choice.sample,
    )


def cost(row: pd.Series[Any], samples: float, terms: Terms) -> Cost:
    """What `samples` take of a configuration, at its measured throughput and energy.

    Args:
        row: a measured configuration.
        samples: how many are processed.
        terms: for the price.
    """
    hours = samples / float(row["img_per_s"]) / 3600
    device_hours = hours * int(row["num_devices"])
    price = math.nan if terms.price_per_device_hour is None else terms.price_per_device_hour
    return Cost(
        samples=samples,
        hours=hours,
        device_hours=device_hours,
        energy_kwh=float(row["energy_j_per_img"]) * samples / JOULES_PER_KWH,
        price=price * device_hours,
    )


def train_images(runs: pd.DataFrame, key: dict[str, Any]) -> float:
    """Samples of an epoch of a family's data; NaN: not recorded, or runs differ."""
    known = runs.loc[runs["series"] == key["series"], "train_images"].dropna().unique()
    return float(known[0]) if len(known) == 1 and known[0] > 0 else math.nan
