"""All results of the analysis, computed once for tables, figures, text and files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pandas as pd

from dpeval.analysis.frame import cohorts
from dpeval.analysis.frame.runs_frame import CONFIGURATION, Loaded
from dpeval.analysis.pooling import repetitions
from dpeval.analysis.pooling.repetitions import TURNS
from dpeval.analysis.pooling.run_spread import ASSUMED_SHARE
from dpeval.analysis.scaling import (
    claims,
    efficiency,
    scaling_laws,
    speedup,
)
from dpeval.analysis.scaling.best_configuration import (
    EFFICIENT,
    OBJECTIVES,
    THROUGHPUT,
    Choice,
    Objective,
    choose,
    contrasts_of_families,
)
from dpeval.analysis.scaling.claims import Claim
from dpeval.analysis.scaling.efficiency import Waterfall
from dpeval.analysis.scaling.scaling_laws import Curve
from dpeval.analysis.scaling.speedup import POINT_COLUMNS


@dataclass(frozen=True)
class Findings:
    """The results."""

    loaded: Loaded
    pooled: pd.DataFrame
    """One row per configuration (:data:`~dpeval.analysis.pooling.repetitions.POOLED`), missing ones
    included."""
    points: pd.DataFrame
    """The measured configurations, with :data:`~dpeval.analysis.scaling.speedup.POINT_COLUMNS`."""
    curves: list[Curve]
    waterfalls: list[Waterfall]
    claims: list[Claim]
    choices: list[Choice]
    objective: Objective
    """The objective that the user chose."""
    stated_spread: float | None = None
    """Standard deviation between runs that the user stated, over the mean; it counts where
    repetitions do not show one. None: :data:`~dpeval.analysis.pooling.run_spread.ASSUMED_SHARE`
    does."""

    @property
    def chosen(self) -> list[Choice]:
        """The best configuration of each family over all batches, for the user's objective."""
        return [
            one for one in self.choices if one.objective is self.objective and one.batch is None
        ]

    @property
    def summary(self) -> pd.DataFrame:
        """One row per configuration with everything: the table of ``summary.csv``."""
        return joined(self.pooled, self.points)


def joined(pooled: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """`pooled` with the columns of `points`; NaN if not measured."""
    pooled = pooled.drop(columns=TURNS)
    added = points[[*CONFIGURATION, *POINT_COLUMNS]]
    if added.empty:
        return pooled.assign(**dict.fromkeys(POINT_COLUMNS, float("nan")))
    return pooled.merge(added, on=CONFIGURATION, how="left", validate="one_to_one")


def find(
    loaded: Loaded,
    objective: Objective = THROUGHPUT,
    min_efficiency: float | None = None,
    spread: float | None = None,
) -> Findings:
    """Compute everything from the runs.

    Args:
        loaded: the runs.
        objective: what the verdict calls best; the others are computed as well.
        min_efficiency: the efficiency floor that the user set.
        spread: the spread between runs that the user stated, as a share of the mean.
    """
    loaded = dataclasses.replace(loaded, runs=cohorts.with_shared_baselines(loaded.runs))
    pooled = repetitions.pool(loaded.runs, ASSUMED_SHARE if spread is None else spread)
    points = speedup.points(pooled)
    waterfalls = efficiency.waterfalls(points)
    holes = repetitions.missing(pooled)
    if len(holes):
        pooled = pd.concat([pooled, holes.astype(pooled.dtypes)], ignore_index=True)
        pooled = pooled.sort_values(CONFIGURATION, ignore_index=True)
    compared = contrasts_of_families(points)
    objectives = dict.fromkeys([objective, *OBJECTIVES.values()])
    return Findings(
        loaded=loaded,
        pooled=pooled,
        points=points,
        curves=scaling_laws.fit_all(points),
        waterfalls=waterfalls,
        claims=claims.claims(loaded.runs, points, waterfalls),
        choices=[
            found
            for one in objectives
            for found in choose(
                points,
                one,
                min_efficiency if one in (objective, EFFICIENT) else None,
                compared,
            )
        ],
        objective=objective,
        stated_spread=spread,
    )
