"""A figure: a function from the data of an analysis to a drawing."""

from __future__ import annotations

from matplotlib.figure import Figure

from dpeval.analysis.figures import Drawing, FigureData
from dpeval.errors import UnsupportedError


def rate_over_devices(data: FigureData) -> Drawing:
    """Images per second over devices."""
    measured = data.table[data.table["img_per_s"].notna()]
    if measured.empty:
        raise UnsupportedError("no run was measured")
    figure = Figure(figsize=(4, 3))
    axes = figure.subplots()
    axes.plot(measured["num_devices"], measured["img_per_s"], "o")
    axes.set(xlabel="devices", ylabel="images per second", ylim=(0, None))
    return Drawing(figure, f"Images per second of {len(measured)} configurations.")
