"""Takes the advice: does each lever gain what its interval says?

    python -m benchmarks.levers [--only loader batch …] [--all] [--keep FOLDER]

Measures small studies on this machine's CPUs, each of which has something to improve, asks the
analysis what would help most, runs the command that it gives, and prints the gain beside the one
expected. A lever holds if the interval of its measured gain reaches into the expected one. Each
study takes about two minutes. By default only the first lever of each is tried.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpeval.analysis.advice.quantity import Quantity
from dpeval.analysis.frame import runs_frame
from dpeval.analysis.scaling.contrasts import contrasts
from dpeval.analysis.scaling.findings import find

ROOT = Path(__file__).resolve().parents[1]
ENDS = ("value", "low", "high")
COMMON = ("num_devices=1,2", "measure.ablation=true")
IMAGES = ("dataset=imagenette_like", "dataset.train_images=256")
STUDIES = {
    "loader": ("model=resnet18", *IMAGES, "dataset.image_px=64", "dataset.loader=jpeg",
               "dataset.workers=1", "batch=32", "precision=fp32"),
    "batch": ("model=densenet121", *IMAGES, "dataset.image_px=32", "batch=4,8"),
    "precision": ("model=resnet50", *IMAGES, "dataset.image_px=128", "batch=16,32"),
    "keep_memory": ("model=densenet121", *IMAGES, "dataset.image_px=128", "batch=16",
                    "hardware.keep_memory=false"),
    "memory_format": ("model=densenet121", *IMAGES, "dataset.image_px=64", "batch=16,32",
                      "memory_format=contiguous"),
    "gradient_views": ("model=vit_b_16", *IMAGES, "dataset.image_px=32",
                       "model.args={image_size: 32}", "batch=4"),
    "static_graph": ("model=densenet121", *IMAGES, "dataset.image_px=32", "batch=8",
                     "strategy.find_unused_parameters=true"),
}  # fmt: skip
"""Overrides of each study, named by the lever that it was made for."""


@dataclass(frozen=True)
class Trial:
    """One lever, and what came of it."""

    study: str
    kind: str
    expected: Quantity
    found: Quantity

    @property
    def holds(self) -> bool:
        return self.found.high >= self.expected.low and self.found.low <= self.expected.high

    def line(self) -> str:
        expected, found = self.expected.percent(), self.found.percent()
        is_inside = self.expected.low <= self.found.value <= self.expected.high
        verdict = "inside" if is_inside else "within error" if self.holds else "OUTSIDE"
        return (
            f"{self.study:15s} {self.kind:15s} expected {expected:24s} found {found:24s} {verdict}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--all", action="store_true", help="try every lever that is proposed")
    parser.add_argument("--keep", type=Path, help="keep the records in this folder")
    given = parser.parse_args()
    for name in given.only:
        folder = tempfile.TemporaryDirectory() if given.keep is None else nullcontext(given.keep)
        with folder as place:
            try_study(name, Path(place) / name, everything=given.all)


def try_study(name: str, folder: Path, *, everything: bool) -> None:
    """Measure one study in `folder`, and try what is proposed."""
    folder.mkdir(parents=True, exist_ok=True)
    run(
        ["-m", "dpeval.train", "-m", f"study={name}", "analyze=false", *COMMON, *STUDIES[name]],
        folder,
    )
    levers = proposed(folder)
    if not levers:
        print(f"{name:15s} nothing is proposed", flush=True)
    for lever in levers[: None if everything else 1]:
        kind, words = lever["kind"], shlex.split(lever["command"])
        place = folder.parent / f"{name}-{kind}"
        place.mkdir()
        run([*words[1:], "analyze=false"], place)
        expected = Quantity(*(lever["gain"][end] for end in ENDS))
        print(Trial(name, kind, expected, gain(place, kind, words)).line(), flush=True)


def run(arguments: list[str], folder: Path) -> str:
    """What a command prints, run in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, check=True, text=True, stdout=subprocess.PIPE, env=environment,
    ).stdout  # fmt: skip


def summary_of(folder: Path) -> list[dict[str, Any]]:
    """What the analysis recommends for each family of the records below `folder`."""
    printed = run(["-m", "dpeval.analyze", str(folder), "--json"], folder)
    found: list[dict[str, Any]] = json.loads(printed)["recommendations"]
    return found


def proposed(folder: Path) -> list[dict[str, Any]]:
    """The levers of throughput for the study's first recommendation, the best first."""
    levers = summary_of(folder)[0]["levers"]
    return [one for one in levers if one["gain_of"] == "throughput" and not one["is_measured"]]


def gain(folder: Path, kind: str, words: list[str]) -> Quantity:
    """What the trial of a lever shows: new value over old one, from runs that took turns."""
    swept = dict(word.split("=", 1) for word in words if "," in word)
    if kind == "batch":
        points = find(runs_frame.load([folder])).points.sort_values("batch")
        ratio = contrasts(points.reset_index(drop=True)).ratio(1, 0)
        return Quantity(*(one - 1 for one in ratio))
    tried = [one for each in summary_of(folder) for one in each["tried"] if one["kind"] == kind]
    shown = Quantity(*(tried[0]["gain"][end] for end in ENDS))
    if tried[0]["before"] == swept[tried[0]["key"]].split(",")[0]:
        return shown
    back = [1 / (1 + share) - 1 for share in (shown.value, shown.high, shown.low)]
    return Quantity(*back)


if __name__ == "__main__":
    main()
