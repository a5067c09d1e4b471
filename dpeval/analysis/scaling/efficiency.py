"""The efficiency waterfall: parallel efficiency as an exact product of named factors.

The reference is the POP model (https://pop-coe.eu/node/69; Wagner et al. 2018, "A Structured
Approach to Performance Analysis"), which multiplies load balance, communication and computation
scalability. The ablation windows of a record (all ranks as usual, without synchronisation, one
rank alone) split computation scalability further.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dpeval.analysis.frame.runs_frame import CONFIGURATION
from dpeval.analysis.scaling.speedup import FAMILY

INPUT = "input"
GRANULARITY = "granularity"
CONTENTION = "contention"
BALANCE = "load balance"
SYNCHRONISATION = "gradient synchronisation"
REMAINDER = "remainder"
ORDER = (INPUT, GRANULARITY, CONTENTION, BALANCE, SYNCHRONISATION, REMAINDER)

MEANING = {
    INPUT: "longer waits for data than on one device",
    GRANULARITY: "a per-device batch that computes less efficiently than the one-device batch",
    CONTENTION: "ranks competing for memory bandwidth, clock speed and cores",
    BALANCE: "a slowest rank that delays the others",
    SYNCHRONISATION: "gradient summation: exposed communication, copies of gradients into and out "
    "of buckets, and the slowdown of computation by hidden communication",
    REMAINDER: "outliers and drift outside the ablation windows",
}


@dataclass(frozen=True)
class Factor:
    """One factor of a configuration's efficiency."""

    parts: tuple[str, ...]
    """Of :data:`ORDER`; more than one if they could not be separated."""
    value: float
    half: float
    """Half-width of its 95 % interval by first-order propagation; NaN where not known."""
    note: str = ""
    """What was missing or assumed."""

    @property
    def name(self) -> str:
        return " × ".join(self.parts)

    @property
    def short(self) -> str:
        """The name for a label."""
        return self.name if len(self.parts) <= 2 else "other factors (not separated)"


@dataclass(frozen=True)
class Waterfall:
    """The factors of one configuration; their product is its efficiency."""

    key: dict[str, Any]
    """Values of :data:`~dpeval.analysis.frame.runs_frame.CONFIGURATION`."""
    efficiency: float
    factors: list[Factor]

    @property
    def largest_loss(self) -> Factor:
        return min(self.factors, key=lambda factor: factor.value)


def waterfalls(measured: pd.DataFrame) -> list[Waterfall]:
    """The factors of every configuration of :func:`~dpeval.analysis.scaling.speedup.points`.

    Only for series with a one-device run: the windows have no meaning against another baseline.
    """
    if measured.empty:
        return []
    found = []
    for _, group in measured.groupby(FAMILY, dropna=False, sort=True):
        base = group[group["num_devices"] == 1]
        if len(base):
            rows = group[group["num_devices"] > 1].sort_values("num_devices").to_dict("records")
            found += [waterfall(_plain(base.iloc[0].to_dict()), _plain(row)) for row in rows]
    return found


def _plain(row: dict[Any, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in row.items()}


def waterfall(base: dict[str, Any], cell: dict[str, Any]) -> Waterfall:
    """Factor the efficiency of `cell` against one device, `base`.

    With X throughputs in img/s, w the share of a step that waits for data, B the images per step,
    T the mean step in the main window, and of the ablation windows A the usual step, S the
    step without synchronisation, S' that of the first rank, C that rank's step when it runs
    alone, at its own batch b:

    - input: (1-w_N) / (1-w_1)
    - granularity: rate alone over the rate of one device, (b/C) / X_1
    - contention: the first rank alone against among the others, C/S' · (1-w_1) / (1-w_N), since
      the input factor already counts waiting for data
    - load balance: B / (N b) · S' / S, the slowest rank against the first and the fullest share
      against the mean one
    - gradient synchronisation: S / A
    - remainder: A / T

    The product telescopes to X_N / (N X_1) = E. The first rank is the reference throughout, as
    one device is the first one too: POP's mean over max would call it contention where the
    straggler is another, and contention above 1 where it is the first. That form stands in,
    with C / (S L N b / B) for contention, where S' is not recorded but the load balance L is.

    If a window is missing, its factors merge into one: E over the product of the others.
    """
    efficiency = float(cell["img_per_s"]) / (cell["num_devices"] * float(base["img_per_s"]))
    made = list(_factors(base, cell))
    known = math.prod(factor.value for factor in made)
    known_parts = {part for factor in made for part in factor.parts}
    left = tuple(part for part in ORDER if part not in known_parts)
    if left:
        made.append(Factor(left, efficiency / known, math.nan, _why(left, cell)))
    made.sort(key=lambda factor: ORDER.index(factor.parts[0]))
    return Waterfall({name: cell[name] for name in CONFIGURATION}, efficiency, made)


def _factors(base: dict[str, Any], cell: dict[str, Any]) -> Iterator[Factor]:
    waiting = _input(base, cell)
    if waiting is not None:
        yield waiting
    if _known(cell["normal_s"]) is None:
        if (balance := _known(cell["balance"])) is not None:
            yield Factor((BALANCE,), balance, math.nan)
        if (synchronisation := _from_phases(base, cell)) is not None:
            yield synchronisation
        return
    yield from _windows(base, cell, waiting.value if waiting is not None else None)


def _from_phases(base: dict[str, Any], cell: dict[str, Any]) -> Factor | None:
    """Gradient synchronisation without windows: the share of a step that it visibly takes.

    Gradients are copied on one device too if its model is wrapped; only the copies beyond those
    are a cost of more devices.
    """
    exposed, copies = _known(cell["comm_exposed_s"]), _known(cell["grad_copy_s"])
    if exposed is None:
        return None
    many = (exposed + (copies or 0.0)) / cell["step_s"]
    one = (_known(base["grad_copy_s"]) or 0.0) / base["step_s"] if copies is not None else 0.0
    if many >= 1 or one >= 1:
        return None
    sources = "exposed communication" + " and gradient copies" * (copies is not None)
    note = f"from {sources} alone: no ablation windows"
    return Factor((SYNCHRONISATION,), (1 - many) / (1 - one), math.nan, note)


def _input(base: dict[str, Any], cell: dict[str, Any]) -> Factor | None:
    shares = [_known(row["data_s"]) for row in (base, cell)]
    if shares[0] is None or shares[1] is None:
        return None
    one, many = shares[0] / base["step_s"], shares[1] / cell["step_s"]
    if one >= 1 or many >= 1:
        return None
    note = (
        "assumes that the windows waited for data as long as the main window"
        if max(one, many) > 0.05
        else ""
    )
    return Factor((INPUT,), (1 - many) / (1 - one), math.nan, note)


def _windows(base: dict[str, Any], cell: dict[str, Any], waiting: float | None) -> Iterator[Factor]:
    """The factors from the ablation windows; `waiting` is the input factor."""
    normal, no_sync = float(cell["normal_s"]), _known(cell["no_sync_s"])
    alone, batch = _known(cell["alone_s"]), _known(cell["alone_batch"])
    error = {name: _share(cell, name) for name in ("normal", "no_sync", "alone")}
    if no_sync is not None:
        value = no_sync / normal
        yield Factor((SYNCHRONISATION,), value, _half(value, error["no_sync"], error["normal"]))
    if no_sync is not None or alone is not None:
        value = normal / float(cell["step_s"])
        yield Factor((REMAINDER,), value, _half(value, error["normal"], _rate_error(cell)))
    if alone is not None and batch is not None:
        value = batch / alone / float(base["img_per_s"])
        yield Factor((GRANULARITY,), value, _half(value, error["alone"], _rate_error(base)))
    if no_sync is None or batch is None:
        return
    images = float(cell["img_per_s"]) * float(cell["step_s"])
    share = images / (cell["num_devices"] * batch)
    first, note = _first_rank(cell, no_sync, share)
    if first is None:
        return
    value = share * first / no_sync
    yield Factor((BALANCE,), value, _half(value, error["no_sync"]), note)
    if alone is not None and waiting is not None:
        value = alone / first / waiting
        yield Factor((CONTENTION,), value, _half(value, error["no_sync"], error["alone"]))


def _first_rank(cell: dict[str, Any], no_sync: float, share: float) -> tuple[float | None, str]:
    """Step of the first rank without synchronisation, or of the mean one in its place, s."""
    first, balance = _known(cell["no_sync_first_s"]), _known(cell["balance"])
    if first is not None:
        return first, ""
    if balance is not None:
        return no_sync * balance / share, "mean over maximum compute time of the ranks"
    return None, ""


def _why(left: tuple[str, ...], cell: dict[str, Any]) -> str:
    lacking = []
    if _known(cell["normal_s"]) is None:
        lacking.append("no ablation windows")
    elif _known(cell["no_sync_s"]) is None:
        lacking.append("no window without synchronisation")
    elif _known(cell["alone_s"]) is None:
        lacking.append("no window of one rank alone")
    if _known(cell["normal_s"]) is None and _known(cell["comm_exposed_s"]) is None:
        lacking.append("exposed communication not measured")
    if _known(cell["balance"]) is None:
        lacking.append("no load balance")
    if INPUT in left:
        lacking.append("no time spent waiting for data")
    together = "not separated: " if len(left) > 1 else ""
    return together + (", ".join(lacking) or "what the other factors leave")


def _known(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)


def _share(cell: dict[str, Any], window: str) -> float:
    """Relative standard error of a window's median step; NaN where not known."""
    value, error = _known(cell[f"{window}_s"]), _known(cell[f"{window}_se_s"])
    return error / value if value and error is not None else math.nan


def _rate_error(row: dict[str, Any]) -> float:
    """Relative standard error of a throughput from its 95 % interval."""
    return float(row["high"] - row["low"]) / 2 / 1.96 / float(row["img_per_s"])


def _half(value: float, *errors: float) -> float:
    """95 % half-width of a ratio of independent values with these relative standard errors."""
    return value * 1.96 * math.hypot(*errors)


def table(found: list[Waterfall]) -> pd.DataFrame:
    """One row per configuration and factor: :data:`CONFIGURATION`, `factor`, `parts` (all that
    it covers), `value`, `half`, `note`; a configuration's values multiply to its efficiency."""
    return pd.DataFrame(
        [
            {
                **item.key,
                "factor": f.short,
                "parts": f.name,
                "value": f.value,
                "half": f.half,
                "note": f.note,
            }
            for item in found
            for f in item.factors
        ],
        columns=[*CONFIGURATION, "factor", "parts", "value", "half", "note"],
    )
