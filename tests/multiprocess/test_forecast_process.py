"""Forecasts are computed in a child without GPUs that ends with its parent."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from dpeval.commands.hydra_app import compose
from dpeval.components import models
from dpeval.errors import ConfigError, MachineError, NoForecast
from dpeval.launchers.preflight import Preflight
from dpeval.planning.memory.fake_step import take_fake_step
from dpeval.planning.memory.forecast_process import ForecastProcess
from dpeval.planning.predictor import Predictor
from dpeval.planning.rank_plan import make_plan
from dpeval.system.environment import environment
from dpeval.system.gpu.libraries import VISIBLE_DEVICES
from dpeval.system.topology import detect
from tests.multiprocess.conftest import wait_for_none


def _seen() -> tuple[int, list[str | None], bool, int]:
    visible = [os.environ.get(name) for name in VISIBLE_DEVICES]
    return os.getpid(), visible, torch.cuda.is_available(), torch.cuda.device_count()


def _wrong() -> None:
    raise ConfigError("model=mine is wrong; use another")


def _die() -> None:
    os._exit(9)


@pytest.fixture(scope="module")
def process() -> ForecastProcess:
    return ForecastProcess()


def test_the_child_sees_no_gpu_and_stays(process: ForecastProcess) -> None:
    pid, visible, is_available, count = process.call(_seen)
    assert pid != os.getpid()
    assert visible == ["", "", ""]
    assert not is_available
    assert count == 0
    assert process.call(_seen)[0] == pid


def test_what_the_child_raises_comes_back_as_itself(process: ForecastProcess) -> None:
    with pytest.raises(ConfigError, match=r"^model=mine is wrong; use another$"):
        process.call(_wrong)


def test_a_child_that_dies_is_no_forecast_and_is_replaced(process: ForecastProcess) -> None:
    before = process.call(_seen)[0]
    with pytest.raises(NoForecast, match="was killed"):
        process.call(_die)
    assert process.call(_seen)[0] not in (before, os.getpid())


def test_looking_ahead_changes_no_forecast_and_passes_no_fault_on() -> None:
    common = ["model=resnet18", "dataset=imagenette_like", "dataset.image_px=32"]
    sweep = [compose([*common, f"batch={batch}"]) for batch in (4, 6, 16)]
    wrong = compose([*common, "batch=4", "optimizer.name=LBFGS"])
    machine = detect([])
    ahead, one_by_one = Predictor(machine), Predictor(machine)
    ahead.look_ahead([(config, make_plan(config, machine)) for config in [wrong, *sweep]])
    for config in sweep:
        assert ahead.counted(config, config.batch) == one_by_one.counted(config, config.batch)
    with pytest.raises(ConfigError, match="LBFGS"):
        ahead.counted(wrong, 4)


def test_a_forecast_for_a_gpu_touches_no_gpu_of_the_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[str] = []
    for name in ("_lazy_init", "init", "current_device", "set_device"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: touched.append(name))
    monkeypatch.setattr(
        "torch._subclasses.fake_tensor.FakeTensorMode.__enter__",
        lambda *_: touched.append("FakeTensorMode"),
    )
    config = compose(["model=resnet18", "hardware=gpu", "dataset.image_px=64"])
    made = Predictor(detect([])).counted(config, 4)
    assert made.parts["context"] > 0
    assert touched == []


def test_the_densenet_at_224_px_saves_what_was_measured() -> None:
    """Too long for a unit test: it has 121 layers."""
    config = compose(["model=densenet121", "dataset.image_px=224"])
    fake_step = take_fake_step(
        config,
        16,
        lambda: models.build_on_meta(config.model, config.dataset.image_px),
        torch.device("cpu"),
        held_gradients=False,
    )
    assert fake_step.activations / 2**30 == pytest.approx(1.94, rel=0.01)
    assert sum(fake_step.gradients) == 6_964_106 * 4


def test_the_child_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\n"
        "from dpeval.planning.memory.forecast_process import ForecastProcess\n"
        "if __name__ == '__main__':\n"
        "    forecasts = ForecastProcess()  # its child ends with it, too\n"
        "    print(forecasts.call(os.getpid), flush=True)\n"
        "    time.sleep(600)\n"
    )
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    wait_for_none([child])


def test_a_sweep_is_planned_from_one_look_at_its_folder_and_forecast_from_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Path] = []

    def below(folder: Path) -> Iterator[Path]:
        looks.append(folder)
        return iter(())

    monkeypatch.setattr("dpeval.planning.predictor.below", below)
    machine = detect()
    predictor = Predictor(machine)
    config = compose(["model=resnet18", "dataset.image_px=32", "measure=quick"])
    plan, here = make_plan(config, machine), environment(machine)
    for _ in range(3):
        predictor.too_short(config, plan, here, tmp_path)
    assert looks == [tmp_path]
    predictor.forecast(config, 2, folder=tmp_path)
    predictor.decide(config, plan, tmp_path)
    assert looks == [tmp_path] * 3


def test_a_scheduler_is_not_asked_for_what_cannot_fit_its_stated_budget() -> None:
    preflight = Preflight()
    common = ["model=resnet18", "dataset.image_px=32", "num_devices=2"]
    refused = preflight.refusal(compose([*common, "batch=4096", "hardware.memory_gib=1"]))
    assert refused is not None
    assert refused.devices_needed is not None
    assert preflight.refusal(compose([*common, "batch=16", "hardware.memory_gib=1"])) is None
    assert preflight.refusal(compose([*common, "batch=4096"])) is None
    with pytest.raises(MachineError, match="forecast to need"):
        preflight.refusal(
            compose([*common, "batch=4096", "hardware.memory_gib=1", "memory.on_excess=error"])
        )
