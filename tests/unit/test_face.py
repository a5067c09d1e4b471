"""``import dpeval`` in a notebook: cheap to import, and every example in its help runs."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import dpeval
from dpeval.analysis import api
from dpeval.analysis.figures import CATALOGUE, Drawing, FigureData
from dpeval.errors import ConfigError, UnsupportedError
from dpeval.record import io
from tests.records import make_record, perfect

GOLDEN = Path(__file__).with_name("golden")


def title_only(figure_data: FigureData) -> Drawing:
    """How many runs there are."""
    figure = Figure()
    figure.suptitle(f"{len(figure_data.runs)} runs")
    return Drawing(figure, alt="a title")


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for number, (devices, step_s) in enumerate([(1, 1.0), (2, 0.625), (4, 0.5)]):
        run = perfect(devices, 32, step_s)
        io.write(run, tmp_path / "outputs" / str(number) / io.FILE_NAME)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outputs"


@pytest.mark.parametrize("name", dpeval.__all__)
def test_every_name_has_an_example_that_runs(name: str, outputs: Path) -> None:
    test = doctest.DocTestFinder(recurse=False).find(getattr(dpeval, name), name)[0]
    assert test.examples
    assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test).failed == 0


def test_importing_costs_neither_torch_nor_pandas() -> None:
    heavy = "{'torch', 'pandas', 'matplotlib', 'numpy'} & set(sys.modules)"
    code = f"import sys, dpeval; assert not {heavy}; dpeval.read; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["train", "fit", "input_bench"])
def test_what_every_rank_imports_anew_is_light(name: str) -> None:
    # multiprocessing imports the main module again in each rank.
    heavy = "{'torch', 'hydra', 'omegaconf', 'numpy', 'pydantic', 'dpeval.commands'}"
    code = f"import sys, dpeval.{name}; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_stub_tells_of_every_name() -> None:
    stub = Path(dpeval.__file__).with_suffix(".pyi").read_text()
    assert all(f"{name} as {name}" in stub for name in dpeval.__all__)
    assert set(dpeval.__all__) <= set(dir(dpeval))
    with pytest.raises(AttributeError, match="no attribute 'red'"):
        dpeval.__getattr__("red")


def test_real_records_go_all_the_way() -> None:
    runs = dpeval.read(GOLDEN)
    assert dpeval.columns(runs).index.tolist() == runs.columns.tolist()
    table = dpeval.scaling(runs)
    assert dpeval.columns(table).index.tolist() == table.columns.tolist()
    products = dpeval.efficiency(runs).groupby(["series", "num_devices", "batch"])["value"].prod()
    known = table.set_index(["series", "num_devices", "batch"])["efficiency"]
    assert products.to_dict() == pytest.approx(known[products.index].to_dict())
    best = dpeval.best(runs)
    assert best["value"].max() == pytest.approx(table["img_per_s"].max())
    per_batch = dpeval.best(runs, by_batch=True)
    assert len(per_batch) == len(table.dropna(subset="img_per_s").groupby(["series", "batch"]))


def test_a_figure_of_ones_own_is_one_function(outputs: Path) -> None:
    figure = dpeval.plot(dpeval.read(outputs), f"{__name__}.title_only")
    assert figure.get_suptitle() == "3 runs"


def test_every_figure_is_named_in_the_help_of_plot() -> None:
    assert api.plot.__doc__ is not None
    assert all(f"``{plot.stem}``" in api.plot.__doc__ for plot in CATALOGUE)


def test_mistakes_are_told_with_what_there_is(outputs: Path) -> None:
    empty = outputs.parent / "empty"
    empty.mkdir()
    runs = dpeval.read(outputs)
    with pytest.raises(ConfigError, match="no figure 'sped'; did you mean 'speedup'"):
        dpeval.plot(runs, "sped")
    with pytest.raises(UnsupportedError, match="hardware=gpu"):
        dpeval.plot(runs, "throughput_gpu")
    with pytest.raises(ConfigError, match="no objective 'speed'"):
        dpeval.best(runs, "speed")
    with pytest.raises(ConfigError, match="does not exist"):
        dpeval.read(outputs / "absent")
    with pytest.raises(ConfigError, match=r"no readable metrics\.json"):
        dpeval.read(empty)


def test_what_cannot_be_read_is_left_out_with_a_warning(outputs: Path) -> None:
    (outputs / "0" / io.FILE_NAME).write_text("{")
    with pytest.warns(UserWarning, match="left out: .*not complete JSON"):
        assert len(dpeval.read(outputs)) == 2


def test_a_run_that_measured_nothing_keeps_its_row(tmp_path: Path) -> None:
    io.write(make_record(2, status="oom"), tmp_path / "0" / io.FILE_NAME)
    table = dpeval.scaling(dpeval.read(tmp_path))
    assert table["status"].tolist() == ["oom"]
    assert table["speedup"].isna().all()
