"""Whose CPU time it was: with real processes of this machine, and with made-up ones."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dpeval.system.processes.cpu_accounting import RankTimes, parse_cpu_times, parse_process
from tests.unit.trees import grow, process, stat_of_cpus

Start = Callable[[str], subprocess.Popen[bytes]]
SPIN = "while True: pass"
CPU = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0


@pytest.fixture
def start() -> Iterator[Start]:
    """Start Python programs in groups of their own, pinned to one core; they end with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def run(code: str) -> subprocess.Popen[bytes]:
        pinned = f"import os, time; os.sched_setaffinity(0, [{CPU}]); "
        done = subprocess.Popen(
            [sys.executable, "-S", "-c", pinned + "print(end='.', flush=True)\n" + code],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(done)
        assert done.stdout is not None
        assert done.stdout.read(1) == b"."
        return done

    yield run
    for one in started:
        # Each leads a group, so a helper that it forked ends with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.pid, signal.SIGKILL)
        one.wait()
        assert one.stdout is not None
        one.stdout.close()


def spent_s(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def let_spend(least_s: float, *pids: int) -> float:
    """Wait until these processes have used `least_s` more of a processor; return how much."""
    began_s = sum(map(spent_s, pids))
    while (took_s := sum(map(spent_s, pids)) - began_s) < least_s:
        time.sleep(0.02)
    return took_s


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux")
def test_a_real_foreign_process_is_measured_and_named(start: Start) -> None:
    rank, other = start("time.sleep(600)"), start(SPIN)
    times = RankTimes({rank.pid: [CPU]}, Path("/proc"))
    times.scan()
    assert times.sample()
    # Read between the samples, so what lies between the readings lies between the samples too.
    took_s = let_spend(0.5, other.pid)
    assert times.sample()
    times.scan()
    lost_s = times.foreign_s()[CPU]
    times.close()
    # Others may run here too: at least what this one took is lost, and no more than there was.
    assert took_s - 0.05 <= lost_s <= times.cpu_times()[CPU].work_s + 0.02
    assert f"(pid {other.pid})" in " ".join(times.top_processes([CPU], 0.5 * took_s))
    assert times.top_processes([CPU + 1000], 0.0) == []


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux")
def test_a_real_rank_and_its_helper_are_not_strangers(start: Start) -> None:
    # The rank leads its process group, as dpeval's do; the helper is forked from it.
    rank = start(f"os.fork()\n{SPIN}")
    times = RankTimes({rank.pid: [CPU]}, Path("/proc"))
    while not (helpers := children_of(rank.pid)):
        time.sleep(0.01)
    assert len(helpers) == 1
    times.scan()
    began_s = time.monotonic()
    assert times.sample()
    took_s = let_spend(0.5, rank.pid, helpers[0])
    assert times.sample()
    elapsed_s = time.monotonic() - began_s
    own_s = times.cpu_times()[CPU].work_s - times.foreign_s()[CPU]
    times.scan()
    assert 0 < own_s <= elapsed_s + 0.1
    assert not any(f"(pid {rank.pid})" in name for name in times.top_processes([CPU], 0.0))
    # Half of the pair's time is the helper's: were it a stranger, it would be lost.
    assert own_s >= 0.8 * took_s
    assert not any(f"(pid {helpers[0]})" in name for name in times.top_processes([CPU], 0.0))
    times.close()


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux")
def test_a_rank_that_has_ended_ends_the_sampling(start: Start) -> None:
    rank = start("time.sleep(600)")
    times = RankTimes({rank.pid: [CPU]}, Path("/proc"))
    times.scan()
    assert times.sample()
    rank.kill()
    rank.wait()
    assert not times.sample()
    times.close()


def watch(
    root: Path, ranks: dict[int, list[int]], before: dict[str, str], after: dict[str, str]
) -> RankTimes:
    """Sample `before` and `after`, with a look around at either."""
    times = RankTimes(ranks, grow(root, before) / "proc")
    times.scan()
    assert times.sample()
    grow(root, after)
    times.scan()
    assert times.sample()
    times.close()
    return times


def test_what_others_took_is_told_for_each_core(tmp_path: Path) -> None:
    times = watch(
        tmp_path,
        {10: [0], 11: [1]},
        stat_of_cpus(cpu0=5, cpu1=5, cpu2=5) | process(10, 2) | process(11, 3, cpu=1),
        stat_of_cpus(cpu0=15, cpu1=15, cpu2=9)
        | process(10, 11, faults=4, touched=907, switches=70)
        | process(11, 13, cpu=1, switches=30)
        | process(12, 0.9, name="a) R (b", cpu=0),
    )
    assert times.foreign_s() == pytest.approx({0: 1.0, 1: 0.0})
    assert times.top_processes([0], 0.5) == ["a) R (b (pid 12)"]
    assert times.top_processes([1], 0.5) == []
    assert (times.major_faults(), times.minor_faults(), times.switches()) == (4, 900, 100)


def test_helpers_count_as_their_rank_s_own_even_after_their_end(tmp_path: Path) -> None:
    before = stat_of_cpus(cpu0=0) | process(10, 0) | process(20, 0, parent=10)
    times = RankTimes({10: [0]}, grow(tmp_path, before) / "proc")
    times.scan()
    assert times.sample()
    # One that was re-parented is known by the group that the rank leads.
    grow(tmp_path, process(20, 3, parent=10) | process(21, 2, parent=1, group=10))
    times.scan()
    grow(tmp_path, stat_of_cpus(cpu0=9) | process(10, 4))
    assert times.sample()
    grow(tmp_path, {"proc/20/stat": ""} | stat_of_cpus(cpu0=10) | process(10, 5))
    assert times.sample()
    assert times.foreign_s() == pytest.approx({0: 10 - 5 - 3 - 2})
    assert times.top_processes([0], 0.0) == []


def test_threads_pinned_elsewhere_do_not_count_here(tmp_path: Path) -> None:
    # The rank used 12 s, 5 of them in a thread that decodes on CPU 7, so 3 s of 10 are lost.
    def thread(time_s: float) -> dict[str, str]:
        files = process(30, time_s, cpu=7, allowed="6-7")
        return {name.replace("proc/30/task", "proc/10/task"): text for name, text in files.items()}

    times = watch(
        tmp_path,
        {10: [0]},
        stat_of_cpus(cpu0=0, cpu7=0) | thread(1) | process(10, 1),
        stat_of_cpus(cpu0=10, cpu7=9) | thread(6) | process(10, 13),
    )
    assert times.foreign_s() == pytest.approx({0: 3.0})
    assert times.elsewhere_s() == pytest.approx(5.0)


def test_ranks_that_share_cpus_are_taken_together(tmp_path: Path) -> None:
    times = watch(
        tmp_path,
        {10: [0, 1], 11: [1, 2], 12: [3]},
        stat_of_cpus(cpu0=0, cpu1=0, cpu2=0, cpu3=0)
        | process(10, 0)
        | process(11, 0)
        | process(12, 0, cpu=3),
        stat_of_cpus(cpu0=10, cpu1=10, cpu2=10, cpu3=10)
        | process(10, 14)
        | process(11, 13)
        | process(12, 10, cpu=3),
    )
    assert times.foreign_s() == pytest.approx({0: 1.0, 1: 1.0, 2: 1.0, 3: 0.0})


def test_interrupts_and_steal_are_not_other_processes() -> None:
    (times,) = parse_cpu_times("cpu 1\ncpu4 100 20 30 900 5 40 50 60 10 0\nintr 1\n").values()
    assert times.work_s == pytest.approx(1.5)
    assert times.interrupt_s == pytest.approx(0.9)
    assert times.steal_s == pytest.approx(0.6)


def test_zombies_and_torn_lines_are_no_processes() -> None:
    line = process(10, 1)["proc/10/stat"]
    assert parse_process(line) is not None
    assert parse_process(line.replace(") S", ") Z")) is None
    assert parse_process(line[:40]) is None
    assert parse_process("") is None
