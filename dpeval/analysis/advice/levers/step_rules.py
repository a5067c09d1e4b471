"""Levers on what a step spends beside computing: input, page faults, synchronisation."""

from __future__ import annotations

import math

from dpeval.analysis.advice.levers.lever import Lever, Situation, without
from dpeval.analysis.advice.quantity import Quantity
from dpeval.util.display.ranges import percent

LEAST_SHARE = 0.02
"""A smaller part of a step is not worth a trial."""
_LOADER_REST = 0.4
"""The most that copying a crop from decoded images takes of the time of decoding it
(``docs/pages/how-to/own-data.md``: a third at 128 px, an eighth at 224 px)."""


def loader(now: Situation) -> Lever | None:
    """A faster loader, where waits for data delay the step."""
    share, half = now.share("input_s"), now.half("input_half", math.inf)
    used = now.asked.get("dataset.loader", "")
    better = {"jpeg": "cached", "cached": "resident" if now.is_gpu else ""}.get(used, "")
    if share < LEAST_SHARE or not better or not now.is_own_loop:
        return None
    busy = 1 - share
    low, high = (1 - min(1.0, busy * math.exp(end * min(half, 3.0))) for end in (1, -1))
    gain = Quantity(
        without(share * (1 - _LOADER_REST / 2)), without(low * (1 - _LOADER_REST)), without(high)
    )
    return Lever(
        "loader",
        f"Feed with the {better} loader",
        f"waits for data take {percent(share)} of a step with loader={used}",
        gain,
        now.trying({"dataset.loader": f"{used},{better}"}),
        caution="images are decoded once and kept in memory" if better == "cached" else
        "the decoded images lie in every GPU's memory",
    )  # fmt: skip


def keep_memory(now: Situation) -> Lever | None:
    """Freed memory kept for the next step, where page faults take time."""
    share = _known(float(now.row["page_fault_share"]))
    if share < LEAST_SHARE or now.asked.get("hardware.keep_memory") == "True":
        return None
    # What is measured is the least that faults take: they also evict caches, and the kernel's work
    # for several ranks at once is serialised.
    gain = Quantity(without(1.25 * share), without(0.5 * share), without(min(2.5 * share, 0.6)))
    return Lever(
        "keep_memory",
        "Keep freed memory",
        f"page faults take at least {percent(share)} of a step: freed memory is returned to the "
        "system and faulted in again",
        gain,
        now.trying({"hardware.keep_memory": "false,true"}),
    )


def gradient_views(now: Situation) -> Lever | None:
    """Gradients as views of the buckets, where copying them takes time."""
    share = now.share("grad_copy_s")
    is_on = now.asked.get("strategy.gradient_as_bucket_view") == "True"
    if not now.is_ddp or is_on or share < LEAST_SHARE / 2:
        return None
    return Lever(
        "gradient_views",
        "Make gradients views of the buckets",
        f"copying gradients out of the buckets takes {percent(share, 1)} of a step",
        # Copies into the buckets, which backward hides in its own time, are saved as well.
        Quantity(without(share), without(share / 2), without(2.5 * share)),
        now.trying({"strategy.gradient_as_bucket_view": "false,true"}),
    )


def bucket_size(now: Situation) -> Lever | None:
    """Smaller buckets, where backward could hide communication that is exposed now."""
    exposed = now.share("exposed_s")
    total, hidden = now.mean("comm_s"), now.mean("comm_hidden_s")
    if not now.is_ddp or exposed < LEAST_SHARE or not total > 0:
        return None
    if hidden / total > 0.8:
        return None  # the last bucket is exposed, whatever its size
    size = float(now.asked.get("strategy.bucket_cap_mb", "25"))
    tried = [f"{size / part:g}" for part in (1, 2.5, 5)]
    limit = min(exposed, now.share("backward_s"))
    return Lever(
        "bucket_size",
        "Use smaller gradient buckets",
        f"{percent(exposed)} of a step is exposed communication, and backward hides only "
        f"{percent(hidden / total)} of the all-reduces: smaller buckets start earlier",
        Quantity(without(limit / 2), 0.0, without(limit)),
        now.trying({"strategy.bucket_cap_mb": ",".join(tried)}),
    )


def static_graph(now: Situation) -> Lever | None:
    """A static graph, where DDP searches every step for unused parameters."""
    factor = now.synchronisation
    if not now.is_ddp or factor is None:
        return None
    if now.asked.get("strategy.find_unused_parameters") != "True":
        return None
    visible = now.share("exposed_s") + now.share("grad_copy_s")
    rest = 1 - factor.value - visible
    if not rest >= LEAST_SHARE / 2:
        return None
    high = max(rest, 1 - factor.low - visible) if math.isfinite(factor.low) else rest
    return Lever(
        "static_graph",
        "Declare the graph static",
        f"DDP searches every step for unused parameters, and synchronisation costs "
        f"{percent(rest)} of a step beyond communication and copies",
        Quantity(without(rest / 2), 0.0, without(high)),
        now.trying({
            "strategy.static_graph": "false,true", "strategy.find_unused_parameters": "true"
        }),
        caution="only right if every step uses the same parameters",
    )  # fmt: skip


def _known(share: float) -> float:
    return share if math.isfinite(share) else 0.0
