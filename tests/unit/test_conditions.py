"""The condition of a machine while a run measured: of this one, and of others from their files."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpeval.record.conditions import Conditions
from dpeval.system.conditions import BEGIN_INTERVAL_S, ConditionSampler, disturbances
from dpeval.system.processes.process import avoid_cpus
from dpeval.system.sensors import Clocks, EventCounter, Rapl
from tests.unit.trees import grow, process, stat_of_cpus, topology

CPU0 = "sys/devices/system/cpu/cpu0"


class Watch:
    """A clock that stands still between samples."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def sample(
    root: Path,
    ranks: dict[int, list[int]],
    *moments: dict[str, str],
    every_s: float = 10.0,
) -> Conditions:
    """What is said of a machine whose files are those of `moments`, `every_s` apart."""
    watch = Watch()
    sampler = ConditionSampler(ranks, root=grow(root, moments[0]), clock=watch)
    for moment in moments:
        grow(root, moment)
        sampler.sample()
        watch.now_s += every_s
    return sampler.finish()


QUIET = stat_of_cpus(cpu0=0) | process(10, 0)
BUSY = stat_of_cpus(cpu0=9.9) | process(10, 9.9)


def test_a_quiet_machine_is_not_accused(tmp_path: Path) -> None:
    seen = sample(tmp_path, {10: [0]}, QUIET, BUSY)
    assert seen.bad == []
    assert seen.foreign_share == {"0": pytest.approx(0.0)}
    assert (seen.samples, seen.elapsed_s) == (2, 10.0)


def test_lost_time_is_told_in_words_with_the_cores_and_who_took_it(tmp_path: Path) -> None:
    ranks = {10: [0], 11: [1], 12: [2]}
    begin = stat_of_cpus(cpu0=0, cpu1=0, cpu2=0)
    for at, pid in enumerate(ranks):
        begin |= process(pid, 0, cpu=at)
    end = stat_of_cpus(cpu0=10, cpu1=10, cpu2=10) | process(99, 1.1, cpu=1, name="indexer")
    end |= process(10, 8.8) | process(11, 8.8, cpu=1) | process(12, 10, cpu=2)
    seen = sample(tmp_path, ranks, begin, end)
    assert seen.bad == ["cores 0,1 lost 12 % of their time to other processes: indexer (pid 99)"]


def test_cores_that_lost_different_shares_and_a_single_core() -> None:
    def words(**share: float) -> list[str]:
        foreign = {name.removeprefix("cpu"): value for name, value in share.items()}
        busy = dict.fromkeys(foreign, 1.0)
        return disturbances(
            Conditions(samples=9, interval_s=1, elapsed_s=9, foreign_share=foreign, busy_share=busy)
        )

    assert words(cpu3=0.05, cpu11=0.31, cpu4=0.01) == [
        "cores 3,11 lost 5–31 % of their time to other processes"
    ]
    assert words(cpu3=0.05) == ["core 3 lost 5 % of its time to other processes"]
    assert words(cpu3=0.02) == []


def test_a_half_idle_core_is_given_the_benefit_of_the_ticks() -> None:
    def words(elapsed_s: float) -> list[str]:
        return disturbances(
            Conditions(
                samples=9,
                interval_s=1,
                elapsed_s=elapsed_s,
                foreign_share={"0": 0.05},
                busy_share={"0": 0.5},
            )
        )

    # Looked at 100 times a second, a share of a half is known to ± 5 % after 10 s (3 sigma).
    assert words(10) == []
    assert len(words(100)) == 1


def test_a_short_run_says_that_it_was_too_short(tmp_path: Path) -> None:
    seen = sample(tmp_path, {10: [0]}, QUIET, BUSY, every_s=0.4)
    assert seen.foreign_share == {}
    assert seen.steal_share is None
    assert seen.unreadable[0].startswith("shares of time and energy (watched for 0.4 s")
    assert seen.bad == []


def test_no_sample_at_all_is_no_error(tmp_path: Path) -> None:
    seen = ConditionSampler({10: [0]}, root=tmp_path).finish()
    assert (seen.samples, seen.bad) == (0, [])
    blind = ConditionSampler({10: [0]}, root=tmp_path)
    blind.sample()
    assert blind.finish().samples == 0
    assert "CPU clock" in blind.finish().unreadable


def test_steal_quota_heat_and_faults_are_told(tmp_path: Path) -> None:
    group = {
        "proc/self/mountinfo": "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "proc/self/cgroup": "0::/job\n",
    }
    heat = f"{CPU0}/thermal_throttle/core_throttle_count"
    quota = "sys/fs/cgroup/job/cpu.stat"
    begin = QUIET | group | {heat: "5\n", quota: "throttled_usec 1000000\n"}
    end = process(10, 5, faults=101) | {heat: "8\n", quota: "throttled_usec 4000000\n"}
    end["proc/stat"] = "cpu0 500 0 0 0 0 0 100 30 0 0\n"
    seen = sample(tmp_path, {10: [0]}, begin, end)
    assert seen.bad == [
        "the hypervisor took 3 % of the cores' time (steal)",
        "a cgroup quota stopped this job for 30 % of the cores' time",
        "the ranks' cores were throttled by heat 3 times",
        "101 page faults of the ranks were served from disk",
    ]
    assert seen.interrupt_share == pytest.approx(0.1)


def test_a_busy_sibling_is_told_unless_it_is_the_run_s_own(tmp_path: Path) -> None:
    topology(tmp_path, sockets=1, cores=1, smt=2)
    begin = stat_of_cpus(cpu0=0, cpu1=0) | process(10, 0)
    end = stat_of_cpus(cpu0=10, cpu1=6) | process(10, 10) | process(40, 6, cpu=1, name="other")
    seen = sample(tmp_path, {10: [0]}, begin, end)
    assert seen.sibling_share == {"1": pytest.approx(0.6)}
    assert seen.bad == [
        "the SMT sibling 1 of the ranks' cores gave 60 % of its time to other processes: "
        "other (pid 40)"
    ]
    helper = {
        name.replace("proc/41", "proc/10"): text
        for name, text in process(41, 0, cpu=1, allowed="1").items()
        if "task" in name
    }
    busy = {
        name.replace("proc/41", "proc/10"): text
        for name, text in process(41, 6, cpu=1, allowed="1").items()
        if "task" in name
    }
    (tmp_path / "proc/40/stat").write_text("")
    ours = stat_of_cpus(cpu0=10, cpu1=6) | process(10, 16) | busy
    assert sample(tmp_path, {10: [0]}, begin | helper, ours).bad == []


# Sensors.


def rapl(root: Path, energy: dict[str, int], *, name: str = "package-0") -> None:
    for zone, value in energy.items():
        folder = f"sys/class/powercap/{zone}"
        what = "dram" if zone.count(":") == 2 else name
        grow(
            root,
            {
                f"{folder}/name": what + "\n",
                f"{folder}/energy_uj": f"{value}\n",
                f"{folder}/max_energy_range_uj": "262143328850\n",
            },
        )


def test_energy_is_that_of_packages_and_memory_across_a_wrap(tmp_path: Path) -> None:
    rapl(tmp_path, {"intel-rapl:0": 262_143_000_000, "intel-rapl:0:1": 1_000_000})
    grow(
        tmp_path,
        {
            # Parts of the package, and the whole platform: neither counts again.
            "sys/class/powercap/intel-rapl:0:0/name": "core\n",
            "sys/class/powercap/intel-rapl:0:0/energy_uj": "5\n",
            "sys/class/powercap/intel-rapl:1/name": "psys\n",
            "sys/class/powercap/intel-rapl:1/energy_uj": "5\n",
            "sys/class/powercap/intel-rapl-mmio:0/name": "package-0\n",
            "sys/class/powercap/intel-rapl-mmio:0/energy_uj": "5\n",
        },
    )
    meter = Rapl(tmp_path)
    meter.read()
    assert meter.energy_j == 0
    rapl(tmp_path, {"intel-rapl:0": 99_671_150, "intel-rapl:0:1": 3_000_000})
    meter.read()
    assert meter.energy_j == pytest.approx(0.32885 + 99.67115 + 2.0)
    assert meter.source == "RAPL (1 CPU package, memory)"


def test_energy_of_a_run_on_cpus(tmp_path: Path) -> None:
    rapl(tmp_path, {"intel-rapl:0": 0, "intel-rapl:10": 0})
    watch = Watch()
    sampler = ConditionSampler({10: [0]}, root=grow(tmp_path, QUIET), clock=watch)
    sampler.sample()
    rapl(tmp_path, {"intel-rapl:0": 600_000_000, "intel-rapl:10": 400_000_000})
    grow(tmp_path, BUSY)
    watch.now_s += 10
    sampler.sample()
    # What is used after the last sample is not the run's.
    rapl(tmp_path, {"intel-rapl:0": 900_000_000})
    seen = sampler.finish()
    assert (seen.energy_j, seen.power_w) == (1000.0, 100.0)
    assert seen.energy_source == "RAPL (2 CPU packages)"


def test_energy_between_two_moments_changes_nothing_of_the_whole(tmp_path: Path) -> None:
    rapl(tmp_path, {"intel-rapl:0": 0})
    watch = Watch()
    sampler = ConditionSampler({10: [0]}, root=grow(tmp_path, QUIET), clock=watch)
    assert sampler.energy_now_j([]) is None, "not before the first sample"
    sampler.sample()
    before_j = sampler.energy_now_j([])
    rapl(tmp_path, {"intel-rapl:0": 600_000_000})
    after_j = sampler.energy_now_j([])
    assert before_j is not None
    assert after_j == before_j + 600
    assert sampler.energy_now_j(["0"]) is None, "there is no GPU"
    grow(tmp_path, BUSY)
    watch.now_s += 10
    sampler.sample()
    rapl(tmp_path, {"intel-rapl:0": 900_000_000})
    assert sampler.energy_now_j([]) == before_j + 900
    assert sampler.finish().energy_j == 600.0


def test_energy_that_must_not_be_read_is_unreadable(tmp_path: Path) -> None:
    rapl(tmp_path, {"intel-rapl:0": 1})
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("")
    seen = sample(tmp_path, {10: [0]}, QUIET, BUSY)
    assert seen.energy_j is None
    assert "energy of the CPUs (its counters cannot be read)" in seen.unreadable
    assert (
        "energy of the CPUs (no RAPL)" in sample(tmp_path / "no", {10: [0]}, QUIET, BUSY).unreadable
    )


def test_a_counter_that_is_reset_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "count"
    path.write_text("5\n")
    meter = EventCounter([path])
    assert meter.increase is None
    meter.read()
    path.write_text("3\n")
    meter.read()
    path.write_text("9\n")
    meter.read()
    assert meter.increase is None
    nothing = EventCounter([])
    nothing.read()
    assert nothing.increase is None


def test_memory_traffic_where_resctrl_is_mounted(tmp_path: Path) -> None:
    files = [f"sys/fs/resctrl/mon_data/mon_L3_0{at}/mbm_total_bytes" for at in (0, 1)]
    begin, end = dict.fromkeys(files, "1000\n"), dict.fromkeys(files, "50000001000\n")
    seen = sample(tmp_path, {10: [0]}, QUIET | begin, BUSY | end)
    assert seen.memory_bytes_per_s == pytest.approx(10e9)
    assert not any("memory" in what for what in seen.unreadable)


def clocks(root: Path, series: dict[int, list[int]], rated: dict[int, int] | None = None) -> Clocks:
    def files(at: int) -> dict[str, str]:
        return {
            f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq": f"{mhz[at]}000\n"
            for cpu, mhz in series.items()
        }

    grow(root, files(0))
    for cpu, mhz in (rated or {}).items():
        path = f"sys/devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq"
        grow(root, {path: f"{mhz}000\n"})
    seen = Clocks(list(series), root)
    for at in range(len(next(iter(series.values())))):
        grow(root, files(at))
        seen.read()
    return seen


def test_clocks_that_move_are_told(tmp_path: Path) -> None:
    seen = clocks(tmp_path, {0: [3000] * 20, 1: [3000] * 10 + [2000] * 10})
    assert seen.disturbances()[0] == "core 1 changed clocks: 2000 to 3000 MHz"
    assert seen.spread() == {"median": 3000, "min": 2000, "max": 3000}


def test_one_odd_reading_is_no_change(tmp_path: Path) -> None:
    assert clocks(tmp_path, {0: [3000] * 19 + [800], 1: [2950] * 20}).disturbances() == []


def test_a_slow_core_is_told_among_its_kind_alone(tmp_path: Path) -> None:
    series = {0: [3000] * 6, 1: [2400] * 6, 2: [1800] * 6}
    kinds = {0: 3000, 1: 3000, 2: 1800}
    assert clocks(tmp_path, series, kinds).disturbances() == [
        "core 1 ran at 2400 MHz, others with the same rated clock at 3000 MHz"
    ]


def test_a_rated_clock_does_not_pass_for_a_measured_one(tmp_path: Path) -> None:
    text = "processor\t: 0\nflags\t\t: fpu{flag} sse\ncpu MHz\t\t: 2599.998\n\n"
    for flag, spread in (("", {}), (" aperfmperf", {"min": 2599.998})):
        seen = Clocks([0], grow(tmp_path, {"proc/cpuinfo": text.format(flag=flag)}))
        seen.read()
        assert spread.items() <= seen.spread().items()
        assert bool(seen.spread()) == bool(spread)


# This machine.


@pytest.fixture
def children() -> Iterator[list[int]]:
    """Process ids of 32 idle processes."""
    pids = []
    for _ in range(32):
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        pids.append(pid)
    yield pids
    for pid in pids:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux")
def test_here_everything_is_read_or_told_unreadable(children: list[int]) -> None:
    cpu = min(os.sched_getaffinity(0))
    files_before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    # A clock of its own: on a loaded machine a sample costs more, and the next one is due later.
    ticks = itertools.count()
    sampler = ConditionSampler({pid: [cpu] for pid in children}, clock=lambda: next(ticks) * 0.05)
    for _ in range(2000):
        sampler.sample()
    seen = sampler.finish()
    assert 2 <= seen.samples <= 2 + seen.elapsed_s / BEGIN_INTERVAL_S, "no more often than said"
    assert set(seen.foreign_share) == {str(cpu)}
    assert seen.steal_share is not None
    assert seen.load_average is not None
    told = " ".join(seen.unreadable)
    assert (seen.energy_j is None) == ("energy of the CPUs" in told)
    assert bool(seen.cpu_mhz) != ("CPU clock" in told)
    del sampler
    assert len(os.listdir("/proc/self/fd")) == files_before  # noqa: PTH208


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_the_watcher_stays_off_the_ranks_cores_where_it_can() -> None:
    allowed = os.sched_getaffinity(0)
    taken = {min(allowed)}
    with avoid_cpus(taken):
        assert os.sched_getaffinity(0) == (allowed - taken or allowed)
    assert os.sched_getaffinity(0) == allowed
    with avoid_cpus(allowed):
        assert os.sched_getaffinity(0) == allowed
    with avoid_cpus(allowed, taken):  # the second choice where the first leaves nothing
        assert os.sched_getaffinity(0) == (allowed - taken or allowed)
    with pytest.raises(KeyError), avoid_cpus(taken):
        raise KeyError
    assert os.sched_getaffinity(0) == allowed
