"""The variables with which a rank is started. Importing this does not import torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dpeval.worker.messages import RankTask


def rank_environment(threads: int, interface: str) -> dict[str, str]:
    """Variables that bind a rank to one network interface and set the size of its thread pools."""
    return {
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": interface,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }


def script_task(task: RankTask, folder: Path) -> RankTask:
    """`task` with the environment of torchrun, and a file in `folder` for what it prints."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder.absolute() / f"rank-{task.rank}.log"
    log.unlink(missing_ok=True)  # of an earlier attempt
    return replace(task, env=task.env | torchrun_environment(task), log=str(log))


def torchrun_environment(task: RankTask) -> dict[str, str]:
    """The variables that ``torchrun`` sets, for the rank of `task`.

    torch's ``env://`` then joins the store that this run serves, as it would join that of
    torchrun's agent, so no port is announced before it is open.
    """
    mine = task.plan.ranks[task.rank]
    here = [rank for rank in task.plan.ranks if rank.node == mine.node]
    nodes = 1 + max(rank.node for rank in task.plan.ranks)
    numbers = {
        "RANK": task.rank,
        "WORLD_SIZE": task.plan.world_size,
        "LOCAL_RANK": mine.local_rank,
        "LOCAL_WORLD_SIZE": len(here),
        "GROUP_RANK": mine.node,
        "GROUP_WORLD_SIZE": nodes,
        "ROLE_RANK": task.rank,
        "ROLE_WORLD_SIZE": task.plan.world_size,
        "MASTER_PORT": task.store_port,
        "TORCHELASTIC_RESTART_COUNT": 0,
        "TORCHELASTIC_MAX_RESTARTS": 0,
    }
    return {
        **{name: str(value) for name, value in numbers.items()},
        "MASTER_ADDR": task.store_host,
        "ROLE_NAME": "default",
        "TORCHELASTIC_RUN_ID": "dpeval",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
