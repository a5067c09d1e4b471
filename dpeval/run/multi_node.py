"""Runs on several nodes: how nodes find each other, and how their parts become one record.

Every node runs the same program and starts its own ranks exactly as a single machine does. Nodes
communicate through the run's folder, which all of them share: node 0 publishes the address of the
rendezvous store there, and the others write what their ranks measured, as arrays and JSON.

They use files rather than keys in the store. The store's address must be published outside it, and
the supervisors must never block: a client's `check` takes 40 µs, but while the server is stopped
or unreachable it does not return, whatever the timeout (torch 2.14: still blocked after 8 s with a
timeout of 3 s). Meanwhile the supervisor would handle no signal and detect no hang. Also, a value
in the store is limited to 8 MiB, less than the series of a long run.
"""

from __future__ import annotations

import contextlib
import json
import os
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
from dpeval.run.recording.outcome import PEER, Failure, Outcome, root_cause
from dpeval.util.files import replacing, write_atomically
from dpeval.util.frozen import Frozen
from dpeval.worker.messages import RankResult

PART_TIMEOUT_S = 90.0
"""How long node 0 waits for another node's results after its own ranks have ended: longer than NFS
may keep what it knows of a folder (``acdirmax``, 60 s)."""


class _Address(Frozen):
    host: str
    port: int


class _Part(Frozen):
    """Results of one node's ranks, except for their step series."""

    ranks: list[RankPlan]
    pids: dict[int, int]
    steps: dict[int, int]
    results: str
    failure: str
    interrupted_by: str | None = None


def interface_of(config: Config) -> tuple[str, str]:
    """The network interface between nodes and this node's IPv4 address on it.

    ``hardware.interface``, else the site's, else the first that is up and not loopback.

    Raises:
        MachineError: the requested interface has no IPv4 address here.
    """
    requested = config.hardware.interface or config.site.interface
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    found = {
        name: address.address
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family == socket.AF_INET and name in up
    }
    if requested is not None:
        if requested not in found:
            raise MachineError(
                f"hardware.interface={requested} has no IPv4 address on {socket.gethostname()}; "
                f"use one of {', '.join(found)}"
            )
        return requested, found[requested]
    for name, address in found.items():
        if not address.startswith("127."):
            return name, address
    return "lo", "127.0.0.1"


def announce(node: Node, host: str, port: int) -> None:
    """Publish the address of node 0's rendezvous store to the other nodes.

    Args:
        node: this node, which is node 0.
        host: its IPv4 address.
        port: the store's port.
    """
    write_atomically(_address_path(node), _Address(host=host, port=port).model_dump_json())


def find(node: Node, config: Config) -> StoreAddress:
    """Wait until node 0 publishes the address of its store.

    Raises:
        MachineError: it did not do so within ``hardware.startup_timeout_s``.
    """
    deadline_s = time.monotonic() + config.hardware.startup_timeout_s
    while time.monotonic() < deadline_s:
        _look_again(node.folder)
        with contextlib.suppress(OSError, ValidationError):
            address = _Address.model_validate_json(_address_path(node).read_bytes())
            return StoreAddress(address.host, address.port, interface_of(config)[0])
        time.sleep(0.2)
    raise MachineError(
        f"node 0 did not publish its address within {config.hardware.startup_timeout_s:.0f} s "
        f"({_address_path(node)}); check that all nodes share this folder, or set a larger "
        "hardware.startup_timeout_s"
    )


CHECK_EVERY_S = 1.0


class FailureNotice:
    """Spreads the failure of one node to the others within seconds.

    A rank that waits in a collective for a dead peer may notice only after NCCL's timeout, minutes
    later, and a flag all-reduced in every step would distort the measurement. So the supervisors,
    which do not train, notify each other through the run's folder.
    """

    def __init__(self, node: Node) -> None:
        self._node, self._checked_s = node, time.monotonic()

    def post(self) -> None:
        """Notify the other nodes that this node's ranks failed."""
        write_atomically(self._path(self._node.index), "")

    def failure_elsewhere(self) -> Failure | None:
        """The failure of another node, if one was posted; checks once a second."""
        if time.monotonic() - self._checked_s < CHECK_EVERY_S:
            return None
        self._checked_s = time.monotonic()
        _look_again(self._node.folder)
        others = (index for index in range(self._node.count) if index != self._node.index)
        failed = next((index for index in others if self._path(index).exists()), None)
        return None if failed is None else Failure(PEER, None, f"node {failed} of the run failed")

    def _path(self, index: int) -> Path:
        return self._node.folder / f".failed-{index}-{self._node.attempt}"


def write_part(
    node: Node, plan: Plan, step_buffer: StepBuffer, outcome: Outcome, pids: dict[int, int]
) -> None:
    """Write the results of this node's ranks for node 0.

    Args:
        node: this node.
        plan: the plan of the whole run.
        step_buffer: the step series of this node's ranks.
        outcome: how they ended.
        pids: process id per rank of this node.
    """
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
    # Written last: once this file exists, node 0 reads the series.
    write_atomically(path.with_suffix(".json"), part.model_dump_json())


def has_all_parts(node: Node) -> bool:
    """Whether the other nodes have written their results."""
    return all(_part_path(node, at).with_suffix(".json").exists() for at in range(1, node.count))


def collect_parts(
    node: Node,
    plan: Plan,
    step_buffer: StepBuffer,
    outcome: Outcome,
    pids: dict[int, int],
    timeout_s: float,
) -> Plan:
    """Add the results of the other nodes to those of node 0.

    Args:
        node: this node, which is node 0.
        plan: the plan of the whole run.
        step_buffer: filled with the other nodes' step series.
        outcome: completed with their results, failure and interrupt.
        pids: process id per rank, completed likewise; 0 for the ranks of a lost node.
        timeout_s: how long to wait for them.

    Returns:
        The plan with the CPUs and devices that the other nodes actually used.
    """
    ranks = {rank.rank: rank for rank in plan.ranks}
    failures = [] if outcome.failure is None else [outcome.failure]
    deadline_s = time.monotonic() + timeout_s
    for index in range(1, node.count):
        part = _await_part(node, index, deadline_s)
        if part is None:
            pids.update({rank.rank: 0 for rank in plan.ranks if rank.node == index})
            failures.append(
                Failure("lost_node", None, f"node {index} of the run returned no results")
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
        if failure is not None:
            failures.append(failure)
        outcome.interrupted_by = outcome.interrupted_by or part.interrupted_by
    outcome.failure = root_cause(failures) if failures else None
    return plan.model_copy(update={"ranks": [ranks[rank] for rank in sorted(ranks)]})


def _await_part(node: Node, index: int, deadline_s: float) -> _Part | None:
    path = _part_path(node, index).with_suffix(".json")
    while True:
        _look_again(node.folder)
        with contextlib.suppress(OSError, ValidationError, json.JSONDecodeError):
            return _Part.model_validate_json(path.read_bytes())
        if time.monotonic() > deadline_s:
            return None
        time.sleep(0.2)


def _look_again(folder: Path) -> None:
    """Let a network file system ask its server which files are in `folder`.

    NFS remembers for up to a minute that a file was missing, but not past opening its folder.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        next(entries, None)


def _address_path(node: Node) -> Path:
    return node.folder / f".meeting-{node.attempt}.json"


def _part_path(node: Node, index: int) -> Path:
    return node.folder / f".node-{index}-{node.attempt}.npz"
