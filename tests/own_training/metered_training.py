"""Trainings as others write them, swept with a few lines added, and timed by hand as well.

Each script marks its own steps with `by_hand`, in the same process and for the same steps, so what
disturbs the machine disturbs both clocks alike.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from dpeval.record.schema import RankRecord
from dpeval.util.arrays import Floats
from tests.multiprocess.conftest import ROOT, Finished
from tests.own_training.scripts.by_hand import EVALUATION_S

SCRIPTS = Path(__file__).with_name("scripts")
LIBRARY = {
    "image_classifier": None, "language_model": None, "accelerated": "accelerate",
    "hf_trainer": "transformers", "lightning_module": "lightning",
}  # fmt: skip
PER_DEVICE = {
    "image_classifier": 32, "language_model": 4, "accelerated": 64, "hf_trainer": 4,
    "lightning_module": 64,
}  # fmt: skip
SAMPLES = {
    "image_classifier": ("img", 1), "language_model": ("tokens", 4 * 64),
    "accelerated": ("rows", 4), "hf_trainer": ("tokens", 4 * 64), "lightning_module": ("pairs", 1),
}  # fmt: skip
"""Unit, and samples of a step per image, sequence or row that the ranks take at a time."""
AT_MOST_LINES = 6
TIMED = ("data", "forward", "backward", "optimizer")


@pytest.fixture(scope="class")
def name(request: pytest.FixtureRequest) -> str:
    made: str = request.param
    library = LIBRARY[made]
    if library is not None and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    return made


@pytest.fixture(scope="class")
def sweep(name: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The script over 1 and 2 ranks, in turns."""
    folder = tmp_path_factory.mktemp(name)
    done = subprocess.run(
        [
            sys.executable, "-m", "dpeval.train", "-m", "task=script", "measure=quick",
            f"task.script={SCRIPTS / name}.py",
            "task.args=[--batch-size,'{per_device_batch_size}']",
            "num_devices=1,2", f"batch={PER_DEVICE[name]}", "scaling=weak",
            "hardware.oversubscribe=true", "analyze=false",
            # A few steps are enough: both clocks time the same ones.
            "measure.rel_precision=0.5", "measure.min_steps=16", "measure.time_limit_s=60",
        ],
        cwd=folder, text=True, capture_output=True, timeout=540, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "BY_HAND": str(folder)},
    )  # fmt: skip
    return Finished(done.returncode, done.stdout, done.stderr, folder)


class MeteredTraining:
    """What holds for each of `names`."""

    names: ClassVar[tuple[str, ...]] = ()

    def test_few_lines_meter_it(self, name: str) -> None:
        lines = (SCRIPTS / f"{name}.py").read_text().splitlines()
        assert len([line for line in lines if "# the meter" in line]) <= AT_MOST_LINES
        metering = re.compile(r"\b(dpeval|meter|metered|MeterCallback)\b")
        needed = [line for line in lines if metering.search(line)]
        assert needed
        assert all("# the meter" in line for line in needed)

    def test_it_is_swept(self, name: str, sweep: Finished) -> None:
        assert sweep.status == 0, sweep.err
        unit, samples = SAMPLES[name]
        assert [(made.config["num_devices"], made.status) for made in sweep.records] == [
            (1, "ok"), (2, "ok")
        ]  # fmt: skip
        for made in sweep.records:
            rows = PER_DEVICE[name] * made.config["num_devices"]
            assert (made.unit, made.samples_per_step) == (unit, samples * rows)
            assert [warning.text for warning in made.warnings if warning.code == "script"] == []
            assert [rank.rank for rank in made.ranks] == list(range(made.config["num_devices"]))
            assert all(min(rank.phase_s[phase]) > 0 for rank in made.ranks for phase in TIMED)

    @pytest.mark.parametrize("ranks", [1, 2])
    def test_phases_are_those_timed_by_hand(self, name: str, sweep: Finished, ranks: int) -> None:
        assert sweep.status == 0, sweep.err
        for rank in sweep.records[ranks - 1].ranks:
            rows = json.loads((sweep.folder / f"{name}-{ranks}-{rank.rank}.json").read_text())
            # The record leaves out the first steps; a row begins within the meter's step.
            by_hand = [
                rows[at] for at in np.searchsorted([row["at"] for row in rows], rank.begin_s)
            ]
            assert len({row["at"] for row in by_hand}) == len(rank.begin_s)
            step_s = float(np.median(rank.step_s))
            for phase in TIMED:
                apart = np.median(seconds(phase, rank) - marked(by_hand, phase))
                assert abs(apart) <= 0.03 * step_s, f"{phase} on rank {rank.rank} of {ranks}"
            # No mark of a script sees what a library does between two steps.
            ours, theirs = np.array(rank.step_s), marked(by_hand, *TIMED, "h2d", "other")
            assert np.median(ours - theirs) >= -0.03 * step_s
            if LIBRARY[name] is None:
                assert np.median(ours - theirs) <= 0.03 * step_s
            evaluated = marked(by_hand, "evaluation") > 0
            # Between two steps that are measured; several ranks would wait for each other there.
            if ranks == 1 and evaluated.any():
                assert np.median((ours - theirs)[evaluated]) < EVALUATION_S / 2


def seconds(phase: str, rank: RankRecord) -> Floats:
    """A phase of every step as the meter has timed it, shape [steps]."""
    parts = ("backward", "comm_exposed", "grad_copy") if phase == "backward" else (phase,)
    measured = [rank.phase_s[part] for part in parts if part in rank.phase_s]
    total: Floats = np.array(measured).sum(axis=0)
    return total


def marked(by_hand: list[dict[str, float]], *names: str) -> Floats:
    """What the script has timed itself in every step, shape [steps]."""
    return np.array([sum(row.get(name, 0.0) for name in names) for row in by_hand])
