"""The ablation blocks of a run's ranks, as they are recorded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from dpeval.record.measurement import Window
from dpeval.record.phases import COMPUTE_PHASES
from dpeval.record.schema import Ablation, AblationBlock, RankRecord, Sitting
from dpeval.run.recording.outcome import Outcome
from dpeval.util.arrays import Ints, rounded
from dpeval.worker.ablation_schedule import KINDS, MIN_ROUNDS


def ablation(outcome: Outcome, sitting: Sitting | None, main: dict[str, Any]) -> Ablation | None:
    """The blocks of all ranks; for a run that took turns, also the turns of the same rounds.

    Args:
        outcome: what the ranks returned.
        sitting: the turns it took; None if it took none.
        main: the fields of the record that describe the main window.
    """
    blocks = _blocks(outcome)
    if sitting is not None:
        blocks = _by_round(blocks, sitting, main)
    if not blocks:
        return None

    def mean_s(kind: str) -> float:
        steps = np.hstack([np.array(block.step_s) for block in blocks if block.kind == kind])
        # Ranks that wait for each other take equally long, but for their marks within a step.
        slowest = steps.mean(axis=1).max() if kind == "normal" else steps.max(axis=0).mean()
        return float(slowest)

    normal_s, no_sync_s, alone_s = mean_s("normal"), mean_s("no_sync"), mean_s("alone")
    return Ablation(
        blocks=blocks,
        normal_s=normal_s,
        no_sync_s=no_sync_s,
        alone_s=alone_s,
        comm_cost_s=normal_s - no_sync_s,
        sharing_cost_s=no_sync_s - alone_s,
    )


def _blocks(outcome: Outcome) -> list[AblationBlock]:
    """The first rank's blocks, each with the other ranks' blocks of the same kind and round."""
    results = [outcome.results[rank] for rank in sorted(outcome.results)]
    if not results:
        return []
    taken = [{(one.round, one.kind): one for one in result.ablation} for result in results]
    return [
        AblationBlock(
            kind=first.kind,
            round=first.round,
            **{
                name: [rounded(np.array(getattr(one, name))) for one in series if one.step_s]
                for name in ("step_s", "data_s", "compute_s")
            },
        )
        for place, first in taken[0].items()
        for series in ([found[place] for found in taken if place in found],)
    ]


def _by_round(
    blocks: list[AblationBlock], sitting: Sitting, main: dict[str, Any]
) -> list[AblationBlock]:
    """The blocks of rounds with all kinds, with the normal turns of these rounds as blocks, too."""
    window: Window | None = main["window"]
    if window is None:
        return []
    rounds = np.asarray(sitting.rounds)
    others: dict[int, list[AblationBlock]] = {}
    for block in blocks:
        assert block.round is not None
        others.setdefault(block.round, []).append(_trimmed(block, sitting.reentry.steps))
    found: list[AblationBlock] = []
    for number, parts in others.items():
        chosen = np.flatnonzero(rounds == number)
        is_steady = len(chosen) > 0 and window.first <= chosen[0]
        if is_steady and {part.kind for part in parts} == {"no_sync", "alone"}:
            found += [_turn(main["ranks"], chosen, number), *parts]
    return found if len(found) >= MIN_ROUNDS * len(KINDS) else []


def _trimmed(block: AblationBlock, steps: int) -> AblationBlock:
    """`block` without the costlier steps at its start, if others remain."""
    if not steps or any(len(series) <= steps for series in block.step_s):
        return block
    names = ("step_s", "data_s", "compute_s")
    cut = {name: [series[steps:] for series in getattr(block, name)] for name in names}
    return block.model_copy(update=cut)


def _turn(ranks: list[RankRecord], chosen: Ints, number: int) -> AblationBlock:
    """Some steps of the main window as a block."""

    def times(names: Iterable[str]) -> list[list[float]]:
        return [
            rounded(np.sum([np.array(rank.phase_s[name])[chosen] for name in names], axis=0))
            for rank in ranks
        ]

    return AblationBlock(
        kind="normal",
        round=number,
        step_s=[rounded(np.array(rank.step_s)[chosen]) for rank in ranks],
        data_s=times(("data",)),
        compute_s=times(COMPUTE_PHASES),
    )
