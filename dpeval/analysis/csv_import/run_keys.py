"""Which rows belong to one run, and which run stands for many."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dpeval.analysis.csv_import.fields import PHASE_OF
from dpeval.analysis.csv_import.settle import CONFIGURATION
from dpeval.util.arrays import Floats, Ints

MOST_RUNS = 300
"""Runs that are kept of a configuration: with more, intervals become no more useful."""
MOST_IN_ALL = 20_000
"""Runs that are kept of a table, as long as each configuration keeps :data:`FEWEST_RUNS`."""
FEWEST_RUNS = 25


def run_keys(frame: pd.DataFrame) -> tuple[pd.Series[Any], list[str]]:
    """The run of each row within its configuration (``""`` if unknown), and why runs are unknown.

    Rows with the same `run_id`, and `iteration` where steps are numbered, belong together; if two
    files both have a rank of that id, only within a file. Otherwise the rows of a run follow one
    another with ascending ranks, or the k-th row of every rank belongs to the k-th run, which
    requires that no rank lacks a row."""
    keys = pd.Series("", index=frame.index, dtype=object)
    problems: list[str] = []
    for _, group in frame.groupby(CONFIGURATION, sort=False):
        ids = _ids(group)
        if ids is not None:
            keys[group.index] = ids
        else:
            found, problem = _by_order(group)
            keys[group.index] = found
            problems += [problem] if problem else []
    return keys, problems


def _ids(group: pd.DataFrame) -> pd.Series[Any] | None:
    """Names of the runs of rows, as their columns tell; None if these columns do not."""
    told = [name for name in ("run_id", "iteration") if name in group]
    named = [name for name in told if group[name].notna().all()]
    if not named:
        return None
    ids = group[named[0]].astype(str)
    for name in named[1:]:
        ids = ids + ", step " + group[name]
    is_shared = pd.concat([ids, group["rank"]], axis=1).duplicated(keep=False)
    if not is_shared.any():
        return ids
    if named == ["iteration"]:
        return None  # several runs, each numbered from its start
    return ids.where(~is_shared.groupby(ids).transform("any"), ids + " of " + group["file"])


def _by_order(group: pd.DataFrame) -> tuple[list[str], str | None]:
    blocks = (group["rank"].diff().fillna(-1) <= 0).cumsum() - 1
    # The end of a file ends a run only if the ranks start over.
    counts = group["rank"].value_counts()
    if int(blocks.iloc[-1]) + 1 == int(counts.max()):
        numbers = blocks.astype(int)
    elif counts.nunique() == 1:
        numbers = group.groupby("rank").cumcount()
    else:
        first = group.iloc[0]
        fewest, most = counts.idxmin(), counts.idxmax()
        problem = (
            f"{first['file']}: {len(group)} rows of {first['num_devices']} devices and batch "
            f"{first['batch']} from line {first['line']} on: rank {fewest} has {counts[fewest]} "
            f"and rank {most} has {counts[most]}, so it is unclear which belong together; map a "
            "column that numbers the runs with =run_id"
        )
        return [""] * len(group), problem
    return [f"{number:06d}" for number in numbers], None


def step_times(frame: pd.DataFrame) -> Floats:
    """The time of each row's step, s, shape [rows]."""
    parts = [name for name in PHASE_OF if name in frame]
    summed: Floats = frame[parts].fillna(0.0).sum(axis=1).to_numpy(dtype=float)
    if "step_s" not in frame:
        return np.asarray(summed)
    whole = frame["step_s"].to_numpy(dtype=float)
    chosen: Floats = np.where(np.isnan(whole), summed, whole)
    return chosen


def thinned(frame: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """`frame` with fewer runs of configurations that have very many, and how many runs it had.

    A table with a row per step may have a million. Of every k runs that follow one another, k odd,
    the one with the median step time is kept. Runs of one step are pooled by their median, which
    these medians estimate as well, and their spread is that of means over k: slow disturbances
    count. The column `stands_for` tells k.

    Args:
        frame: rows that can be used, with `run_key`, in the order of their files.
    """
    configuration = frame.groupby(CONFIGURATION, sort=False).ngroup().to_numpy()
    run = frame.groupby([*CONFIGURATION, "run_key"], sort=False).ngroup().to_numpy()
    count = int(run.max()) + 1
    # A step takes as long as its slowest rank.
    step_s = np.zeros(count)
    np.maximum.at(step_s, run, step_times(frame))
    of_run = np.zeros(count, dtype=np.int64)
    of_run[run] = configuration
    runs_of = np.bincount(of_run)
    most = max(FEWEST_RUNS, min(MOST_RUNS, MOST_IN_ALL // len(runs_of)))
    sizes = np.where(runs_of > most, -(-runs_of // most) // 2 * 2 + 1, 1)
    if (sizes == 1).all():
        return frame.assign(stands_for=1), count
    kept = np.zeros(count, dtype=bool)
    kept[_medians(of_run, step_s, sizes)] = True
    return frame.assign(stands_for=sizes[configuration])[kept[run]], count


def _medians(of_run: Ints, step_s: Floats, sizes: Ints) -> Ints:
    """The run of median step time of every block of runs that follow one another.

    Args:
        of_run: the configuration of each run, shape [runs].
        step_s: its step time, s, shape [runs].
        sizes: runs per block, shape [configurations].
    """
    runs = pd.DataFrame({"configuration": of_run, "step_s": step_s})
    runs["block"] = runs.groupby("configuration").cumcount().to_numpy() // sizes[of_run]
    runs = runs.sort_values(["configuration", "block", "step_s"], kind="stable")
    blocks = runs.groupby(["configuration", "block"])
    middle = (blocks["step_s"].transform("size") - 1) // 2
    chosen: Ints = runs.index[blocks.cumcount() == middle].to_numpy()
    return chosen
