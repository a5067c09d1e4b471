"""The efficiency waterfall: parallel efficiency as an exact product of named factors.

The reference is the POP model (https://pop-coe.eu/node/69; Wagner et al. 2018, "A Structured
Approach to Performance Analysis"), which multiplies load balance, communication and computation
scalability. The ablation windows of a record (all ranks as normal, without synchronisation, one
rank alone) split computation scalability further."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from dpeval.analysis.frame.as_rows import as_rows
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
    INPUT: "waits for data that delay a step longer than on one device",
    GRANULARITY: "a per-device batch that computes less efficiently than the one-device batch, or "
    "drift between the two runs",
    CONTENTION: "ranks competing for memory bandwidth, clock speed and cores",
    BALANCE: "a slowest rank that delays the others",
    SYNCHRONISATION: "gradient summation and broadcasts of buffers: exposed communication, copies "
    "of gradients into and out of buckets, and the slowdown of computation by hidden communication",
    REMAINDER: "outliers and drift outside the ablation windows",
}
_MOST_HALF = 700.0
"""A larger one would overflow."""
SAME_BATCH = "drift between the one-device run and this one, whose first rank has the same batch"
"""The meaning of granularity in weak scaling."""


@dataclass(frozen=True)
class Factor:
    """One factor of a configuration's efficiency."""

    parts: tuple[str, ...]
    """Names from :data:`ORDER`; several if they could not be separated."""
    value: float
    half: float
    """Half-width of the 95 % interval of its logarithm, by first-order propagation; NaN if
    unknown."""
    note: str = ""
    """What was missing or assumed."""
    meaning: str = ""
    """What the first two parts lose."""

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.value * math.exp(-self.half)  # 0 for absurdly large half-widths

    @property
    def high(self) -> float:
        return self.value * math.exp(min(self.half, _MOST_HALF))

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
    def largest_losses(self) -> list[Factor]:
        """The lowest factor and the others that could be the lowest, the lowest first.

        A factor cannot be if its 95 % interval lies above that of any other. That is stricter than
        a test of their ratio, but valid however their errors depend on each other: two factors may
        come from the same windows."""
        lowest = min(self.factors, key=lambda factor: factor.value)
        known = [one.high for one in self.factors if math.isfinite(one.high)]
        least = min(known, default=math.inf)
        others = [one for one in self.factors if one is not lowest and not least < one.low]
        return [lowest, *sorted(others, key=lambda factor: factor.value)]


def waterfalls(measured: pd.DataFrame) -> list[Waterfall]:
    """The factors of every configuration of :func:`~dpeval.analysis.scaling.speedup.points`.

    Only for series with a one-device run: the windows mean nothing against another baseline."""
    if measured.empty:
        return []
    found = []
    for _, group in measured.groupby(FAMILY, dropna=False, sort=True):
        base = group[group["num_devices"] == 1]
        if len(base):
            rows = as_rows(group[group["num_devices"] > 1].sort_values("num_devices"))
            found += [waterfall(_plain(base.iloc[0].to_dict()), _plain(row)) for row in rows]
    return found


def _plain(row: dict[Any, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in row.items()}


def waterfall(base: dict[str, Any], cell: dict[str, Any]) -> Waterfall:
    """Factor the efficiency of `cell` against one device, `base`.

    X is throughput in img/s, B the images per step, T the mean step in the main window, L its delay
    by waits for data, and b the first rank's batch. The ablation windows give, without waits for
    data: A the normal step, S the step without synchronisation, F that of the first rank, and C
    that rank's step when it runs alone.

    - input: (1 - L_N/T_N) / (1 - L_1/T_1)
    - granularity: rate alone over the rate of one device, b / C / (X_1 / (1 - L_1/T_1))
    - contention: the first rank alone against among the others, C / F
    - load balance: B / (N b) · F / S, the slowest rank against the first and the fullest share
      against the mean one
    - gradient synchronisation: S / A
    - remainder: A / (T_N - L_N)

    The product telescopes to X_N / (N X_1) = E. The first rank is the reference throughout, because
    one device is the first one, too: with POP's mean over max, a straggler would appear as
    contention, or as contention above 1 if it is the first rank. Waits for data are in the input
    factor alone, as far as they delay a step (:mod:`dpeval.analysis.frame.step_losses`).

    If a window is missing, its factors merge into one: E over the product of the others.
    """
    efficiency = float(cell["img_per_s"]) / (cell["num_devices"] * float(base["img_per_s"]))
    made = list(_factors(base, cell))
    known = math.prod(factor.value for factor in made)
    known_parts = {part for factor in made for part in factor.parts}
    left = tuple(part for part in ORDER if part not in known_parts)
    if left:
        of_efficiency = _log_half(cell["efficiency_low"], cell["efficiency_high"])
        half = math.hypot(of_efficiency, *(factor.half for factor in made))
        made.append(Factor(left, efficiency / known, half, _why(left, cell)))
    made.sort(key=lambda factor: ORDER.index(factor.parts[0]))
    told = [replace(factor, meaning=_meaning(factor, base, cell)) for factor in made]
    return Waterfall({name: cell[name] for name in CONFIGURATION}, efficiency, told)


def _meaning(factor: Factor, base: dict[str, Any], cell: dict[str, Any]) -> str:
    is_same = _known(cell["alone_batch"]) == _known(base["per_device_batch_max"])
    is_same = is_same if _known(cell["alone_batch"]) is not None else cell["scaling"] == "weak"
    meanings = MEANING | ({GRANULARITY: SAME_BATCH} if is_same else {})
    return " and ".join(meanings[part] for part in factor.parts[:2])


def _factors(base: dict[str, Any], cell: dict[str, Any]) -> Iterator[Factor]:
    waiting = _input(base, cell)
    if waiting is not None:
        yield waiting
    if _known(cell["normal_s"]) is None:
        if (balance := _known(cell["balance"])) is not None:
            yield Factor((BALANCE,), balance, float(cell["balance_half"]))
        if (synchronisation := _from_phases(base, cell)) is not None:
            yield synchronisation
        return
    yield from _windows(base, cell)


def _from_phases(base: dict[str, Any], cell: dict[str, Any]) -> Factor | None:
    """Gradient synchronisation without windows: its visible share of a step.

    Waits for slower ranks are in the load balance, so the exposed communication is that of the
    rank that waits least. Gradients are copied on one device too if its model is wrapped; only the
    copies beyond those are a cost of more devices.
    """
    exposed, copies = _known(cell["exposed_s"]), _known(cell["grad_copy_s"])
    if exposed is None:
        return None
    many = 1 - (exposed + (copies or 0.0)) / _busy_s(cell)
    one = 1 - (_known(base["grad_copy_s"]) or 0.0) / _busy_s(base) if copies is not None else 1.0
    if many <= 0 or one <= 0:
        return None
    sources = "exposed communication" + " and gradient copies" * (copies is not None)
    note = f"from {sources} alone: no ablation windows"
    return Factor((SYNCHRONISATION,), many / one, float(cell["exposed_half"]), note)


def _busy_s(row: dict[str, Any]) -> float:
    """The mean step without delays by waits for data, s."""
    return float(row["step_s"]) - (_known(row["input_s"]) or 0.0)


def _input(base: dict[str, Any], cell: dict[str, Any]) -> Factor | None:
    if _known(base["input_s"]) is None or _known(cell["input_s"]) is None:
        return None
    one, many = (_busy_s(row) / float(row["step_s"]) for row in (base, cell))
    if one <= 0 or many <= 0:
        return None
    half = math.hypot(float(base["input_half"]), float(cell["input_half"]))
    return Factor((INPUT,), many / one, half, _assumed(cell, 1 - many))


def _assumed(cell: dict[str, Any], share: float) -> str:
    if cell["num_devices"] > 1 and _known(cell["exposed_s"]) is None:
        return "the longest wait of any rank: communication was not timed"
    if cell["waits_assumed"] and share > 0.05:
        return "assumes that the windows waited for data as long as the main window"
    return ""


def _windows(base: dict[str, Any], cell: dict[str, Any]) -> Iterator[Factor]:
    """The factors from the ablation windows."""
    normal, no_sync = float(cell["normal_s"]), _known(cell["no_sync_s"])
    alone, batch = _known(cell["alone_s"]), _known(cell["alone_batch"])
    if no_sync is not None:
        yield Factor((SYNCHRONISATION,), no_sync / normal, float(cell["sync_half"]))
    if (no_sync is not None or alone is not None) and _busy_s(cell) > 0:
        yield Factor((REMAINDER,), normal / _busy_s(cell), float(cell["normal_half"]))
    if alone is not None and batch is not None and _busy_s(base) > 0:
        computing = float(base["img_per_s"]) * float(base["step_s"]) / _busy_s(base)
        # This compares two runs, so the spread between runs counts for both …
        half = math.hypot(float(cell["alone_half"]), _between_half(cell), _rate_half(base))
        note = "also includes what changed between the one-device run and this one"
        paired = _known(cell["granularity_half"])
        if paired is not None and cell["is_paired"]:  # … unless they took turns
            half, note = paired, ""
        yield Factor((GRANULARITY,), batch / alone / computing, half, note)
    first = _known(cell["no_sync_first_s"])
    if no_sync is None or first is None or batch is None:
        return
    images = float(cell["img_per_s"]) * float(cell["step_s"])
    share = images / (cell["num_devices"] * batch)
    yield Factor((BALANCE,), share * first / no_sync, float(cell["first_half"]))
    if alone is not None:
        yield Factor((CONTENTION,), alone / first, float(cell["contention_half"]))


def _why(left: tuple[str, ...], cell: dict[str, Any]) -> str:
    lacking = []
    if _known(cell["normal_s"]) is None:
        lacking.append("no ablation windows")
    elif _known(cell["no_sync_s"]) is None:
        lacking.append("no window without synchronisation")
    elif _known(cell["alone_s"]) is None:
        lacking.append("no window of one rank alone")
    if _known(cell["normal_s"]) is None and _known(cell["exposed_s"]) is None:
        lacking.append("exposed communication not measured")
    if _known(cell["balance"]) is None:
        lacking.append("no load balance")
    if INPUT in left:
        lacking.append("no time spent waiting for data")
    together = "not separated: " if len(left) > 1 else ""
    return together + (", ".join(lacking) or "what the other factors leave")


def _known(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)


def _rate_half(row: dict[str, Any]) -> float:
    """Half-width of the 95 % interval of log X, with the spread between runs."""
    return _log_half(row["comparable_low"], row["comparable_high"])


def _between_half(row: dict[str, Any]) -> float:
    """The part of :func:`_rate_half` that a single run does not show; zero with repetitions."""
    own = _log_half(row["low"], row["high"])
    return math.sqrt(max(0.0, _rate_half(row) ** 2 - own**2))


def _log_half(low: float, high: float) -> float:
    """Half-width of the logarithm of an interval; NaN unless both ends are positive and finite."""
    return (math.log(high) - math.log(low)) / 2 if 0 < low <= high < math.inf else math.nan


def table(found: list[Waterfall]) -> pd.DataFrame:
    """One row per configuration and factor: :data:`CONFIGURATION`, `factor`, `parts` (all that
    it covers), `value`, `low`, `high` (95 % interval), `note`; a configuration's values multiply to
    its efficiency."""
    return pd.DataFrame(
        [
            {
                **item.key,
                "factor": f.short,
                "parts": f.name,
                "value": f.value,
                "low": f.low,
                "high": f.high,
                "note": f.note,
            }
            for item in found
            for f in item.factors
        ],
        columns=[*CONFIGURATION, "factor", "parts", "value", "low", "high", "note"],
    )
