"""Writes runs as event files of TensorBoard."""

from __future__ import annotations

import struct
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import summary_v2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from dpeval.analysis.export.contents import Contents

WHERE = "tensorboard"
LOOK = "tensorboard --logdir {}"
_SIZE_IN_PNG = slice(16, 24)
_RGBA = 4


def write(run: Contents, folder: Path) -> None:
    """Write one run into a folder of its own below `folder`."""
    writer = EventFileWriter(str(folder / run.study / f"{run.name} {run.run_id[:8]}"))
    hparams = summary_v2.hparams_pb(
        dict(run.params), trial_id=run.run_id, start_time_secs=run.begin_s
    )
    writer.add_event(Event(wall_time=run.begin_s, summary=hparams))
    end_s = run.begin_s + run.wall_s
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in run.metrics.items()]
    for tag, png in run.figures.items():
        width, height = struct.unpack(">II", png[_SIZE_IN_PNG])
        image = Summary.Image(
            encoded_image_string=png, width=width, height=height, colorspace=_RGBA
        )
        values.append(Summary.Value(tag=tag, image=image))
    writer.add_event(Event(wall_time=end_s, step=0, summary=Summary(value=values)))
    for tag, series in run.series.items():
        now_s = run.begin_s
        for step, value in enumerate(series):
            now_s += value
            one = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.add_event(Event(wall_time=now_s, step=step, summary=one))
    writer.close()
