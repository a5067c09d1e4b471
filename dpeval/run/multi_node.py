"""Several nodes in one run: where they meet, and how their parts become one record.

Every node runs the same program and starts its own ranks exactly as a single machine does. They
meet through the run's folder, which all of them see: node 0 says there where it serves the
rendezvous store, and the others leave there what their ranks measured, as arrays and JSON.

They use files and not keys in that store. The store's address must be told outside it, and the
processes that watch ranks must never block: a client's `check` takes 40 µs, but it does not return
while the server is stopped or cut off, whatever the timeout (torch 2.14: none after 8 s with
a timeout of 3 s). Meanwhile the watcher would heed no signal and detect no hang. A value in the
store also ends at 8 MiB, less than the series of a long run.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from pathlib import Path

import numpy as np
import psutil
from pydantic import TypeAdapter, ValidationError

from dpeval.config import Config
from dpeval.errors import MachineError
from dpeval.instruments.step_buffer import StepBuffer
from dpeval.record.plan import Plan, RankPlan
from dpeval.run.job import Node, StoreAddress
from dpeval.run.outcome import PEER, Failure, Outcome, is_echo
from dpeval.util.files import replacing, write_atomically
from dpeval.util.frozen import Frozen
from dpeval.worker.messages import RankResult

PART_TIMEOUT_S = 60.0
"""How long node 0 waits for what another node measured, once its own ranks have ended."""


class _Address(Frozen):
    host: str
    port: int


class _Part(Frozen):
    """What one node's ranks did, besides their step series."""

    ranks: list[RankPlan]
    pids: dict[int, int]
    steps: dict[int, int]
    results: str
    failure: str
    interrupted_by: str | None = None


def interface_of(config: Config) -> tuple[str, str]:
    """The network interface between nodes and this node's IPv4 address on it.

    ``hardware.interface``, else the site's, else the first that is up and no loopback.

    Raises:
        MachineError: the interface named has no IPv4 address here.
    """
    asked = config.hardware.interface or config.site.interface
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    found = {
        name: address.address
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family == socket.AF_INET and name in up
    }
    if asked is not None:
        if asked not in found:
            raise MachineError(
                f"hardware.interface={asked} has no IPv4 address on {socket.gethostname()}; "
                f"there are {', '.join(found)}"
            )
        return asked, found[asked]
    for name, address in found.items():
        if not address.startswith("127."):
            return name, address
    return "lo", "127.0.0.1"


def announce(node: Node, host: str, port: int) -> None:
    """Tell the other nodes where node 0 serves the store."""
    write_atomically(_meeting_path(node), _Address(host=host, port=port).model_dump_json())


def find(node: Node, config: Config) -> StoreAddress:
    """Wait until node 0 has said where it is.

    Raises:
        MachineError: it did not within ``hardware.startup_timeout_s``.
    """
    deadline_s = time.monotonic() + config.hardware.startup_timeout_s
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError, ValidationError):
            told = _Address.model_validate_json(_meeting_path(node).read_bytes())
            return StoreAddress(told.host, told.port, interface_of(config)[0])
        time.sleep(0.2)
    raise MachineError(
        f"node 0 of the run said nothing within {config.hardware.startup_timeout_s:.0f} s "
        f"({_meeting_path(node)}); is the folder shared by all nodes?"
    )


LOOK_EVERY_S = 1.0


class FailureNotice:
    """How a failure on one node reaches the others within seconds.

    A rank that waits in a collective for one that is gone may learn of it only when a timeout of
    NCCL's ends, after minutes; and a flag that is all-reduced in every step would be part of what
    is measured. So the parents, which do not train, tell each other through the run's folder.
    """

    def __init__(self, node: Node) -> None:
        self._node, self._looked_s = node, time.monotonic()

    def post(self) -> None:
        """Tell the other nodes that this one's ranks have failed."""
        write_atomically(self._path(self._node.index), "")

    def failure_elsewhere(self) -> Failure | None:
        """The failure that another node has told of; looks once a second."""

        if time.monotonic() - self._looked_s < LOOK_EVERY_S:
            return None
        self._looked_s = time.monotonic()
        others = (index for index in range(self._node.count) if index != self._node.index)
        failed = next((index for index in others if self._path(index).exists()), None)
        return None if failed is None else Failure(PEER, None, f"node {failed} of the run failed")

    def _path(self, index: int) -> Path:
        return self._node.folder / f".failed-{index}-{self._node.attempt}"


def write_part(
    node: Node, plan: Plan, step_buffer: StepBuffer, outcome: Outcome, pids: dict[int, int]
) -> None:
    """Leave what this node's ranks did for node 0."""

    own = [rank for rank in plan.ranks if rank.node == node.index]
    steps = {rank.rank: step_buffer.steps(rank.local_rank) for rank in own}
    path = _part_path(node, node.index)
    rows = {str(rank.rank): step_buffer.rows(rank.local_rank)[: steps[rank.rank]] for rank in own}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **rows)  # type: ignore[arg-type]  # its stub knows no ** of arrays
    results = TypeAdapter(list[RankResult]).dump_json(list(outcome.results.values()))
    failure = TypeAdapter(Failure | None).dump_json(outcome.failure)
    part = _Part(
        ranks=own,
        pids=pids,
        steps=steps,
        results=results.decode(),
        failure=failure.decode(),
        interrupted_by=outcome.interrupted_by,
    )
    # Written last: node 0 reads the series when it sees this.
    write_atomically(path.with_suffix(".json"), part.model_dump_json())


def collect_parts(
    node: Node, plan: Plan, step_buffer: StepBuffer, outcome: Outcome, pids: dict[int, int]
) -> Plan:
    """Add what the other nodes left to node 0's board, outcome and pids.

    Returns the plan with the CPUs and devices that the other nodes really used.
    """

    ranks = {rank.rank: rank for rank in plan.ranks}
    deadline_s = time.monotonic() + PART_TIMEOUT_S
    for index in range(1, node.count):
        part = _await_part(node, index, deadline_s)
        if part is None:
            pids.update({rank.rank: 0 for rank in plan.ranks if rank.node == index})
            outcome.failure = outcome.failure or Failure(
                "lost_node", None, f"node {index} of the run left no word of its ranks"
            )
            continue
        with np.load(_part_path(node, index), allow_pickle=False) as series:
            for rank in part.ranks:
                ranks[rank.rank] = rank
                step_buffer.fill(rank.rank, series[str(rank.rank)])
        pids.update(part.pids)
        for result in TypeAdapter(list[RankResult]).validate_json(part.results):
            outcome.results[result.rank] = result
        failure = TypeAdapter(Failure | None).validate_json(part.failure)
        if failure is not None and (outcome.failure is None or is_echo(outcome.failure)):
            outcome.failure = failure
        outcome.interrupted_by = outcome.interrupted_by or part.interrupted_by
    return plan.model_copy(update={"ranks": [ranks[rank] for rank in sorted(ranks)]})


def _await_part(node: Node, index: int, deadline_s: float) -> _Part | None:
    path = _part_path(node, index).with_suffix(".json")
    while True:
        with contextlib.suppress(OSError, ValidationError, json.JSONDecodeError):
            return _Part.model_validate_json(path.read_bytes())
        if time.monotonic() > deadline_s:
            return None
        time.sleep(0.2)


def _meeting_path(node: Node) -> Path:
    return node.folder / f".meeting-{node.attempt}.json"


def _part_path(node: Node, index: int) -> Path:
    return node.folder / f".node-{index}-{node.attempt}.npz"
