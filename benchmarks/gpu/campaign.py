"""Proves dpeval's GPU figures on one GPU, in minutes; rehearses the same stages on a CPU.

    python -m benchmarks.gpu.campaign FOLDER                        # on a machine with a GPU
    python -m benchmarks.gpu.campaign FOLDER --rehearse             # on any machine, tiny
    python -m benchmarks.gpu.campaign FOLDER --stages clock energy

Stages run one after another, in order of importance, each in a process of its own with a time-out,
and write ``checks.jsonl`` as they go. The summary, ``summary.md`` and ``checks.png``, shows every
figure next to its truth. A machine without a network takes its packages from a folder that
``benchmarks/gpu/wheelhouse.sh`` filled.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu import summary
from benchmarks.gpu.checks import Check, append, not_measured, read
from benchmarks.gpu.setting import Setting

STAGES = {
    "clock": 60,
    "communication": 60,
    "profiler": 90,
    "overhead": 180,
    "costs": 100,
    "shared_gpu": 240,
    "fit": 200,
    "memory": 400,
    "numerics": 120,
    "energy": 60,
    "study": 560,
}
"""Every stage, a module of this package, with its time-out in seconds."""


def run_stage(name: str, setting: Setting) -> None:
    """Run one stage in this process; an error becomes a failed check."""
    module = importlib.import_module(f"benchmarks.gpu.{name}")

    def checks() -> Iterator[Check]:
        try:
            for check in module.run(setting):
                spoilt = setting.rehearse and check.is_timing
                yield replace(check, passed=None) if spoilt else check
        except Exception as error:
            traceback.print_exc()
            yield Check(f"{name} ran", f"{type(error).__name__}: {error}", "done", passed=False)

    for check in append(
        setting.folder / "checks.jsonl", (replace(c, stage=name) for c in checks())
    ):
        print(summary.line(check), flush=True)


def start_stage(name: str, setting: Setting, timeout_s: float) -> None:
    """Run one stage in a process of its own, and end it if it takes too long."""
    command = [sys.executable, "-m", "benchmarks.gpu.campaign", str(setting.folder)]
    command += ["--stage", name, *(["--rehearse"] if setting.rehearse else [])]
    begin_s = time.monotonic()
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(timeout_s)
        ending = "" if code == 0 else f"exited with status {code}"
    except subprocess.TimeoutExpired:
        ending = f"was stopped after {timeout_s:.0f} s"
    finally:
        _end_group(process)
    took_s = time.monotonic() - begin_s
    print(f"-- {name}: {took_s:.0f} s {ending}", flush=True)
    if ending:
        lost = replace(not_measured(f"{name}, the rest", ending), stage=name, passed=False)
        list(append(setting.folder / "checks.jsonl", [lost]))


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the stage's process group, of which it is the leader."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, in its smallest form")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="for all stages")
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)
    given = parser.parse_args()
    setting = Setting(given.folder.resolve(), given.rehearse)
    setting.folder.mkdir(parents=True, exist_ok=True)
    if given.stage is not None:
        run_stage(given.stage, setting)
        return
    end_s = time.monotonic() + given.limit_s
    for name in given.stages:
        left_s = end_s - time.monotonic()
        if left_s > 5:
            start_stage(name, setting, min(STAGES[name], left_s))
    checks = read(setting.folder / "checks.jsonl")
    summary.write(checks, setting)
    wrong = [check for check in checks if check.passed is False]
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
