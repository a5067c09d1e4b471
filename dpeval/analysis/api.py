"""What ``import dpeval`` offers a notebook; :mod:`dpeval` loads it when a name is first used.

Every function takes and returns a plain :class:`pandas.DataFrame`; :func:`columns` gives the
meaning and unit of its columns."""

from __future__ import annotations

import warnings
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from dpeval.analysis import figures
from dpeval.analysis.frame import cohorts, runs_frame
from dpeval.analysis.frame.columns import COLUMNS
from dpeval.analysis.pooling import repetitions
from dpeval.analysis.scaling import best_configuration, scaling_laws, speedup
from dpeval.analysis.scaling import compare as comparison
from dpeval.analysis.scaling import efficiency as efficiency_model
from dpeval.analysis.scaling.findings import joined
from dpeval.errors import ConfigError, nearest


def read(*folders: str | Path) -> pd.DataFrame:
    """Read every record at or below `folders`: one row per run, oldest first.

    A run without a measurement has a row, too: `status` and `cause` say why. Files that are not
    records are left out with a warning.

    Raises:
        ConfigError: a folder does not exist, or none holds a readable record.

    Example:
        >>> import dpeval
        >>> runs = dpeval.read("outputs")
        >>> runs[["num_devices", "batch", "status"]].head(2)
           num_devices  batch status
        0            1     32     ok
        1            2     32     ok
    """
    paths = [Path(folder) for folder in folders]
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path} does not exist; give the folder of a sweep")
    loaded = runs_frame.load(paths)
    for problem in loaded.problems:
        warnings.warn(f"left out: {problem}", stacklevel=2)
    if loaded.runs.empty:
        where = ", ".join(str(path) for path in paths)
        raise ConfigError(f"there is no readable metrics.json below {where}")
    return loaded.runs


def columns(frame: pd.DataFrame) -> pd.Series[str]:
    """Meaning and unit of the columns of a frame that :func:`read` or :func:`scaling` returned.

    Example:
        >>> import dpeval
        >>> dpeval.columns(dpeval.read("outputs"))["step_s"]
        'mean step of the slowest rank, s'
    """
    known = {**COLUMNS, **repetitions.POOLED, **speedup.POINT_COLUMNS}
    return pd.Series({name: known[name] for name in frame.columns if name in known}, dtype=object)


def scaling(frame: pd.DataFrame) -> pd.DataFrame:
    """Throughput, speedup and parallel efficiency: one row per configuration.

    Repetitions are pooled (:func:`dpeval.analysis.pooling.repetitions.pool`). Speedup is relative
    to the fewest devices of the same series and batch, `baseline_devices`, with the strategy that
    `baseline` names (none: the best serial execution); intervals are 95 %. A configuration without
    a measurement keeps its row, with NaN.

    Args:
        frame: one row per run, as :func:`read` returns it, or a selection of its rows.

    Example:
        >>> import dpeval
        >>> table = dpeval.scaling(dpeval.read("outputs"))
        >>> table[["num_devices", "batch", "speedup", "efficiency"]].round(2)
           num_devices  batch  speedup  efficiency
        0            1     32      1.0         1.0
        1            2     32      1.6         0.8
        2            4     32      2.0         0.5
    """
    pooled = _pooled(frame)
    return joined(pooled, speedup.points(pooled))


def _pooled(frame: pd.DataFrame) -> pd.DataFrame:
    return repetitions.pool(cohorts.with_shared_baselines(frame))


def efficiency(frame: pd.DataFrame) -> pd.DataFrame:
    """Where the parallel efficiency goes: one row per configuration and factor.

    The factors of a configuration multiply to its efficiency against one device
    (:func:`dpeval.analysis.scaling.efficiency.waterfall`). Factors that could not be separated
    share a row, and `note` says what was missing.

    Args:
        frame: one row per run, as :func:`read` returns it.

    Returns:
        Columns `series`, `hardware`, `scaling`, `num_devices`, `batch`, `factor`, `parts`, `value`,
        `low` and `high` (the 95 % interval) and `note`. Empty if no run used one device.

    Example:
        >>> import dpeval
        >>> table = dpeval.efficiency(dpeval.read("outputs"))
        >>> table.groupby("num_devices")["value"].prod().round(2).to_dict()
        {2: 0.8, 4: 0.5}
    """
    points = speedup.points(_pooled(frame))
    return efficiency_model.table(efficiency_model.waterfalls(points))


def best(
    frame: pd.DataFrame,
    objective: str = "throughput",
    *,
    min_efficiency: float | None = None,
    by_batch: bool = False,
) -> pd.DataFrame:
    """The best configuration of every series, hardware and kind of scaling.

    Args:
        frame: one row per run, as :func:`read` returns it.
        objective: ``throughput``, ``device_seconds`` (per image), ``energy`` (per image) or
            ``efficient`` (throughput above a floor of efficiency).
        min_efficiency: leave out configurations whose interval of parallel efficiency has its lower
            end below this; default: none, or 0.8 for ``efficient``.
        by_batch: the best of every batch instead of the best over all.

    Returns:
        Columns `series`, `hardware`, `scaling`, `num_devices`, `batch`, `value`, `low`, `high` (95
        % interval), `unit`, `efficiency`, `behind`, `ties` (others that could be the best, as pairs
        of devices and batch), `doubtful` (better ones that may or may not reach the floor) and
        `why_not` (the reason, where nothing qualifies).

    Raises:
        ConfigError: there is no such objective, or `min_efficiency` is not in [0, 1].

    Example:
        >>> import dpeval
        >>> found = dpeval.best(dpeval.read("outputs"), min_efficiency=0.6)
        >>> found[["num_devices", "batch", "efficiency"]].round(2)
           num_devices  batch  efficiency
        0            2     32         0.8
    """
    known = best_configuration.OBJECTIVES
    if objective not in known:
        raise ConfigError(
            f"there is no objective '{objective}'{nearest(objective, known)}; "
            f"there are {', '.join(known)}"
        )
    points = speedup.points(_pooled(frame))
    chosen = best_configuration.choose(points, known[objective], min_efficiency)
    overall = [one for one in chosen if one.batch is None]
    # A family with a single batch has one choice, which is also that batch's.
    of_batches = [one for one in chosen if one.batch is not None]
    split = {tuple(one.key.values()) for one in of_batches}
    lone = [one for one in overall if tuple(one.key.values()) not in split]
    return best_configuration.table([*lone, *of_batches] if by_batch else overall)


def compare(before: pd.DataFrame, after: pd.DataFrame, allowed: float = 0.0) -> pd.DataFrame:
    """Compare the throughput of two sweeps, one row per configuration.

    Runs belong to one configuration if everything that decides what is measured is equal, including
    the data. Differences in log throughput are tested, with a family-wise error of 5 %, against the
    spread between repetitions (:func:`dpeval.analysis.scaling.compare.compare`).

    Args:
        before: one row per run, as :func:`read` returns it.
        after: the same for the other sweep.
        allowed: how much slower `after` may be before `is_slower` holds, as a share (0.03 for 3 %).

    Raises:
        ConfigError: `allowed` is not in [0, 1).

    Example:
        >>> import dpeval
        >>> runs = dpeval.read("outputs")
        >>> dpeval.compare(runs, runs)[["num_devices", "ratio", "is_slower"]]
           num_devices  ratio  is_slower
        0            1    1.0      False
        1            2    1.0      False
        2            4    1.0      False
    """
    return comparison.table(comparison.compare(before, after, allowed))


def plot(frame: pd.DataFrame, figure: str) -> Figure:
    """Draw one figure of the report.

    Args:
        frame: one row per run, as :func:`read` returns it.
        figure: ``time_components``, ``throughput_cpu``, ``throughput_gpu``, ``speedup``,
            ``efficiency``, ``waterfall``, ``best_devices``, ``step_times``, ``timeline``,
            ``memory``; or ``package.module.function`` for one of your own.

    Raises:
        ConfigError: there is no such figure.
        UnsupportedError: the records lack what the figure needs.

    Example:
        >>> import dpeval
        >>> figure = dpeval.plot(dpeval.read("outputs"), "speedup")
        >>> figure.savefig("speedup.svg")
    """
    frame = cohorts.with_shared_baselines(frame)
    pooled = repetitions.pool(frame)
    points = speedup.points(pooled)
    models = figures.Models(
        factors=efficiency_model.table(efficiency_model.waterfalls(points)),
        laws=scaling_laws.bands(scaling_laws.fit_all(points), points),
    )
    data = figures.FigureData.of(frame, joined(pooled, points), models)
    return figures.draw(figures.find_plot(figure), data)
