"""What to use, in one line: the best configuration, how sure that is, and what would settle it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dpeval.analysis.advice.quantity import Quantity
from dpeval.analysis.advice.settling import Settling, row_of, settling, time_text
from dpeval.analysis.frame.labels import configuration
from dpeval.analysis.scaling.best_configuration import (
    DEVICE_SECONDS,
    ENERGY,
    LEAST_GAP,
    THROUGHPUT,
    Candidate,
    Choice,
)
from dpeval.analysis.scaling.findings import Findings
from dpeval.analysis.scaling.speedup import having
from dpeval.util.display.plural import counted, some_of
from dpeval.util.display.ranges import percent

_MOST_NAMED = 3


@dataclass(frozen=True)
class Recommendation:
    """The best configuration of one family for the objective that the user chose."""

    choice: Choice
    """Of the family, over all batches."""
    headline: str
    """What to use, in one line."""
    name: str
    """The configuration in words; empty: there is none to recommend."""
    num_devices: int
    batch: int
    throughput: Quantity
    speedup: Quantity
    """Over one device; NaN on one device, and where the batch was not measured on one."""
    efficiency: Quantity
    within_error: str
    """What cannot be told apart from it; empty: nothing."""
    settling: Settling | None
    """Runs that would tell them apart; None: nothing to settle, or not known what would."""
    settle: str
    """The same in one sentence, which `settle_command` completes; empty: nothing to say."""

    @property
    def key(self) -> dict[str, Any]:
        """Names the family."""
        return self.choice.key

    @property
    def unit(self) -> str:
        """What a sample is."""
        return self.choice.sample

    @property
    def is_settled(self) -> bool:
        """Whether no other configuration could be the best."""
        return self.choice.best is not None and not self.choice.ties

    @property
    def settle_command(self) -> str:
        """What to type; empty: nothing would settle it, or no record names its command."""
        return self.settling.command if self.settling and self.settling.is_reasonable else ""

    @property
    def settle_s(self) -> float:
        """How long that command takes, s; NaN: not known."""
        return self.settling.seconds if self.settling and self.settle_command else math.nan


def recommend(findings: Findings, choice: Choice) -> Recommendation:
    """The recommendation for one family.

    Args:
        findings: the results.
        choice: its best configuration over all batches.
    """
    best = choice.best
    if best is None:
        nothing = Quantity(math.nan)
        return Recommendation(
            choice, f"Nothing to recommend: {choice.why_not}.", "", 0, 0, nothing, nothing,
            nothing, _doubtful(choice), None, "",
        )  # fmt: skip
    row = row_of(findings.points, choice, best)
    throughput = Quantity.throughput(row)
    speedup = efficiency = Quantity(math.nan)
    if row["baseline_devices"] == 1 and best.num_devices > 1:
        speedup = Quantity(*(float(row[f"speedup{end}"]) for end in ("", "_low", "_high")))
        efficiency = Quantity(best.efficiency, best.efficiency_low, best.efficiency_high)
    wanted = settling(findings.loaded.runs, findings.points, choice)
    runs = having(findings.loaded.runs, choice.key)
    tail = _figures(choice, best, throughput, speedup, efficiency)
    return Recommendation(
        choice=choice,
        headline=_headline(choice, f"{_named(choice, best)}: {tail}"),
        name=_named(choice, best),
        num_devices=best.num_devices,
        batch=best.batch,
        throughput=throughput,
        speedup=speedup,
        efficiency=efficiency,
        within_error=" ".join(filter(None, [_ties(choice), _doubtful(choice)])),
        settling=wanted,
        settle=_settle(choice, wanted, took_turns=bool(runs["sitting"].ne("").any())),
    )


def _headline(choice: Choice, best: str) -> str:
    able, all_ = len(choice.ties) + 1, len(choice.others) + 1
    if all_ == 1 and not choice.floor:
        return f"Only one configuration was measured: {best}"
    if not choice.ties or able < all_:
        return f"Use {best}"
    best_at = _BEST_AT.get(choice.objective.name, "best")
    if choice.are_equal:
        return (
            f"{some_of(able, able, 'configuration').capitalize()} are within "
            f"{percent(LEAST_GAP)} of the {best_at}. Best estimate: {best}"
        )
    return (
        f"Nothing is settled: {some_of(able, able, 'configuration')} could be the {best_at}. "
        f"Best estimate: {best}"
    )


_BEST_AT = {
    THROUGHPUT.name: "fastest",
    DEVICE_SECONDS.name: "one that takes the fewest device-hours",
    ENERGY.name: "one that takes the least energy",
    "efficient": "fastest that is efficient enough",
}


def _figures(
    choice: Choice, best: Candidate, throughput: Quantity, speedup: Quantity, efficiency: Quantity
) -> str:
    """The value by which it was chosen, throughput, speedup and efficiency."""
    parts = []
    if choice.objective in (DEVICE_SECONDS, ENERGY):
        parts.append(Quantity(best.value, best.low, best.high).text(choice.unit))
    parts.append(throughput.text(f"{choice.sample}/s"))
    if speedup.is_known:
        one = {"cpu": "one CPU device", "gpu": "one GPU"}.get(choice.key["hardware"], "one device")
        parts += [f"{speedup.value:.1f}× {one}", f"{percent(efficiency.value)} efficient"]
    return ", ".join(parts)


def _named(choice: Choice, one: Candidate) -> str:
    return configuration(one.num_devices, one.batch, choice.key["scaling"], choice.key["hardware"])


def _ties(choice: Choice) -> str:
    """The others that could be the best, and the cheapest of them."""
    if not choice.ties:
        return ""
    shown = ", ".join(_named(choice, one) for one in choice.ties[:_MOST_NAMED])
    more = len(choice.ties) - _MOST_NAMED
    said = f"Within its error: {shown}{f' and {more} more' * (more > 0)}."
    cheapest = min(choice.able, key=lambda one: (one.num_devices, one.batch))
    if choice.best is not None and cheapest.num_devices < choice.best.num_devices:
        within = (
            f", at most {percent(cheapest.behind)} behind the best"
            if math.isfinite(cheapest.behind)
            else ""
        )
        said += f" {_named(choice, cheapest)} takes the fewest devices{within}."
    return said


def _doubtful(choice: Choice) -> str:
    """Better ones of which it is not known or settled whether they reach the floor."""
    if not choice.doubtful:
        return ""
    shown = ", ".join(_named(choice, one) for one in choice.doubtful[:_MOST_NAMED])
    more = len(choice.doubtful) - _MOST_NAMED
    return (
        f"Not settled whether {shown}{f' and {more} more' * (more > 0)} "
        f"{'reaches' if len(choice.doubtful) == 1 else 'reach'} {percent(choice.floor or 0)} "
        "efficiency."
    )


def _settle(choice: Choice, wanted: Settling | None, *, took_turns: bool) -> str:
    """What would settle it, in a sentence that ends in a colon where a command follows."""
    if choice.are_equal:
        return (
            f"All of these are within {percent(LEAST_GAP)} of the best (95 % confidence): take "
            "whichever is cheapest."
        )
    if wanted is None:
        return ""
    takes = f" (about {time_text(wanted.seconds)})" if math.isfinite(wanted.seconds) else ""
    if not wanted.is_reasonable:
        turns = "" if took_turns else ", in turns (sweep.order=interleaved)"
        return (
            f"This machine was too noisy: to {wanted.purpose} would take {wanted.repeats} more "
            f"runs of each{takes}. Stop what else runs on it, or use another machine, then "
            f"measure again{turns}; or take whichever is cheapest."
        )
    if wanted.measure:  # in place of those that there are
        how, together = f" with measure={wanted.measure}", ""
    else:
        how, together = "", ", then analyse both folders together"
    runs = counted(wanted.repeats, "run" if wanted.measure else "more run")
    end = ":" if wanted.command else "."
    return f"To {wanted.purpose}, measure {runs} of each{how}{takes}{together}{end}"
