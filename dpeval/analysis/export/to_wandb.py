"""Writes runs as offline runs of Weights & Biases; ``wandb sync`` uploads them."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import wandb
from PIL import Image

from dpeval.analysis.export.contents import Contents

WHERE = "wandb"
_LONGEST = 128
"""Of a project's name."""
LOOK = "wandb sync {}/wandb/offline-run-*"


def write(run: Contents, folder: Path) -> None:
    """Write one run below `folder`; its study is the project."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        x_disable_stats=True,  # this process is not the one that was measured
        x_disable_meta=True,
    )
    made = wandb.init(
        mode="offline",
        dir=str(folder),
        project=run.study[:_LONGEST],
        name=run.name,
        id=run.run_id,
        config=dict(run.params),
        settings=settings,
        reinit="create_new",
    )
    for step in range(max(map(len, run.series.values()), default=0)):
        taken = {tag: series[step] for tag, series in run.series.items() if step < len(series)}
        made.log(taken, step=step)
    if run.figures:
        images = {tag: Image.open(io.BytesIO(png)) for tag, png in run.figures.items()}
        made.log({f"figures/{tag}": wandb.Image(image) for tag, image in images.items()})
    made.summary.update(dict(run.metrics))
    shutil.copy(run.record, made.dir)
    made.finish(exit_code=0 if run.ok else 1)
