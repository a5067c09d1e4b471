"""Commands that measure something again or try something else, made from those of the records."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

import pandas as pd

TURNS = "sweep.order=interleaved"
_OF_A_RUN = (
    "num_devices", "batch", "repeat", "baseline", "repetition", "hydra.mode", "sweep.order",
)  # fmt: skip
"""Keys that a command made here sets itself, or leaves at their defaults."""


def sweeping(
    runs: pd.DataFrame, swept: Mapping[str, str], *, left_out: Sequence[str] = (), turns: bool
) -> str:
    """The command of a run, with values to sweep over in place of its own; empty: none is known.

    It is that of a run on the most devices: the baseline may have another strategy.

    Args:
        runs: those that are to be measured again or differently.
        swept: the values of each key, separated by commas.
        left_out: further keys, or their beginnings up to a dot, whose values are dropped.
        turns: whether runs that this machine starts are to take turns.
    """
    good = runs[runs["status"] == "ok"].sort_values("num_devices", kind="stable")
    texts = [text for text in good["command"] if text]
    try:
        words = shlex.split(texts[-1]) if texts else []
    except ValueError:  # cut in the frame, or not one of ours
        return ""
    begin = next((i for i, word in enumerate(words, 1) if word == "dpeval.train"), 0)
    if not begin:
        return ""
    dropped = {*_OF_A_RUN, *swept, *left_out}
    groups = tuple(name for name in left_out if name.endswith("."))
    kept = [
        word
        for word in words[begin:]
        if word != "-m" and word.partition("=")[0].lstrip("+") not in dropped
        and not word.startswith(groups)
    ]  # fmt: skip
    is_local = not any(word.startswith("hydra/launcher=") for word in kept)
    asked = [f"{key}={values}" for key, values in swept.items()]
    return shlex.join([*words[:begin], "-m", *kept, *[TURNS] * (turns and is_local), *asked])


def listed(values: Sequence[object]) -> str:
    """Values to sweep over."""
    return ",".join(str(value) for value in values)
