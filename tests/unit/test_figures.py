"""What figures show: checked on the drawn objects, without writing files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from dpeval.analysis import api
from dpeval.analysis.figures import (
    FigureData,
    Models,
    components,
    panels,
    scaling,
    style,
    throughput,
    waterfall,
)
from dpeval.analysis.figures.catalogue import find_plot
from dpeval.analysis.figures.memory import memory
from dpeval.analysis.frame import runs_frame
from dpeval.analysis.frame.configurations import CELL, segments
from dpeval.errors import ConfigError, UnsupportedError
from dpeval.record.codes import CauseCode
from dpeval.record.memory import Budget, Forecast
from dpeval.record.schema import Cause, DatasetUsed, MemoryRecord, Record
from tests.records import make_record

GIB = 2**30


@pytest.fixture(autouse=True)
def _styled() -> Iterator[None]:
    with style.styled():
        yield


def figure_data_of(records: list[Record], models: Models | None = None) -> FigureData:
    paths = (Path(str(number)) for number in range(len(records)))
    runs = runs_frame.of_records(zip(records, paths, strict=True)).runs
    return FigureData.of(runs, api.scaling(runs), models)


def does_not_fit(devices: int, batch: int, **changes: Any) -> Record:
    memory_record = MemoryRecord(
        forecast=Forecast(total_bytes=int(15.9 * GIB), parts={}, source="model"),
        budget=Budget(bytes=int(10.8 * GIB), source="device"),
    )
    cause = Cause(kind="memory", message="needs more than there is")
    return make_record(
        devices, batch, status="skipped", cause=cause, memory=memory_record, **changes
    )


def study() -> list[Record]:
    """1, 2, 4, 8 devices, of which 4 did not fit."""
    return [*(make_record(n, 32, 1.0 / n**0.8) for n in (1, 2, 8)), does_not_fit(4, 32)]


def said(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def boxes(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def test_no_line_passes_over_an_absent_point() -> None:
    drawn = throughput.over_cores(figure_data_of(study())).figure
    lines = [line for line in drawn.axes[0].get_lines() if line.get_linestyle() == "-"]
    joined = [sorted(np.asarray(line.get_xdata(), dtype=float)) for line in lines]
    assert [1.0, 2.0] in joined
    assert not any(2.0 in x and 8.0 in x for x in joined)


def test_an_absent_cell_is_hatched_and_says_what_it_needs() -> None:
    for draw in (throughput.over_cores, throughput.best_devices, scaling.efficiency_map):
        figure = draw(figure_data_of(study())).figure
        hatches = {p.get_hatch() for axes in figure.axes for p in axes.patches}
        assert "////" in hatches
        words = said(figure).replace("\n", " ")
        assert "needs 15.9 of 10.8 GiB" in words


def test_points_that_a_limit_left_imprecise_are_ringed() -> None:
    runs = study()
    window = runs[1].window
    assert window is not None
    limited = window.model_copy(update={"stopped_by": "time_limit"})
    runs[1] = runs[1].model_copy(update={"window": limited})
    figure = throughput.over_cores(figure_data_of(runs)).figure
    rings = [line for line in figure.axes[0].get_lines() if line.get_markersize() == 13]
    assert [np.asarray(ring.get_xdata()).tolist() for ring in rings] == [[2.0]]
    assert "Ring: a limit ended" in said(figure)
    assert "Ring" not in said(throughput.over_cores(figure_data_of(study())).figure)


@pytest.mark.parametrize(
    ("asked", "given"),
    [((5.0, 3.7), (6.4, 4.0)), ((6.4, 4.0), (6.4, 4.0)), ((8.8, 3.9), (9.6, 4.0)),
     ((13.2, 2.1), (12.8, 2.4)), ((15.0, 2.4), (12.8, 2.4))],
)  # fmt: skip
def test_all_figures_share_one_grid_of_sizes(
    asked: tuple[float, float], given: tuple[float, float]
) -> None:
    figure = style.titled(*asked, "title", "subtitle")
    assert (figure.get_figwidth(), figure.get_figheight()) == pytest.approx(given)


@pytest.mark.parametrize(
    ("kind", "message", "shown"),
    [
        ("devices", "4 CPU devices were asked for and vm has only 2", "too few devices"),
        ("exception", "boom", "boom"),
        ("exception", "expected a tensor of four dimensions", "expected a tensor of …"),
    ],
)
def test_an_absent_cell_says_what_it_lacked_in_the_words_that_fit(
    kind: CauseCode, message: str, shown: str
) -> None:
    cause = Cause(kind=kind, message=message)
    absent = make_record(4, 32, status="skipped", cause=cause)
    for draw in (throughput.over_cores, scaling.efficiency_map):
        figure = draw(figure_data_of([make_record(1), make_record(2, 32, 0.6), absent])).figure
        assert shown in said(figure).replace("\n", " ")


def test_the_stack_of_phases_adds_up_to_the_step() -> None:
    figure_data = figure_data_of(study())
    axes = components.time_components(figure_data).figure.axes[0]
    scale = 1e3 if "(ms)" in axes.get_ylabel() else 1.0
    bars = [p for p in boxes(axes) if p.get_width() == pytest.approx(0.72)]
    tops: dict[float, float] = {}
    for bar in bars:
        tops[bar.get_x()] = max(tops.get(bar.get_x(), 0.0), bar.get_y() + bar.get_height())
    steps = figure_data.families[0].measured()["step_s"].to_numpy()
    assert [tops[x] for x in sorted(tops)] == pytest.approx(list(steps * scale))


def test_a_run_that_never_became_steady_has_an_open_marker() -> None:
    wobbly = make_record(2, 32, 0.6)
    assert wobbly.window is not None
    window = wobbly.window.model_copy(update={"steady": False, "steadiness": "drifting"})
    records = [make_record(1), wobbly.model_copy(update={"window": window})]
    figure = throughput.over_cores(figure_data_of(records)).figure
    faces = {
        float(x): to_hex(line.get_markerfacecolor())
        for line in figure.axes[0].get_lines()
        if line.get_linestyle() == "None" and line.get_marker() == "o"
        for x in np.asarray(line.get_xdata(), dtype=float)
    }
    assert faces[2.0] == "#ffffff" != faces[1.0]
    assert panels.UNSTEADY_NOTE in said(figure)


def test_stand_in_data_is_marked_in_the_figure() -> None:
    used = DatasetUsed(
        requested="imagenette", used="imagenette_like", root="", train_images=1, num_classes=10
    )
    figure = throughput.over_cores(figure_data_of([make_record(1, dataset=used)])).figure
    assert "stand-in data" in said(figure)


def test_a_figure_that_the_data_cannot_support_says_why() -> None:
    with pytest.raises(UnsupportedError, match="hardware=gpu"):
        throughput.over_gpus(figure_data_of(study()))
    with pytest.raises(UnsupportedError, match="more than one device count"):
        throughput.best_devices(figure_data_of([make_record(1)]))
    with pytest.raises(UnsupportedError, match="efficiency factors"):
        waterfall.waterfall(figure_data_of(study()))


def test_the_waterfall_ends_at_the_product_of_its_factors() -> None:
    pooled = figure_data_of(study())
    (row,) = pooled.table[pooled.table["num_devices"] == 8].to_dict("records")
    factors = {"input": 0.9, "contention": 0.8, "remainder": 1.05}
    rows = [
        {name: row[name] for name in CELL}
        | {"factor": factor, "value": value, "low": value / 1.02, "high": value * 1.02}
        for factor, value in factors.items()
    ]
    figure = waterfall.waterfall(figure_data_of(study(), Models(factors=pd.DataFrame(rows)))).figure
    bars = boxes(figure.axes[0])
    assert bars[-1].get_width() == pytest.approx(0.9 * 0.8 * 1.05)
    lost = sum(bar.get_width() for bar in bars[1:-1])
    assert 1.0 + lost == pytest.approx(bars[-1].get_width())


def test_memory_shows_budget_and_what_did_not_fit() -> None:
    figure = memory(figure_data_of(study())).figure
    assert "budget 10.8 GiB" in said(figure)
    assert "15.9 of 10.8 GiB" in said(figure)


def test_the_order_of_runs_changes_nothing() -> None:
    records = [make_record(n, 32, 1 / n, repetition=r) for n in (1, 2) for r in range(2)]
    one, other = figure_data_of(records).table, figure_data_of(records[::-1]).table
    pd.testing.assert_frame_equal(one, other)


def test_speedup_of_twice_the_throughput_is_two_with_an_interval() -> None:
    records = [make_record(1, 32, 1.0, noise=0.01), make_record(2, 32, 0.5, noise=0.01)]
    points = figure_data_of(records).families[0].measured(32)
    base, other = points.to_dict("records")
    assert base["speedup"] == 1.0 == base["efficiency"]
    assert base["efficiency_low"] == base["efficiency_high"] == 1.0
    assert other["speedup"] == pytest.approx(2.0, rel=0.02)
    assert other["speedup_low"] < other["speedup"] < other["speedup_high"]


@pytest.mark.parametrize("name", ["$\\frac{", "<script>", "a\nb", "x" * 10_000, "\x00\x1b[31m"])
def test_any_name_can_be_drawn(name: str, tmp_path: Path) -> None:
    config = {**make_record(1).config, "model": {"name": name}}
    drawing = throughput.over_cores(figure_data_of([make_record(1, config=config)]))
    drawing.figure.savefig(tmp_path / "a.svg")
    ElementTree.parse(tmp_path / "a.svg")


def test_segments_join_only_neighbours_that_are_there() -> None:
    assert list(segments([1, 2, 4, 8], {1, 2, 8})) == [[1, 2], [8]]
    assert list(segments([1, 2], set())) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent.module.figure", "there is no module 'absent'"),
        ("tests.unit.test_face.title", "has no 'title'; did you mean 'title_only'"),
        ("dpeval.analysis.figures.scaling.speedup", "would overwrite dpeval's own figure"),
    ],
)
def test_a_figure_that_cannot_be_had_is_told(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        find_plot(name)


def test_a_run_that_was_never_started_makes_no_label_of_its_data() -> None:
    started = [make_record(n, 32, 1.0 / n) for n in (1, 2)]
    figure_data = figure_data_of([*started, does_not_fit(4, 32, dataset=None)])
    assert [family.label for family in figure_data.families] == [""]


def test_few_lines_have_their_names_at_their_ends_and_many_a_legend() -> None:
    def drawn(*batches: int) -> Axes:
        records = [make_record(n, b, b / 10 / n) for n in (1, 2) for b in batches]
        return throughput.over_cores(figure_data_of(records)).figure.axes[0]

    few, many = drawn(8, 16), drawn(8, 16, 32, 64, 128)
    assert few.get_legend() is None
    assert {"batch 8", "batch 16"} <= {text.get_text() for text in few.texts}
    assert many.get_legend() is not None


def test_error_bars_of_several_lines_stand_side_by_side() -> None:
    records = [make_record(n, b, b / 10 / n) for n in (1, 2) for b in (8, 16)]
    axes = throughput.over_cores(figure_data_of(records)).figure.axes[0]
    marked = [line for line in axes.get_lines() if line.get_linestyle() == "None"]
    places = {float(x) for line in marked for x in np.asarray(line.get_xdata(), dtype=float)}
    assert len(places) == 4


def test_five_device_counts_lie_on_a_log_axis() -> None:
    records = [make_record(n, 48, 1.0 / n) for n in (1, 2, 3, 4, 8)]
    for count, last in ((4, 4.0), (5, 3.0)):
        axes = throughput.over_cores(figure_data_of(records[:count])).figure.axes[0]
        assert axes.get_xticks()[-1] == pytest.approx(last)


def test_the_axis_follows_the_data_and_marks_an_interval_that_it_cuts() -> None:
    figure_data = figure_data_of([make_record(1), make_record(2, 32, 0.6)])
    for family in figure_data.families:
        family.cells.loc[family.cells["num_devices"] == 2, "high"] = 1e6
    figure = throughput.over_cores(figure_data).figure
    assert figure.axes[0].get_ylim()[1] < 200
    assert "Arrowhead" in said(figure)


def test_the_key_of_memory_names_what_is_there_alone() -> None:
    figure = memory(figure_data_of([make_record(1), make_record(2, 32, 0.6)])).figure
    assert "measured peak" in said(figure)
    assert "did not fit (forecast)" not in said(figure)
    assert "forecast" not in said(figure).replace("measured peak, forecast", "")


def test_a_subtitle_leaves_out_what_records_do_not_say() -> None:
    config = {**make_record(1).config, "model": {}, "precision": None}
    figure = throughput.over_cores(figure_data_of([make_record(1, config=config)])).figure
    assert "None" not in said(figure)
    assert "nan" not in said(figure)
