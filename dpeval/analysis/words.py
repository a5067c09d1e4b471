"""The least that a report says in words: the best configurations, and what not to trust."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from dpeval.analysis.figures.cells import Family
from dpeval.analysis.figures.scaling import speedups
from dpeval.analysis.figures.sheet import Sheet
from dpeval.analysis.figures.style import PHASE_NAMES
from dpeval.record import PHASES

_MOST = 12


def verdict(sheet: Sheet) -> list[str]:
    """For every family: where it is fastest, how far that scales, and the largest part of a step
    that is not computing."""
    sentences: list[str] = []
    for family in sheet.families[:_MOST]:
        if not family.measured().empty:
            sentences += _of_family(sheet, family)
    return sentences


def _of_family(sheet: Sheet, family: Family) -> Iterator[str]:
    ok = family.measured()
    best = ok.loc[ok["img_per_s"].idxmax()]
    hosts = [str(host)[:40] for host in _runs(sheet, family)["host"].dropna().unique() if host]
    where = f"On {hosts[0]}" if len(hosts) == 1 else f"On {len(hosts)} machines"
    unit = {"cpu": "CPU device", "gpu": "GPU"}.get(family.hardware, "device")
    unit += "s" * (int(best.num_devices) != 1)
    label = f" ({family.label})" if family.label else ""
    yield (
        f"{where}, {best.model or 'the model'}{label} is fastest on {best.num_devices} {unit} at "
        f"{family.batch_name} {best.batch}: {best.img_per_s:.3g} img/s, 95 % interval "
        f"{best.low:.3g} to {best.high:.3g}.{_ties(family, best)}"
    )
    points = speedups(family, int(best.batch))
    if len(points) > 1 and best.num_devices > points.iloc[0].num_devices:
        row = points.set_index("num_devices").loc[best.num_devices]
        base = int(points.iloc[0].num_devices)
        yield (
            f"Against {base} device{'s' * (base != 1)}, that is a parallel efficiency of "
            f"{row.efficiency:.0%} ± {100 * row.efficiency_half:.0f} points."
        )
    parts = {p: best[f"{p}_s"] for p in PHASES if p not in ("forward", "backward")}
    largest = max(parts, key=lambda phase: float(parts[phase]) if pd.notna(parts[phase]) else 0.0)
    if pd.notna(parts[largest]) and best.step_s > 0:
        yield (
            f"Beside computing, its step spends most on {PHASE_NAMES[largest]}: "
            f"{parts[largest] / best.step_s:.0%}."
        )


def _ties(family: Family, best: pd.Series) -> str:
    ok = family.of_batch(int(best.batch))
    tied = ok[(ok["high"] >= best.low) & (ok["num_devices"] != best.num_devices)]
    if tied.empty:
        return ""
    counts = ", ".join(str(count) for count in tied["num_devices"])
    return f" Within the error, {counts} devices are as fast."


def _runs(sheet: Sheet, family: Family) -> pd.DataFrame:
    runs = sheet.runs
    for column, value in family.key.items():
        runs = runs[runs[column] == value]
    return runs


def cautions(sheet: Sheet) -> list[str]:
    """What makes the figures less trustworthy, one sentence for each cause."""
    table = sheet.table
    ok = table[table["status"] == "ok"] if not table.empty else table
    if ok.empty:
        return []
    causes = {
        "never became steady": ~ok["steady"].astype(bool),
        "ran more ranks than cores (oversubscribed)": ok["oversubscribed"].astype(bool),
        "fed generated stand-in images, not the data that was asked for": ok["stand_in"],
    }
    found = [f"{_which(ok[mask])} {what}." for what, mask in causes.items() if mask.any()]
    found += [
        f"{cell.num_devices} devices, batch {cell.batch}: {str(cell.bad)[:200]}."
        for cell in ok[ok["bad"] != ""].itertuples()
    ][:_MOST]
    single = ok[ok["n_runs"] == 1]
    if not single.empty:
        found.append(f"{_which(single)} ran once: the spread between runs is not known.")
    return found


def _which(cells: pd.DataFrame) -> str:
    shown = [f"{c.num_devices} × batch {c.batch}" for c in cells.head(4).itertuples()]
    more = len(cells) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
