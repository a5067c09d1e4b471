"""What is fastest above a floor of efficiency, where efficiency may be unknown or unsettled."""

from __future__ import annotations

import math

import pytest

from dpeval.analysis import api
from dpeval.analysis.scaling.best_configuration import EFFICIENT, THROUGHPUT, Choice, choose
from dpeval.analysis.scaling.findings import find
from dpeval.errors import ConfigError
from dpeval.record.schema import Cause, Record
from tests.records import findings, make_record, perfect, verdict_of


def efficient(runs: list[Record], floor: float | None = None) -> Choice:
    return choose(findings(runs).points, EFFICIENT, floor)[0]


def chosen(choice: Choice) -> tuple[int, int] | None:
    return (choice.best.num_devices, choice.best.batch) if choice.best is not None else None


def repeated(devices: int, step_s: float, batch: int = 32, runs: int = 5) -> list[Record]:
    """Repetitions with a spread of 1 %."""
    return [
        perfect(devices, batch, step_s * (1 + 0.01 * (r % 3 - 1)), repetition=r)
        for r in range(runs)
    ]


def broken(batch: int) -> Record:
    return make_record(1, batch, status="oom", cause=Cause(kind="oom", message="x"))


def test_without_a_run_on_one_device_efficiency_is_unknown_and_not_one() -> None:
    choice = efficient([perfect(4, 32, 0.5), perfect(8, 32, 0.3)])
    assert choice.best is None
    assert "no run on one device" in choice.why_not
    (best,) = api.best(findings([perfect(4, 32, 0.5)]).loaded.runs).to_dict("records")
    assert best["num_devices"] == 4
    assert math.isnan(best["efficiency"])


def test_a_batch_that_one_device_cannot_hold_is_not_chosen_by_its_own_base() -> None:
    # Batch 64 fits two devices at least, where it is no faster per device than a crawl.
    runs = [*repeated(1, 1.0), *repeated(2, 0.52), broken(64), *repeated(2, 0.9, 64)]
    choice = efficient(runs)
    assert chosen(choice) == (2, 32)
    assert [(one.num_devices, one.batch) for one in choice.doubtful] == [(2, 64)]
    said = " ".join(verdict_of(find(findings(runs).loaded, EFFICIENT)))
    assert "2 CPU devices at batch 64 is faster, but its efficiency is not known" in said


def test_the_floor_is_held_by_the_lower_end() -> None:
    # Efficiency 0.83 of single runs, which 2 % spread between runs leaves at 0.79 to 0.88.
    runs = [perfect(1, 32, 1.0), perfect(2, 32, 0.6)]
    choice = efficient(runs, 0.8)
    assert chosen(choice) == (1, 32)
    (open_,) = choice.doubtful
    assert open_.efficiency_low < 0.8 < open_.efficiency < open_.efficiency_high
    said = " ".join(verdict_of(find(findings(runs).loaded, EFFICIENT)))
    assert "whether it reaches 80 % efficiency is not settled: 83 % (95 % interval 79–88 %)" in said
    # Known to 1 %, it does.
    settled = efficient([*repeated(1, 1.0), *repeated(2, 0.6)], 0.8)
    assert chosen(settled) == (2, 32)
    assert settled.doubtful == []


def test_what_falls_short_for_sure_is_not_doubtful() -> None:
    choice = efficient([perfect(1, 32, 1.0), perfect(2, 32, 0.9)], 0.8)
    assert chosen(choice) == (1, 32)
    assert choice.doubtful == []


def test_only_what_would_be_better_is_doubtful() -> None:
    choice = efficient([*repeated(1, 1.0), *repeated(2, 0.52), broken(64), *repeated(2, 2.0, 64)])
    assert chosen(choice) == (2, 32)
    assert choice.doubtful == []


def test_nobody_reaches_a_floor_above_one() -> None:
    choice = efficient([perfect(1, 32, 1.0), perfect(2, 32, 0.6)], 1.0)
    assert chosen(choice) == (1, 32)


@pytest.mark.parametrize("floor", [None, 0.0])
def test_without_a_floor_unknown_efficiency_excludes_nothing(floor: float | None) -> None:
    points = findings([perfect(4, 32, 0.5), perfect(8, 32, 0.3)]).points
    assert chosen(choose(points, THROUGHPUT, floor)[0]) == (8, 32)


@pytest.mark.parametrize("floor", [-0.1, 1.5, 80.0, math.nan])
def test_a_floor_that_is_no_share_is_an_error_of_the_user(floor: float) -> None:
    with pytest.raises(ConfigError, match=r"give 0\.8 for 80 %"):
        api.best(findings([perfect(1)]).loaded.runs, "efficient", min_efficiency=floor)
