"""The speed of every loader alone: how much input one rank gets if it computes nothing."""

from __future__ import annotations

import csv
import dataclasses
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from dpeval.commands.hydra_app import compose
from dpeval.config import CLASSIFICATION, LOADERS, Config, DatasetConfig
from dpeval.data import Source, prepare
from dpeval.errors import ConfigError
from dpeval.run import forkserver
from dpeval.util.display.plural import counted
from dpeval.util.display.ranges import percent
from dpeval.util.display.tables import make_console, make_table
from dpeval.util.frozen import Frozen

WITH_WORKERS = ("jpeg", "cached")
WARM_UP_BATCHES = 3


class Row(Frozen):
    """The speed of one loader with one number of workers."""

    loader: str
    workers: int
    cores: int
    """Number of cores: one for the rank and one per worker."""
    img_per_s: float
    """Images per second of wall time."""
    img_per_core_s: float
    """Images per second of CPU time, of the rank and its workers together."""
    waited: float
    """Share of the time that the rank waited for the batch on the host; the rest is copying."""


def bench(overrides: list[str], seconds: float, out: Path) -> None:
    """Measure every loader, print a table, and write ``input.csv`` and the figure to `out`.

    Args:
        overrides: as for ``dpeval.train``.
        seconds: duration of each measurement.
        out: folder for the results.

    Raises:
        ConfigError: an override is wrong.
        DataError: the data cannot be prepared.
    """
    console = make_console()
    config = compose(overrides)
    if config.task.kind != CLASSIFICATION:
        raise ConfigError(
            f"input_bench compares image loaders, which task={config.task.kind} does not use; "
            "leave the task out"
        )
    # The forkserver imports torch while data is prepared; it must start before any other process.
    forkserver.warm_up()
    sources = {
        loader: prepare(dataclasses.replace(config.dataset, loader=loader), console.print)
        for loader in LOADERS
    }
    rows = []
    for loader, workers, cpus in plan(sorted(os.sched_getaffinity(0))):
        dataset = dataclasses.replace(config.dataset, loader=loader, workers=workers)
        rows.append(drain(config, dataset, sources[loader], cpus, seconds))
    source = sources["jpeg"]
    title = (
        f"{source.used}, {config.dataset.image_px} px, batch {config.batch}, "
        f"{config.dataset.augment}, {config.hardware.kind}"
    )
    table = make_table(
        f"Input alone: {title}",
        {
            "loader": "left", "workers": "right", "cores": "right", "img/s": "right",
            "img per core-second": "right", "waiting for the host": "right",
        },
    )  # fmt: skip
    for row in rows:
        speeds = (f"{speed:,.0f}" for speed in (row.img_per_s, row.img_per_core_s))
        table.add_row(row.loader, str(row.workers), str(row.cores), *speeds, percent(row.waited))
    console.print(table)
    write(rows, title, out)
    console.print(f"{out / 'input.csv'}, {out / 'input.png'}", markup=False)


def plan(cpus: list[int]) -> Iterator[tuple[str, int, list[int]]]:
    """What to measure: loader, workers, and the CPUs of the rank (first) and of its workers."""
    counts = [0]
    while counts[-1] < len(cpus) - 1:
        counts.append(min(max(1, 2 * counts[-1]), len(cpus) - 1))
    for loader in LOADERS:
        for workers in counts if loader in WITH_WORKERS else [0]:
            yield loader, workers, cpus[: 1 + workers]


def drain(
    config: Config, dataset: DatasetConfig, source: Source, cpus: list[int], seconds: float
) -> Row:
    """Fetch batches as fast as possible, in a child process.

    Args:
        config: the batch, the device and the seed.
        dataset: the loader and its number of workers.
        source: the prepared data.
        cpus: logical CPUs of the rank (the first) and of its workers.
        seconds: how long to measure.
    """
    # A new process per row: pinning and thread counts cannot be undone in this one.
    with ProcessPoolExecutor(1, mp_context=forkserver.context()) as pool:
        return pool.submit(_measure, config, dataset, source, cpus, seconds).result()


def _measure(
    config: Config, dataset: DatasetConfig, source: Source, cpus: list[int], seconds: float
) -> Row:
    import psutil

    from dpeval.data.loading.loaders import make_loader
    from dpeval.devices.select import open_device

    device = open_device("cuda:0" if config.hardware.kind == "gpu" else "cpu", cpus[:1], 1)
    loader = make_loader(
        source,
        dataset,
        shares=[config.batch],
        rank=0,
        seed=config.seed,
        device=device,
        channels_last=config.memory_format == "channels_last",
        spare_cpus=cpus[1:],
    )
    for _ in range(WARM_UP_BATCHES):
        loader.put(loader.next())
    device.finish()
    here = psutil.Process()

    def cpu_s() -> float:
        return sum(sum(one.cpu_times()[:2]) for one in [here, *here.children()])

    begin, begin_cpu, read = time.perf_counter(), cpu_s(), loader.images_read
    waited_s = 0.0
    while time.perf_counter() - begin < seconds:
        requested = time.perf_counter()
        batch = loader.next()
        waited_s += time.perf_counter() - requested
        loader.put(batch)
    device.finish()
    elapsed_s, used_s = time.perf_counter() - begin, cpu_s() - begin_cpu
    images = loader.images_read - read
    loader.close()
    return Row(
        loader=dataset.loader,
        workers=dataset.workers or 0,
        cores=len(cpus),
        img_per_s=images / elapsed_s,
        img_per_core_s=images / max(used_s, 1e-9),
        waited=waited_s / elapsed_s,
    )


def write(rows: list[Row], title: str, out: Path) -> None:
    """Write the table as CSV and the figure as PNG and SVG.

    Args:
        rows: the measurements.
        title: what was measured.
        out: folder for the files.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / "input.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(Row.model_fields))
        writer.writeheader()
        writer.writerows(row.model_dump() for row in rows)
    draw(rows, title, out)


def draw(rows: list[Row], title: str, out: Path) -> None:
    """Draw images per second by loader and number of workers, without the constant batch.

    Args:
        rows: the measurements.
        title: what was measured.
        out: folder for the files.
    """
    import seaborn as sns
    from matplotlib.figure import Figure

    colours = {"jpeg": "#D55E00", "cached": "#E69F00", "resident": "#009E73"}
    # A constant batch costs nothing, so its bar would only show the speed of the loop.
    shown = [row for row in rows if row.loader in colours][::-1]
    with sns.axes_style("whitegrid"), sns.plotting_context("notebook", font_scale=0.95):
        figure = Figure(figsize=(7.2, 1.5 + 0.45 * len(shown)), layout="constrained")
        axis = figure.subplots()
    bars = axis.barh(
        [_label(row) for row in shown],
        [row.img_per_s for row in shown],
        color=[colours[row.loader] for row in shown],
        height=0.66,
    )
    axis.bar_label(bars, [f"{row.img_per_s:,.0f}" for row in shown], padding=4, fontsize=9)
    axis.set_xlim(0, 1.15 * max(row.img_per_s for row in shown))
    axis.set_xlabel("images per second that one rank can load")
    axis.grid(axis="y", visible=False)
    sns.despine(ax=axis, left=True)
    figure.suptitle(
        "Throughput of the loaders alone", fontsize=13, fontweight="bold", x=0.01, ha="left"
    )
    axis.set_title(title, fontsize=8.5, color="#555555", loc="left")
    for ending in ("png", "svg"):
        figure.savefig(out / f"input.{ending}", dpi=160)


def _label(row: Row) -> str:
    if row.loader not in WITH_WORKERS:
        return row.loader
    workers = counted(row.workers, "worker") if row.workers else "no worker"
    return f"{row.loader}, {workers}"
