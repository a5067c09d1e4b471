"""Laws of scaling: the one that made the data is chosen, and shares of whole images are no law."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest

from dpeval.analysis.figures import scaling as figure
from dpeval.analysis.figures.figure_data import FigureData
from dpeval.analysis.report import summary
from dpeval.analysis.scaling import scaling_laws
from dpeval.analysis.scaling.scaling_laws import AMDAHL, USL, Law
from dpeval.analysis.scaling.speedup import ideal_at, ideal_speedup
from tests.records import findings, make_record, perfect

COUNTS = np.array([1.0, 2, 3, 4, 6, 8, 12, 16])
RUNS, SPREAD = 2, 0.02


def simulated(
    law: Law, truth: tuple[float, ...], batch: int, generator: np.random.Generator
) -> pd.DataFrame:
    """Points of a sweep of two repetitions, as pooling gives them."""
    fullest = np.ceil(batch / COUNTS)
    step_s = 1 / law.speedup(COUNTS, batch / fullest, truth)
    times = step_s * np.exp(SPREAD * generator.standard_normal((RUNS, len(COUNTS))))
    mean = times.mean(axis=0)
    fields: dict[str, Any] = {
        "num_devices": COUNTS, "n_runs": RUNS, "centre": "mean", "img_per_s": batch / mean,
        "error_share": np.sqrt((times.var(axis=0, ddof=1) / mean**2).mean() / RUNS),
        "spread_freedom": len(COUNTS) * (RUNS - 1),
        "comparable_low": np.nan, "comparable_high": np.nan,
        "images_per_step": batch, "per_device_batch_max": fullest,
    }  # fmt: skip
    return pd.DataFrame(fields)


@pytest.mark.parametrize("batch", [96, 32])
@pytest.mark.parametrize(("law", "truth"), [(AMDAHL, (0.05,)), (USL, (0.05, 0.004))])
def test_of_150_sweeps_of_two_repetitions_the_true_law_is_chosen(
    law: Law, truth: tuple[float, ...], batch: int
) -> None:
    generator, chosen = np.random.default_rng(5), 0
    misfits: list[float] = []
    for _ in range(150):
        curve = scaling_laws.fit_curve(simulated(law, truth, batch, generator), {})
        chosen += curve.best == law.name
        misfits += [fit.misfit_p or 0.0 for fit in curve.fits if fit.law == law.name]
    assert chosen >= 140
    # The median of 150 uniform values lies within 0.4 to 0.6 in 98.6 % of cases; at 0.05, 2 to 15
    # of them lie below in 99 %.
    assert 0.4 <= np.median(misfits) <= 0.6
    assert 2 <= np.sum(np.array(misfits) < 0.05) <= 15


def test_a_perfect_machine_has_no_serial_fraction_where_the_batch_does_not_divide() -> None:
    counts = range(1, 9)
    runs = [
        make_record(n, 32, -(-32 // n) / 32, noise=0.002, repetition=repetition, seed=repetition)
        for n in counts
        for repetition in range(2)
    ]
    found = findings(runs)
    points = found.points[found.points["num_devices"] > 1]
    assert (points["serial_fraction"].abs() < 2e-3).all()
    assert (points["serial_fraction_low"] <= 0).all()
    assert (points["serial_fraction_high"] >= 0).all()
    assert points["speedup_bound"].to_list() == pytest.approx(
        [32 / -(-32 // n) for n in counts][1:]
    )
    assert found.curves[0].best == "linear"
    assert "whole images" in found.curves[0].verdict


def test_what_is_lost_beyond_uneven_shares_is_serial() -> None:
    runs = [perfect(n, 32, 0.1 + 0.9 * -(-32 // n) / 32) for n in (1, 2, 3, 4, 5, 6)]
    found = findings(runs)
    assert found.points["serial_fraction"].to_list()[1:] == pytest.approx([0.1] * 5)
    assert found.curves[0].best == "Amdahl"


def test_the_bound_holds_between_measured_counts_and_only_for_shares_of_whole_images() -> None:
    strong = findings([perfect(n, 32) for n in (1, 2, 4, 6)]).points
    asked = np.arange(1.0, 7)
    assert ideal_at(strong, asked) == pytest.approx(32 / np.ceil(32 / asked))
    weak = findings([perfect(n, 5, scaling="weak") for n in (1, 2, 3)]).points
    assert ideal_at(weak, asked) == pytest.approx(asked)
    # A record that dropped the images which did not divide: its shares are equal.
    dropped = strong.assign(
        per_device_batch_max=32 // strong["num_devices"],
        images_per_step=32 // strong["num_devices"] * strong["num_devices"],
    )
    assert ideal_speedup(dropped) == pytest.approx(dropped["num_devices"])
    assert ideal_at(dropped, asked) == pytest.approx(asked)


def test_the_figures_draw_the_bound_where_it_is_below_the_ideal() -> None:
    uneven, even = (
        findings([perfect(n, batch, 1 / n) for n in (1, 2, 3, 4)]) for batch in (16, 24)
    )
    for found, is_bounded in ((uneven, True), (even, False)):
        figure_data = FigureData.of(found.loaded.runs, found.summary)
        axes = figure.speedup(figure_data).figure.axes[0]
        dotted = [line for line in axes.lines if line.get_linestyle() == ":"]
        assert len(dotted) == is_bounded
        if dotted:
            assert dotted[0].get_ydata() == pytest.approx([1, 2, 16 / 6, 4])
        texts = [
            text.get_text() for text in figure.efficiency_map(figure_data).figure.axes[0].texts
        ]
        assert any("of 89 %" in text for text in texts) is is_bounded


def test_an_end_that_the_data_do_not_bound_is_null_in_the_summary() -> None:
    (curve,) = findings([perfect(n, 48, 0.2 + 0.8 / n) for n in (1, 2, 4)]).curves
    unbounded = scaling_laws.Estimate(5.0, 3.0, float("inf"))
    fit = summary.FittedLaw(
        law="USL", source="", parameters=curve.fits[0].parameters, rate_one_img_per_s=unbounded,
        residuals={}, aicc=None, misfit_p=None, peak_devices=unbounded,
    )  # fmt: skip
    written = json.loads(fit.model_dump_json())
    assert written["peak_devices"] == {"value": 5.0, "low": 3.0, "high": None}
    jsonschema.validate(written, summary.FittedLaw.model_json_schema())
