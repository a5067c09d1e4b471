"""Measures the time and memory that the analysis takes for many records; prints a table.

    python benchmarks/analysis_scale.py  # 1,000 and 10,000 with the report, 100,000 without
    python benchmarks/analysis_scale.py --sizes 500 2000

Targets on 2 cores: 10,000 records to the full report in 20 s and 1 GB; 100,000 to the tables in
60 s; the cost per record does not rise with their number.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

REPORT_UP_TO = 10_000
"""Larger sets are analysed to the tables alone."""
STEPS = 35
"""What the standard measure takes at least, its warm-up included."""
PER_STUDY = 200
MODELS = 12


def templates() -> list[dict[str, Any]]:
    """Records of 40 configurations, of which some ran out of memory."""
    from dpeval.record.schema import Cause
    from tests.records import make_record

    made = []
    for devices, batch in itertools.product((1, 2, 3, 4, 6, 8, 12, 16), (16, 32, 64, 128, 256)):
        if devices <= 2 and batch == 256:
            cause = Cause(kind="memory", message="does not fit")
            run = make_record(devices, batch, status="oom", cause=cause)
        else:
            run = make_record(devices, batch, batch / 20 / devices**0.8, steps=STEPS)
        made.append(json.loads(run.model_dump_json()))
    return made


def write_records(folder: Path, count: int) -> int:
    """Write `count` records below `folder`; returns their bytes."""
    made, total = templates(), 0
    for number in range(count):
        study, place = divmod(number, PER_STUDY)
        content = made[number % len(made)]
        content |= {"repetition": place // len(made), "run_id": f"{number:032x}"}
        # Studies differ in their model, so that series and figures grow with the records.
        content["config"]["model"]["name"] = f"model{study % MODELS}"
        path = folder / f"study{study:04d}" / str(place) / "metrics.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        total += path.write_text(json.dumps(content))
    return total


def analysed(folder: Path, out: Path, *, tables_only: bool) -> tuple[float, int]:
    """Wall time (s) and peak memory (bytes, children included) of one analysis."""
    command = [sys.executable, "-m", "dpeval.analyze", str(folder), "--out", str(out)]
    begin_s, highest = time.perf_counter(), 0
    process = subprocess.Popen(
        command + ["--tables-only"] * tables_only, cwd=ROOT, stdout=subprocess.DEVNULL
    )
    top = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            family = [top, *top.children(recursive=True)]
            highest = max(highest, sum(one.memory_info().rss for one in family))
        except psutil.Error:  # it ended between two questions
            pass
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"the analysis ended with status {process.returncode}")
    return time.perf_counter() - begin_s, highest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--folder", type=Path, help="where to write the records (default: /tmp)")
    given = parser.parse_args()
    print(f"{'records':>8} {'MB':>7} {'what':<16} {'wall s':>7} {'ms each':>8} {'MiB':>6}")
    for count in given.sizes:
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            folder, out = Path(name) / "outputs", Path(name) / "analysis"
            total = write_records(folder, count)
            os.sync()  # writing them back is no part of the analysis
            for what in ("tables", "tables, cached", "report"):
                is_report = what == "report"
                if is_report and count > REPORT_UP_TO:
                    continue
                if "cached" not in what:
                    shutil.rmtree(out, ignore_errors=True)
                wall_s, peak_bytes = analysed(folder, out, tables_only=not is_report)
                print(
                    f"{count:>8} {total / 1e6:>7.0f} {what:<16} {wall_s:>7.1f} "
                    f"{1e3 * wall_s / count:>8.2f} {peak_bytes / 2**20:>6.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
