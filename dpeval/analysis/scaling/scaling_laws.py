"""Scaling laws fitted to measured curves, and which one the data support, if any."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import WithJsonSchema

from dpeval.analysis.pooling.run_spread import student
from dpeval.analysis.scaling.speedup import FAMILY, having, ideal_at, ideal_speedup
from dpeval.util.arrays import Floats
from dpeval.util.display.ranges import percent

REFUSED_P = 0.01
"""A law whose misfit is less likely than this by chance is not supported by the data."""
_DRAWS = 2_000


@dataclass(frozen=True)
class Law:
    """A model of throughput over devices: X(N) = X_1 S(N; parameters).

    The parallel part of a step takes 1/N of its time on one device, or more if the fullest rank has
    more than its even share: one over the ideal speedup, which is B / ⌈B/N⌉ for B images."""

    name: str
    parameters: tuple[str, ...]
    """Parameters besides the throughput of one device."""
    speedup: Callable[[Floats, Floats, Sequence[Any]], Floats]
    """S as a function of device counts, their ideal speedups, and the parameters."""
    source: str
    start: tuple[float, ...] = ()


def _linear(_devices: Floats, ideal: Floats, _values: Sequence[Any]) -> Floats:
    return ideal


def _amdahl(_devices: Floats, ideal: Floats, values: Sequence[Any]) -> Floats:
    (serial,) = values
    return np.asarray(ideal / (1 + serial * (ideal - 1)))


def _gustafson(_devices: Floats, ideal: Floats, values: Sequence[Any]) -> Floats:
    (serial,) = values
    return np.asarray(ideal - serial * (ideal - 1))


def _usl(devices: Floats, ideal: Floats, values: Sequence[Any]) -> Floats:
    contention, coherency = values
    slowing = contention * (ideal - 1) + coherency * ideal * (devices - 1)
    return np.asarray(ideal / (1 + slowing))


LINEAR = Law("linear", (), _linear, "S = N")
AMDAHL = Law(
    "Amdahl", ("serial",), _amdahl,
    "S = N / (1 + s(N-1)); Amdahl 1967, AFIPS 30", (0.05,),
)  # fmt: skip
GUSTAFSON = Law(
    "Gustafson", ("serial",), _gustafson,
    "S = N - s(N-1); Gustafson 1988, CACM 31(5)", (0.05,),
)  # fmt: skip
USL = Law(
    "USL", ("contention", "coherency"), _usl,
    "S = N / (1 + σ(N-1) + κN(N-1)); Gunther 2007, Guerrilla Capacity Planning, ch. 4",
    (0.05, 0.001),
)  # fmt: skip
LAWS = {"strong": (LINEAR, AMDAHL, USL), "weak": (LINEAR, GUSTAFSON, USL)}


Bound = Annotated[float, WithJsonSchema({"type": ["number", "null"]})]
"""Null in JSON, which has no infinity."""


@dataclass(frozen=True)
class Estimate:
    """A parameter with its 95 % interval; an infinite end means that the data set no bound."""

    value: Bound
    low: Bound
    high: Bound


@dataclass(frozen=True)
class Fit:
    """One law fitted to one curve."""

    law: str
    source: str
    parameters: dict[str, Estimate]
    """By name; a negative serial fraction or contention means faster than ideal."""
    rate_one: Estimate
    """Throughput of one device according to the law, img/s."""
    residuals: dict[int, float]
    """For each device count, measured throughput over the law's, minus one."""
    aicc: float | None
    """Corrected Akaike criterion; None: too few points for it."""
    misfit_p: float | None
    """Probability of a misfit this large if the law holds; None if no errors are known."""
    peak_devices: Estimate | None = None
    """USL only: the device count beyond which throughput falls, where it does."""
    draws: Floats = field(default_factory=lambda: np.empty((0, 0)), repr=False, compare=False)
    """Parameters (log X_1 first) drawn from their joint distribution, shape [draws, k]."""


@dataclass(frozen=True)
class Curve:
    """What the laws say of one scaling curve."""

    key: dict[str, Any]
    """Values of :data:`FAMILY`."""
    devices: list[int]
    fits: list[Fit]
    best: str | None
    """The law that the data support best; None: they support none."""
    verdict: str
    """The same in a sentence."""


def fit_all(measured: pd.DataFrame) -> list[Curve]:
    """Fit the laws to every curve of :func:`points`.

    Oversubscribed points are left out: they add ranks, not devices."""
    measured = measured[~measured["oversubscribed"].astype(bool)]
    if measured.empty:
        return []
    return [
        fit_curve(group, dict(zip(FAMILY, key, strict=True)))
        for key, group in measured.groupby(FAMILY, dropna=False, sort=True)
        if len(group) > 1
    ]


def fit_curve(group: pd.DataFrame, key: dict[str, Any]) -> Curve:
    """Fit every law for which there are enough points, and choose one.

    Weighted least squares on log X, so that an error of 1 % has the same weight everywhere. The
    standard errors (:func:`errors_of`) include the spread between runs. The criterion is Akaike's,
    corrected for few points: AICc = χ² + 2k + 2k(k+1)/(n-k-1) (Burnham & Anderson 2002, Model
    Selection, section 2.4), so a law of k parameters (X_1 counts) needs k+2 points to be a
    candidate. A law whose χ² is less likely than :data:`REFUSED_P` is not supported, however it
    compares."""
    group = group.sort_values("num_devices")
    devices = group["num_devices"].to_numpy(dtype=float)
    rate = group["img_per_s"].to_numpy(dtype=float)
    errors, freedom = errors_of(group)
    ideal = ideal_speedup(group)
    fits, lacking = [], []
    for law in LAWS["weak" if key.get("scaling") == "weak" else "strong"]:
        needed = len(law.parameters) + 3
        if len(devices) < needed:
            lacking.append(f"{law.name} needs {needed}")
            continue
        try:
            fits.append(fit(law, devices, rate, errors, freedom, ideal))
        except RuntimeError:  # for example if throughput falls and Amdahl's s grows without bound
            lacking.append(f"{law.name} does not converge")
    best = _best(fits)
    counts = [int(count) for count in devices]
    said = _verdict(fits, best, lacking, len(counts))
    if fits and (ideal < devices).any():
        said += " The fit allows for ranks processing whole images only."
    return Curve(key, counts, fits, best, said)


def errors_of(group: pd.DataFrame) -> tuple[Floats | None, float]:
    """Standard errors of log X at each point and their degrees of freedom.

    They combine the spread between runs, measured or assumed (then taken as known, with infinite
    degrees of freedom), and the error from the runs' own steps.

    Returns:
        None for the errors unless every point has one.
    """
    errors = group["error_share"].to_numpy(dtype=float)
    known = np.isfinite(errors).all() and (errors > 0).all()
    return (errors if known else None), float(group["spread_freedom"].fillna(math.inf).iloc[0])


def fit(
    law: Law,
    devices: Floats,
    rate: Floats,
    errors: Floats | None,
    freedom: float = math.inf,
    ideal: Floats | None = None,
) -> Fit:
    """Fit one law to the logarithm of throughput.

    Args:
        law: what to fit.
        devices: device counts, shape [n].
        rate: throughput at each of them, img/s, shape [n].
        errors: standard errors of log `rate`, shape [n]; None if unknown.
        freedom: degrees of freedom of the errors; infinite: they are known.
        ideal: speedup of a perfect machine at each device count, shape [n]; None: `devices`.

    The misfit is tested by χ², or, where the errors are estimates with ν degrees of freedom, by
    F = χ²/(n-k) with n-k and ν; the criterion then takes the χ² of equal p. Intervals are
    Student's with ν from the curvature at the optimum
    where the errors explain the misfit (p of 0.05 or more); else the errors are scaled by the
    residuals, whose degrees of freedom then count (Press et al. 2007, Numerical Recipes, section
    15.6).

    Raises:
        RuntimeError: the fit does not converge.
        ValueError: fewer points than parameters.
    """
    from scipy.optimize import OptimizeWarning, curve_fit
    from scipy.stats import chi2, f

    size = len(law.parameters) + 1
    if len(devices) < size:
        raise ValueError(f"{law.name} has {size} parameters, and there are {len(devices)} points")
    sigma = np.ones_like(rate) if errors is None else errors
    bound = devices if ideal is None else ideal

    def log_rate(devices: Floats, log_one: float, *values: float) -> Floats:
        return log_one + np.log(np.maximum(law.speedup(devices, bound, values), 1e-12))

    fitted = functools.partial(
        curve_fit,
        log_rate,
        devices,
        np.log(rate),
        p0=[np.log(rate[0] / bound[0]), *law.start],
        sigma=sigma,
        absolute_sigma=True,
        full_output=True,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", OptimizeWarning)
            found, covariance, told, *_ = fitted(method="lm")  # takes a quarter of the time
    except OptimizeWarning:  # the data do not determine every parameter
        found, covariance, told, *_ = fitted(method="trf", x_scale=[1.0, *[0.1] * (size - 1)])
    residuals = -told["fvec"]
    squares, left = float((residuals**2).sum()), len(devices) - size
    misfit_p, excess = None, squares
    if errors is not None and left:
        misfit_p = float(chi2.sf(squares, left))
        if not math.isinf(freedom):
            misfit_p = float(f.sf(squares / left, left, freedom))
            # The equally unlikely χ² for known errors: AICc does not allow for estimated ones.
            excess = float(chi2.isf(max(misfit_p, 1e-300), left))
    quantile = student(freedom)
    if errors is None or (misfit_p is not None and misfit_p < 0.05):
        covariance = covariance * squares / max(1, left)
        quantile = student(max(1, left))
    spread = np.sqrt(np.diag(covariance))
    ends = [
        Estimate(float(v), float(v - quantile * s), float(v + quantile * s))
        for v, s in zip(found, spread, strict=True)
    ]
    draws = _draw(found, covariance * (quantile / 1.96) ** 2)
    one = Estimate(*(float(np.exp(v)) for v in (ends[0].value, ends[0].low, ends[0].high)))
    off = np.expm1(residuals * sigma)
    return Fit(
        law=law.name,
        source=law.source,
        parameters=dict(zip(law.parameters, ends[1:], strict=True)),
        rate_one=one,
        residuals={int(n): float(r) for n, r in zip(devices, off, strict=True)},
        aicc=_aicc(excess, len(devices), size, errors is not None),
        misfit_p=misfit_p,
        peak_devices=_peak(found, draws) if law is USL else None,
        draws=draws,
    )


def _draw(values: Floats, covariance: Floats) -> Floats:
    """Parameters from their joint normal distribution; the same for the same fit."""
    generator = np.random.default_rng(0)
    return np.asarray(
        generator.multivariate_normal(values, covariance, _DRAWS, check_valid="ignore")
    )


def _aicc(squares: float, count: int, size: int, errors_known: bool) -> float | None:
    if not errors_known:
        # The variance is estimated, too: n log(RSS/n), and one more parameter.
        squares, size = count * float(np.log(max(squares, 1e-30) / count)), size + 1
    if count - size - 1 < 1:
        return None
    return squares + 2 * size + 2 * size * (size + 1) / (count - size - 1)


def _peak(values: Floats, draws: Floats) -> Estimate | None:
    """N* = sqrt((1 - σ) / κ) (Gunther 2007, section 4.5.3), by quantiles over the draws.

    None if κ is not positive: throughput has no peak. An upper end of infinity means that the data
    do not exclude this."""

    def peak(sigma: Floats, kappa: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.sqrt(np.maximum(1 - sigma, 0) / np.where(kappa > 0, kappa, np.nan))
        return np.where(kappa > 0, found, np.inf)

    value = float(peak(values[1], values[2]))
    if not np.isfinite(value):
        return None
    low, high = np.quantile(peak(draws[:, 1], draws[:, 2]), (0.025, 0.975), method="nearest")
    return Estimate(value, float(low), float(high))


def _best(fits: list[Fit]) -> str | None:
    able = [
        fit for fit in fits
        if fit.aicc is not None and (fit.misfit_p is None or fit.misfit_p >= REFUSED_P)
    ]  # fmt: skip
    return min(able, key=lambda fit: fit.aicc or 0.0).law if able else None


def _verdict(fits: list[Fit], best: str | None, lacking: list[str], count: int) -> str:
    needs = ", ".join(lacking)
    few = f" ({needs}{' device counts' * needs[-1:].isdigit()})" if lacking else ""
    if not fits:
        return f"{count} device counts are too few to fit any law{few}."
    if best is None:
        worst = {fit.law: max(abs(r) for r in fit.residuals.values()) for fit in fits}
        said = ", ".join(f"{law} misses by up to {percent(off, 1)}" for law, off in worst.items())
        return f"The data support none of the laws: {said}{few}."
    chosen = next(fit for fit in fits if fit.law == best)
    said = ", ".join(
        f"{name} {value.value:.3g} ({value.low:.3g} to {value.high:.3g})"
        for name, value in chosen.parameters.items()
    )
    rivals = [
        fit.law for fit in fits
        if fit.law != best and fit.aicc is not None and chosen.aicc is not None
        and (fit.misfit_p is None or fit.misfit_p >= REFUSED_P) and fit.aicc - chosen.aicc < 2
    ]  # fmt: skip
    close = (
        f" {' and '.join(rivals)} {'fits' if len(rivals) == 1 else 'fit'} equally well."
        if rivals
        else ""
    )
    unproven = "" if chosen.misfit_p is not None else " (no errors known: only compared)"
    ranges = f": {said}" if said else ""
    return f"{best}{' scaling' * (best == 'linear')} fits best{ranges}{unproven}{few}.{close}"


def bands(curves: list[Curve], measured: pd.DataFrame, steps: int = 40) -> pd.DataFrame:
    """The supported laws as curves to draw.

    Args:
        curves: the fits, from :func:`fit_all`.
        measured: the points they were fitted to, from :func:`points`.
        steps: device counts per curve, at most.

    Returns:
        Columns of :data:`FAMILY`, `law`, `devices`, `speedup` (relative to the measured
        baseline, as :func:`points` has it), `low`, `high` (95 % band).
    """
    return pd.DataFrame(
        [line for curve in curves for line in _band(curve, measured, steps)],
        columns=[*FAMILY, "law", "devices", "speedup", "low", "high"],
    )


def _band(curve: Curve, measured: pd.DataFrame, steps: int) -> Iterator[dict[str, Any]]:
    chosen = next((fit for fit in curve.fits if fit.law == curve.best), None)
    if chosen is None:
        return
    law = next(law for laws in LAWS.values() for law in laws if law.name == chosen.law)
    points = having(measured, curve.key).sort_values("num_devices")
    base = points.iloc[0]
    scale = float(base["num_devices"]) / float(base["img_per_s"])
    values = [estimate.value for estimate in chosen.parameters.values()]
    # Whole devices only: shares are not defined in between.
    counts = np.linspace(curve.devices[0], curve.devices[-1], steps).round()
    for count in np.unique([*counts, *curve.devices]):
        at = np.full(len(chosen.draws), count)
        ideal = ideal_at(points, at[:1])
        drawn = law.speedup(at, ideal, list(chosen.draws.T[1:]))
        low, high = np.quantile(np.exp(chosen.draws[:, 0]) * drawn, (0.025, 0.975))
        middle = chosen.rate_one.value * float(law.speedup(at[:1], ideal, values)[0])
        yield {
            **curve.key, "law": law.name, "devices": float(count),
            "speedup": middle * scale, "low": float(low) * scale, "high": float(high) * scale,
        }  # fmt: skip
