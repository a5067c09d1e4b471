"""Every figure of an analysis, each as PNG, SVG and PDF.

A figure that the data cannot support is not drawn, and its entry says why. A new figure is one
module with one function and one line of :data:`~dpeval.analysis.figures.catalogue.CATALOGUE`.
"""

from dpeval.analysis.figures.catalogue import CATALOGUE, FigureInfo, Plot, draw, draw_all, find_plot
from dpeval.analysis.figures.figure_data import Drawing, FigureData, Models

__all__ = [
    "CATALOGUE", "Drawing", "FigureData", "FigureInfo", "Models", "Plot", "draw",
    "draw_all", "find_plot",
]  # fmt: skip
