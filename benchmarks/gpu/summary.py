"""The campaign's table and picture: every figure next to its truth."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from benchmarks.gpu.checks import Check
from benchmarks.gpu.setting import Setting
from dpeval.devices.cuda import cuda_gpus, library_versions
from dpeval.util.version import __version__

MARKS = {True: "ok", False: "WRONG", None: "–"}


def line(check: Check) -> str:
    """One check for a terminal."""
    if check.measured is None:
        return f"{MARKS[check.passed]:5}  {check.stage}: {check.name}: not measured ({check.note})"
    text = f"{MARKS[check.passed]:5}  {check.stage}: {check.name}: {shown(check.measured)}"
    if check.unit:
        text += f" {check.unit}"
    if check.truth is not None:
        text += f", truth {shown(check.truth)}"
    return f"{text} ({check.note})" if check.note else text


def shown(value: float | str | None) -> str:
    """A figure with four significant digits."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:.4g}"


def write(checks: Sequence[Check], setting: Setting) -> None:
    """Write ``summary.md``, ``machine.json`` and ``checks.png``."""
    machine = {
        "gpu": ", ".join(gpu.name for gpu in cuda_gpus()) or "none",
        "driver": _driver(),
        "dpeval": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **library_versions(),
    }
    (setting.folder / "machine.json").write_text(json.dumps(machine, indent=1) + "\n")
    rows = ["| stage | figure | measured | truth | |", "|---|---|--:|--:|---|"]
    for check in checks:
        unit = f" {check.unit}" if check.unit else ""
        measured = "not measured" if check.measured is None else shown(check.measured) + unit
        truth = "" if check.truth is None else shown(check.truth) + unit
        state = f"{MARKS[check.passed]}{'; ' + check.note if check.note else ''}"
        rows.append(f"| {check.stage} | {check.name} | {measured} | {truth} | {state} |")
    head = ", ".join(f"{name} {value}" for name, value in machine.items())
    counts = {mark: sum(check.passed is mark for check in checks) for mark in (True, False, None)}
    total = f"{counts[True]} right, {counts[False]} wrong, {counts[None]} without a truth"
    text = f"{total}\n\n{head}\n\n" + "\n".join(rows) + "\n"
    (setting.folder / "summary.md").write_text(text, encoding="utf-8")
    draw(checks, setting.folder / "checks.png")
    print(total)


def _driver() -> str:
    path = Path("/proc/driver/nvidia/version")
    try:
        found = re.search(r"\d+\.\d+(\.\d+)?", path.read_text())
    except OSError:
        found = None
    return found.group() if found else "none"


def draw(checks: Sequence[Check], path: Path) -> None:
    """How far each compared figure is from its truth, in tolerances, or its share of a limit."""
    drawn = [
        (f"{check.stage}: {check.name}", distance)
        for check in checks
        if (distance := _distance(check)) is not None
    ]
    if not drawn:
        return
    names, distances = zip(*reversed(drawn), strict=True)
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.22 * len(drawn)), layout="constrained")
    axes.axvspan(-1, 1, color="#dfeadf", label="tolerated")
    axes.axvline(0, color="#888888", linewidth=1)
    colours = ["#1b6f3a" if abs(value) <= 1 else "#b3261e" for value in distances]
    axes.scatter([max(-3, min(3, value)) for value in distances], names, c=colours, s=18)
    axes.set_xlim(-3.1, 3.1)
    figure.supxlabel(
        "distance from the truth ÷ tolerance, or figure ÷ limit (beyond 3 drawn at 3)", fontsize=9
    )
    axes.tick_params(axis="y", labelsize=8)
    axes.margins(y=0.01)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _distance(check: Check) -> float | None:
    """How far a compared number is from its truth, 1 being what is tolerated; None for others."""
    measured, truth = check.measured, check.truth
    if not isinstance(measured, float | int) or not isinstance(truth, float | int):
        return None
    if check.tolerance > 0:
        return (measured - truth) / check.tolerance
    return measured / truth if truth else None
