"""Measures the input pipeline: against torchvision's, memory bandwidth, and a real study.

    python benchmarks/input.py [--blocks 15] [--study]

1. ``jpeg`` and ``cached`` on one core against torchvision's ImageFolder + RandomResizedCrop +
   ToTensor + Normalize on the same files, in alternating blocks, by CPU time. Targets: 2.2 and 6
   times its images per second, at 224 and 128 px. ``entropy decoding`` decodes the files at an
   eighth of their size, where entropy decoding is almost all of the work: a lower bound for any
   decoder that reads whole files.
2. ``resident`` against the bandwidth that copies of the same size reach on this core. Target: 50 %.
3. The memory of ranks that map one cache. Target: one copy on the node.
4. With ``--study``: DenseNet121 on CPU as the default study runs it, and the share of its steps
   that is spent waiting for data. Target: below 1 %.

The images are the generated stand-in at full size for 224 px and at 160 px for 128 px.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import simplejpeg
import torch

from dpeval import record
from dpeval.config import DatasetConfig
from dpeval.data import Source, prepare
from dpeval.data.loading.loaders import Loader, make_loader
from dpeval.devices.cpu import CpuDevice
from dpeval.util.display.tables import make_console, make_table

SIZES = {224: "full", 128: "160px"}
IMAGES = 600
BATCH = 32
RANKS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--study", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    console = make_console()
    speed = make_table(
        "One core, images per second of CPU time",
        {"px": "right", "pipeline": "left", "img/s": "right", "times": "right", "90 %": "left"},
    )
    bandwidth = make_table(
        "resident against copies of the same size",
        {
            "px": "right",
            "augment": "left",
            "GB/s": "right",
            "of plain copies": "right",
            "of gather and convert": "right",
        },
    )
    memory = make_table(
        f"{RANKS} ranks that map one cache",
        {"px": "right", "cache MiB": "right", "resident MiB each": "right",
         "proportional MiB, all": "right"},
    )  # fmt: skip
    for px in SIZES:
        for line in speeds(px, given.blocks):
            speed.add_row(*line)
        for line in bandwidths(px, given.blocks):
            bandwidth.add_row(*line)
        memory.add_row(*shared_memory(px))
    for table in (speed, bandwidth, memory):
        console.print(table)
    if given.study:
        study()


def config_of(px: int, loader: str, augment: str = "random_resized_crop") -> DatasetConfig:
    return DatasetConfig(
        name="imagenette_like",
        _target_="dpeval.data.imagenette_like",
        image_px=px,
        size=SIZES[px],
        train_images=IMAGES,
        loader=loader,
        augment=augment,
        workers=0,
    )


def loader_of(config: DatasetConfig) -> Loader:
    return make_loader(
        prepare(config),
        config,
        shares=[BATCH],
        rank=0,
        seed=0,
        device=CpuDevice(),
        channels_last=True,
        spare_cpus=[],
    )


def speeds(px: int, blocks: int) -> list[tuple[str, ...]]:
    """Rows: img/s of each pipeline, and its ratio to torchvision's."""
    source = prepare(config_of(px, "jpeg"))
    pipelines: dict[str, Callable[[], object]] = {
        "torchvision": torchvision_block(source, px),
        "entropy decoding": entropy_block(source),
    }
    for loader in ("jpeg", "cached", "resident"):
        one = loader_of(config_of(px, loader))
        pipelines[loader] = lambda one=one: one.put(one.next())  # type: ignore[misc]
    taken = interleaved(pipelines, blocks)
    rows: list[tuple[str, ...]] = []
    for name, seconds in taken.items():
        times = taken["torchvision"] / seconds
        spread = f"{np.quantile(times, 0.05):.2f} to {np.quantile(times, 0.95):.2f}"
        rate = BATCH / np.median(seconds)
        rows.append((str(px), name, f"{rate:,.0f}", f"{np.median(times):.2f}", spread))
    return rows


def torchvision_block(source: Source, px: int) -> Callable[[], object]:
    """A batch as torchvision's own documentation makes it."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    pipeline = transforms.Compose(
        [
            transforms.RandomResizedCrop(px),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    folder = ImageFolder(f"{source.root}/train", pipeline)
    order = shuffled(len(folder))
    return lambda: torch.stack([folder[next(order)][0] for _ in range(BATCH)])


def entropy_block(source: Source) -> Callable[[], object]:
    """A batch of files decoded at an eighth of their size."""
    paths = [Path(source.root) / name for name in source.train_files]
    order = shuffled(len(paths))

    def block() -> None:
        for _ in range(BATCH):
            data = paths[next(order)].read_bytes()
            simplejpeg.decode_jpeg(data, fastdct=True, min_height=1, min_width=1)

    return block


def shuffled(images: int) -> Iterator[int]:
    """Indices of `images` images in random order, repeated for ever."""
    order: list[int] = np.random.default_rng(0).permutation(images).tolist()
    return itertools.cycle(order)


def interleaved(
    blocks_of: dict[str, Callable[[], object]], blocks: int
) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """CPU seconds of every block, in turn, after two rounds of warm-up."""
    taken: dict[str, list[float]] = {name: [] for name in blocks_of}
    for round_number in range(blocks + 2):
        for name, block in blocks_of.items():
            begin = time.process_time()
            block()
            if round_number >= 2:
                taken[name].append(time.process_time() - begin)
    return {name: np.array(values) for name, values in taken.items()}


def bandwidths(px: int, blocks: int) -> list[tuple[str, ...]]:
    """Rows: the bandwidth that a batch reaches, relative to two references.

    A batch has to read its pixels once (uint8) and write them once as float32. The first
    reference moves as many bytes with plain copies. The second gathers images from a table and
    converts them, as the batch does.
    """
    must_move = BATCH * px * px * 3 * (1 + 4)
    plain_from = torch.zeros(must_move // 8)
    plain_to = torch.empty_like(plain_from)
    table = torch.zeros(IMAGES, px, px, 3, dtype=torch.uint8)
    converted = torch.empty(BATCH, px, px, 3)
    generator = torch.Generator().manual_seed(0)

    def gather_and_convert() -> None:
        index = torch.randint(0, IMAGES, (BATCH,), generator=generator)
        converted.copy_(table.index_select(0, index))

    rows: list[tuple[str, ...]] = []
    for augment in ("none", "random_resized_crop"):
        loader = loader_of(config_of(px, "resident", augment))
        taken = interleaved(
            {
                "copies": lambda: plain_to.copy_(plain_from),
                "these copies": gather_and_convert,
                "resident": lambda loader=loader: loader.put(loader.next()),  # type: ignore[misc]
            },
            10 * blocks,
        )
        rate = must_move / np.median(taken["resident"]) / 1e9
        shares = [
            f"{np.median(taken[reference] / taken['resident']):.0%}"
            for reference in ("copies", "these copies")
        ]
        rows.append((str(px), augment, f"{rate:.1f}", *shares))
    return rows


def shared_memory(px: int) -> tuple[str, ...]:
    """A row: the memory of `RANKS` processes that map one cache."""
    config = config_of(px, "resident")
    source = prepare(config)
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(RANKS), context.Queue()
    ranks = [
        context.Process(target=map_cache, args=(config, source, barrier, answers))
        for _ in range(RANKS)
    ]
    for rank in ranks:
        rank.start()
    held = [answers.get(timeout=120) for _ in ranks]
    for rank in ranks:
        rank.join()
    cache_mib = Path(str(source.cache)).stat().st_size / 2**20
    each = np.mean([resident for resident, _ in held])
    together = sum(proportional for _, proportional in held)
    return str(px), f"{cache_mib:.1f}", f"{each:.1f}", f"{together:.1f}"


def map_cache(config: DatasetConfig, source: Source, barrier: object, answers: object) -> None:
    """Open the loader, wait for the others, and send (resident, proportional) MiB of the cache."""
    loader = loader_of(config)
    for _ in range(5):
        loader.put(loader.next())
    barrier.wait()  # type: ignore[attr-defined]
    answers.put(held_mib(str(source.cache)))  # type: ignore[attr-defined]
    barrier.wait()  # type: ignore[attr-defined]


def held_mib(path: str) -> tuple[float, float]:
    """Resident and proportional set size of this process' mapping of `path` (proc(5), smaps)."""
    resident = proportional = 0.0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            inside = line.endswith(path)
        elif inside and first == "Rss:":
            resident += int(rest[0]) / 1024
        elif inside and first == "Pss:":
            proportional += int(rest[0]) / 1024
    return resident, proportional


def study() -> None:
    """Run the default study's model and data on one and two cores; print the share of waiting."""
    console = make_console()
    counts = [n for n in (1, 2) if n <= len(os.sched_getaffinity(0))]
    table = make_table(
        "DenseNet121 on CPU: share of the mean step",
        {"dataset": "left", "ranks": "right", "img/s": "right", "data": "right", "h2d": "right"},
    )
    for dataset in ("imagenette_160", "imagenette"):
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable, "-m", "dpeval.train", "-m", "hardware=cpu", "batch=16",
                f"dataset={dataset}", f"num_devices={','.join(map(str, counts))}",
                "measure=quick", "measure.ablation=false", "analyze=false",
            ]  # fmt: skip
            here = str(Path(__file__).resolve().parents[1])
            environment = {**os.environ, "PYTHONPATH": here}
            subprocess.run(command, cwd=folder, check=True, env=environment)
            for path in sorted(Path(folder).glob("outputs/**/metrics.json")):
                run = record.read(path)
                stats = [rank.stats for rank in run.ranks]
                shares = [
                    max(one[phase].mean_s / one["step"].mean_s for one in stats)
                    for phase in ("data", "h2d")
                ]
                rate = run.throughput.img_per_s if run.throughput else float("nan")
                table.add_row(
                    dataset, str(len(run.ranks)), f"{rate:.1f}", *(f"{s:.2%}" for s in shares)
                )
    console.print(table)


if __name__ == "__main__":
    main()
