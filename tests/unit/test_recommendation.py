"""What the analysis recommends, what it costs, and what would settle a doubt."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dpeval.analysis.advice.advise import Advice, advise
from dpeval.analysis.advice.objectives import Terms
from dpeval.analysis.advice.quantity import Quantity
from dpeval.analysis.scaling.best_configuration import ENERGY
from dpeval.record.schema import Record
from dpeval.util.display.ranges import number, percents
from tests.records import findings, make_record

COMMAND = "python -m dpeval.train measure=quick num_devices={} batch={}"


def gpu(devices: int, step_s: float, batch: int = 128, **changes: Any) -> Record:
    command = COMMAND.format(devices, batch)
    return make_record(
        devices, batch, step_s, hardware="gpu", noise=0.002, command=command, **changes
    )


def only(runs: list[Record], terms: Terms | None = None) -> Advice:
    (found,) = advise(findings(runs), terms)
    return found


def study() -> list[Record]:
    """One, two and four GPUs: 1,000, 1,900 and 3,400 img/s."""
    return [gpu(n, 128 / rate) for n, rate in ((1, 1000), (2, 1900), (4, 3400))]


def test_the_headline_says_what_to_use_how_fast_it_is_and_over_what() -> None:
    found = only(study()).recommendation
    assert found.is_settled
    assert found.headline.startswith("Use 4 GPUs at batch 128: 3,4")
    assert found.headline.endswith("3.4× one GPU, 85 % efficient")
    assert found.throughput.low < found.throughput.value < found.throughput.high
    assert (found.within_error, found.settle, found.settle_command) == ("", "", "")


def test_what_cannot_be_told_apart_is_named_with_the_command_that_would_tell() -> None:
    runs = [*study(), gpu(3, 128 / 3380)]
    found = only(runs).recommendation
    assert not found.is_settled
    assert found.headline.startswith("Use 4 GPUs")
    assert found.within_error.startswith("Within its error: 3 GPUs at batch 128.")
    assert "3 GPUs at batch 128 takes the fewest devices" in found.within_error
    assert "num_devices=3,4 batch=128" in found.settle_command
    assert found.settle_s > 0


def test_where_nothing_is_settled_the_headline_says_so_first() -> None:
    found = only([gpu(1, 0.100), gpu(2, 0.0995)]).recommendation
    assert found.headline.startswith(
        "Nothing is settled: both configurations could be the fastest. Best estimate: 2 GPUs"
    )


def test_the_only_configuration_is_not_called_the_best() -> None:
    found = only([gpu(1, 0.1)]).recommendation
    assert found.headline.startswith("Only one configuration was measured: 1 GPU at batch 128: 1,")


def test_a_record_of_another_program_is_recommended_without_a_command() -> None:
    runs = [gpu(n, s).model_copy(update={"command": ""}) for n, s in ((1, 0.1), (2, 0.0995))]
    found = only(runs)
    assert found.recommendation.settle.endswith("more runs of each.") or (
        "of each (about" in found.recommendation.settle
    )
    assert found.recommendation.settle_command == ""
    assert found.levers == []


def test_every_objective_has_its_cost_of_an_epoch_and_of_the_training() -> None:
    terms = Terms(samples=94_690, price_per_device_hour=2.5)
    found = {one.objective: one for one in only(study(), terms).options}
    fastest, cheapest = found["throughput"], found["device_seconds"]
    assert (fastest.num_devices, cheapest.num_devices) == (4, 1)
    assert fastest.epoch is not None
    assert fastest.training is not None
    rate = fastest.throughput.value
    assert fastest.epoch.hours == pytest.approx(9469 / rate / 3600)
    assert fastest.training.hours == pytest.approx(10 * fastest.epoch.hours)
    assert fastest.training.device_hours == pytest.approx(4 * fastest.training.hours)
    assert fastest.training.price == pytest.approx(2.5 * fastest.training.device_hours)
    assert found["efficient"].title == "fastest at 80 % efficiency or more"


def test_energy_that_was_not_measured_is_never_zero() -> None:
    energy = {one.objective: one for one in only(study()).options}[ENERGY.name]
    assert (energy.name, energy.why_not) == ("", "not measured")
    fastest = only(study()).options[0]
    assert fastest.epoch is not None
    assert math.isnan(fastest.epoch.energy_kwh)
    assert math.isnan(fastest.epoch.price)
    assert fastest.training is None
    measured = [run.model_copy(update={"energy_j_per_img": 0.5}) for run in study()]
    fastest = only(measured).options[0]
    assert fastest.epoch is not None
    assert fastest.epoch.energy_kwh == pytest.approx(9469 * 0.5 / 3.6e6)


def test_the_family_with_the_most_configurations_comes_first_and_each_is_named() -> None:
    runs = [*study(), make_record(1, 128, 4.0), make_record(2, 128, 2.2)]
    found = advise(findings(runs))
    assert [one.label for one in found] == ["GPU", "CPU"]


@pytest.mark.parametrize(
    ("quantity", "text"),
    [
        (Quantity(2310.4, 2240, 2390), "2,310 img/s (2,240–2,390)"),
        (Quantity(26.57, 22.1, 38.44), "26.6 img/s (22.1–38.4)"),
        (Quantity(26.57), "26.6 img/s"),
        (Quantity(math.nan), "not measured"),
    ],
)
def test_quantities_read_like_prose(quantity: Quantity, text: str) -> None:
    assert quantity.text("img/s") == text


def test_shares_have_low_and_high_and_no_minus_zero() -> None:
    assert percents(-0.001, 0.16) == "0–16 %"
    assert percents(-0.02, 0.06) == "−2 to 6 %"
    assert number(1234567) == "1,230,000"
