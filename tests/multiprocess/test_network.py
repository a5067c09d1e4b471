"""Communication over a link whose bandwidth is known: two namespaces shaped to 1 Gbit/s."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Somebody else on the machine can spoil one attempt; the instrument is wrong if it stays wrong.
pytestmark = [pytest.mark.timing, pytest.mark.flaky(reruns=2, reruns_delay=5)]

ROOT = Path(__file__).resolve().parents[2]
LINK_BITS_PER_S = 0.95e9
"""What TCP leaves of 1 Gbit/s: 1448 bytes of payload in 1538 on the wire."""


def sh(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[str]]:
    """Two namespaces, 10.77.0.1 and 10.77.0.2, joined by a bridge, each link at 1 Gbit/s."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"):
        pytest.skip("shaping a link needs root and iproute2")
    names = [f"dpeval{os.getpid()}h{number}" for number in range(2)]
    bridge = f"dpb{os.getpid()}"
    try:
        sh("ip", "link", "add", bridge, "type", "bridge")
        sh("ip", "link", "set", bridge, "up")
        for number, name in enumerate(names):
            outer = f"dpv{os.getpid()}{number}"
            sh("ip", "netns", "add", name)
            sh("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
            sh("ip", "link", "set", outer, "master", bridge, "up")
            sh("ip", "-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", "eth0")
            sh("ip", "-n", name, "link", "set", "eth0", "up")
            sh("ip", "-n", name, "link", "set", "lo", "up")
            sh("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "eth0", "root", "tbf",
               "rate", "1gbit", "burst", "128kb", "latency", "50ms")  # fmt: skip
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", bridge], check=False, capture_output=True)


def train(hosts: list[str], *arguments: float) -> list[dict[str, Any]]:
    """Run one rank per host; returns what each of them measured."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "eth0"}
    words = [str(argument) for argument in arguments]
    ranks = [
        subprocess.Popen(
            ["ip", "netns", "exec", host, sys.executable, "-m", "tests.multiprocess.shaped_rank",
             str(rank), "10.77.0.1", "29999", *words],
            cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank, host in enumerate(hosts)
    ]  # fmt: skip
    told = []
    for rank in ranks:
        out, err = rank.communicate(timeout=400)
        assert rank.returncode == 0, err
        told.append(json.loads(out.splitlines()[-1]))
    return told


def median(told: dict[str, Any], column: str) -> float:
    return float(np.median(told["times"][column][2:]))


def demanded_s(mib: float) -> float:
    """A ring of two sends every byte once in each direction: S bytes take S / bandwidth
    (2 (N-1)/N S; Patarasuk & Yuan 2009, J. Parallel Distrib. Comput. 69(2))."""
    return mib * 2**20 * 8 / LINK_BITS_PER_S


def test_communication_that_nothing_hides_takes_what_the_link_demands(hosts: list[str]) -> None:
    for told in train(hosts, 0.0, 16, 1000, 12):
        assert median(told, "comm_exposed") == pytest.approx(demanded_s(16), rel=0.10)
        assert median(told, "comm_hidden") <= 0.05 * median(told, "comm")
        assert sum(nbytes for nbytes, _ in told["buckets"]) == 16 * 2**20 + 10 * 4


def test_the_part_behind_a_longer_backward_is_hidden(hosts: list[str]) -> None:
    """Four layers of 4 MiB, a bucket each, 0.1 s of backward between them: a transfer takes a
    third of that, so all but the last bucket's are hidden."""
    for told in train(hosts, 0.4, 16, 4.0, 12):
        assert median(told, "comm_hidden") == pytest.approx(demanded_s(12), rel=0.15)
        assert median(told, "comm_exposed") == pytest.approx(demanded_s(4), rel=0.20)
        assert median(told, "backward") == pytest.approx(0.4, rel=0.05)


def test_ddps_own_timers_agree(hosts: list[str]) -> None:
    told, _ = train(hosts, 0.4, 16, 4.0, 12)
    log = told["ddp"]
    compute_s = log["avg_backward_compute_time"] / 1e9
    comm_s = log["avg_backward_comm_time"] / 1e9
    assert compute_s == pytest.approx(median(told, "backward"), rel=0.05)
    assert comm_s > 0
    hidden_s = log["avg_backward_compute_comm_overlap_time"] / 1e9
    # DDP counts from its first bucket to its last, gaps included, so it sees no less of each.
    assert hidden_s >= median(told, "comm_hidden") * 0.95
    # DDP averages its first ten iterations, before and after it rebuilt its buckets.
    exposed_s = float(np.mean(told["times"]["comm_exposed"][:10]))
    assert comm_s - hidden_s == pytest.approx(exposed_s, rel=0.25)
