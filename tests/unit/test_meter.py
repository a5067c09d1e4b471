"""The meter within one process: where steps begin and end, and what their time is."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dpeval
from dpeval.devices.cpu import CpuDevice
from dpeval.errors import ConfigError
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.instruments.step_buffer import COLUMNS, column_of
from dpeval.meter.loop import MeteredLoop
from dpeval.meter.standalone import measure_of
from dpeval.record.codes import StopReason
from dpeval.record.phases import PHASES
from dpeval.run.recording.outcome import disagreement
from dpeval.util.arrays import Floats
from dpeval.worker.messages import Metered, RankResult


class SteppedDevice(CpuDevice):
    """A CPU on which time passes only when something waits."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0

    def wait(self, seconds: float) -> None:
        self._now_s += seconds

    def stamp(self) -> float:
        return self._now_s


class Host:
    """A rank without processes, which has measured enough after so many steps."""

    def __init__(self, enough: int = 10**6) -> None:
        self.device = SteppedDevice()
        self.rows: Floats = np.zeros((100, len(COLUMNS)))
        self.at_end: Callable[[], None] | None = None
        self.stopped_by: StopReason | None = None
        self.reported: tuple[StopReason, Metered, int] | None = None
        self._enough = enough

    def describe(self, samples_per_step: float | None, unit: str) -> None:
        pass

    def open_gate(self, clock: PhaseClock) -> Host:
        return self

    def go_on(self, steps: int) -> bool:
        if steps >= self._enough:
            self.stopped_by = "precision"
        return self.stopped_by is None

    def report(self, result: RankResult) -> None:
        assert result.metered is not None
        self.reported = (result.stopped_by, result.metered, result.measured_rows)

    def of(self, name: str) -> list[float]:
        """The column of the steps that were reported."""
        assert self.reported is not None
        return [float(value) for value in column_of(self.rows[: self.reported[2]], name)]


class Training:
    """A model whose every pass moves a clock on by a known time."""

    def __init__(self, host: Host) -> None:
        self.model = nn.Linear(2, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self._wait = host.device.wait

    def forward_backward(self) -> None:
        loss = self.model(torch.ones(1, 2)).sum()
        self._wait(3.0)
        loss.register_hook(lambda _: self._wait(5.0))
        loss.backward()

    def update(self) -> None:
        self._wait(2.0)
        self.optimizer.step()
        self._wait(1.0)
        self.optimizer.zero_grad()


def loader(host: Host, batches: int) -> Iterator[int]:
    for number in range(batches):
        host.device.wait(0.5)
        yield number


@pytest.fixture
def host() -> Host:
    return Host(enough=4)


@pytest.fixture
def loop(host: Host) -> Iterator[MeteredLoop]:
    made = MeteredLoop(host, 32, "rows")
    yield made
    made._hooks.remove()


def test_outside_dpeval_the_loader_itself_is_iterated() -> None:
    meter = dpeval.Meter(samples_per_step=32)
    batches = [1, 2, 3]
    assert not meter.is_active
    assert type(meter.steps(batches)) is type(iter(batches))
    with meter.phase("h2d"), meter.pause():
        meter.updated()


def test_phases_add_up_and_are_where_time_was_spent(host: Host, loop: MeteredLoop) -> None:
    training = Training(host)
    for _ in loop.steps(loader(host, 100)):
        with loop.phase("h2d"):
            host.device.wait(0.25)
        training.forward_backward()
        training.update()
    expected = {
        "data": 0.5, "h2d": 0.25, "forward": 3.0, "backward": 5.0, "optimizer": 0.0, "other": 3.0,
        "comm_exposed": 0.0, "grad_copy": 0.0,
    }  # fmt: skip
    for name in PHASES:
        assert host.of(name) == pytest.approx([expected[name]] * 4), name
    assert host.of("step") == pytest.approx([sum(expected.values())] * 4)


def test_a_step_holds_as_many_batches_as_are_accumulated(host: Host, loop: MeteredLoop) -> None:
    training, taken = Training(host), 0
    for number in loop.steps(loader(host, 100)):
        training.forward_backward()
        taken += 1
        if number % 3 == 2:
            training.update()
    assert taken == 12
    assert host.of("data") == pytest.approx([1.5] * 4)
    assert host.of("forward") == pytest.approx([9.0] * 4)


def test_what_is_done_between_epochs_belongs_to_no_step(host: Host, loop: MeteredLoop) -> None:
    training = Training(host)
    for epoch in range(10):
        for number in loop.steps(loader(host, 3)):
            training.forward_backward()
            # The second step goes on over the end of its epoch.
            if (3 * epoch + number) % 2 == 1:
                training.update()
        host.device.wait(1000.0)
        with torch.no_grad():
            training.model(torch.ones(1, 2))
    assert host.reported is not None
    assert max(host.of("step")) == pytest.approx(2 * 0.5 + 2 * 8.0 + 3.0)


def test_a_pause_belongs_to_no_step(host: Host, loop: MeteredLoop) -> None:
    training = Training(host)
    for _ in loop.steps(loader(host, 100)):
        training.forward_backward()
        with loop.pause():
            host.device.wait(1000.0)
            training.model(torch.ones(1, 2))
        training.update()
    assert host.of("step") == pytest.approx([11.5] * 4)


def test_a_loop_that_is_left_counts_its_last_step(host: Host, loop: MeteredLoop) -> None:
    training = Training(host)
    for _ in range(2):
        batches = loop.steps(loader(host, 100))
        for number in batches:
            training.forward_backward()
            training.update()
            if number == 1:
                break
        batches.close()  # type: ignore[attr-defined]
        host.device.wait(1000.0)
    assert host.at_end is not None
    host.at_end()
    assert host.reported is not None
    assert (host.reported[0], host.reported[2]) == ("ended", 4)
    assert host.of("step") == pytest.approx([11.5] * 4)


def test_a_script_that_ends_early_reports_what_there_is(host: Host, loop: MeteredLoop) -> None:
    training = Training(host)
    for _ in loop.steps(loader(host, 2)):
        training.forward_backward()
        training.update()
    assert host.reported is None
    assert host.at_end is not None
    host.at_end()
    assert host.reported is not None
    assert host.reported[0] == "ended"
    assert len(host.of("step")) == 2


def test_when_enough_is_measured_every_later_loop_ends_at_once(
    host: Host, loop: MeteredLoop
) -> None:
    training = Training(host)
    for _ in loop.steps(loader(host, 100)):
        training.forward_backward()
        training.update()
    assert list(loop.steps(loader(host, 100))) == []


def test_torch_is_as_it_was_after_the_measurement(host: Host) -> None:
    before = (
        torch.autograd.backward,
        torch.amp.GradScaler.step,
        DistributedDataParallel.__init__,
        DistributedDataParallel.register_comm_hook,
    )
    loop, training = MeteredLoop(host, None, "img"), Training(host)
    for _ in loop.steps(loader(host, 100)):
        training.forward_backward()
        training.update()
    after = (
        torch.autograd.backward,
        torch.amp.GradScaler.step,
        DistributedDataParallel.__init__,
        DistributedDataParallel.register_comm_hook,
    )
    assert after == before
    training.forward_backward()  # and what is left in the model does nothing


def test_an_update_that_the_gradient_scaler_skips_ends_the_step(
    host: Host, loop: MeteredLoop
) -> None:
    training = Training(host)
    scaler = torch.amp.GradScaler("cpu")
    for _ in loop.steps(loader(host, 100)):
        loss = training.model(torch.ones(1, 2)).sum() * float("inf")
        scaler.scale(loss).backward()
        scaler.step(training.optimizer)
        scaler.update()
        training.optimizer.zero_grad()
    assert len(host.of("step")) == 4


class SlowUpdate(torch.optim.SGD):
    """An optimizer that takes 2 s before its closure and 4 s after it, twice if nested."""

    def __init__(self, host: Host, parameters: Iterable[nn.Parameter], inner: Any = None) -> None:
        super().__init__(parameters, lr=0.1)
        self._wait, self._inner = host.device.wait, inner

    def step(self, closure: Any = None) -> Any:
        self._wait(2.0)
        loss = closure() if self._inner is None else self._inner.step(closure)
        self._wait(4.0)
        return loss


@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize("is_keyword", [False, True])
def test_the_passes_of_a_closure_are_not_part_of_the_update(
    host: Host, loop: MeteredLoop, is_nested: bool, is_keyword: bool
) -> None:
    training = Training(host)
    inner = SlowUpdate(host, training.model.parameters()) if is_nested else None
    optimizer = SlowUpdate(host, training.model.parameters(), inner)

    def closure() -> None:
        host.device.wait(0.25)
        training.forward_backward()
        host.device.wait(0.5)

    for _ in loop.steps(loader(host, 100)):
        optimizer.step(closure=closure) if is_keyword else optimizer.step(closure)
    expected = {
        "forward": 3.0, "backward": 5.0, "other": 0.75, "optimizer": 12.0 if is_nested else 6.0
    }  # fmt: skip
    for name, seconds in expected.items():
        assert host.of(name) == pytest.approx([seconds] * 4), name


def test_every_pass_of_an_lbfgs_step_is_timed(host: Host, loop: MeteredLoop) -> None:
    training, evaluations = Training(host), [0]
    optimizer = torch.optim.LBFGS(training.model.parameters(), lr=1e-3, max_iter=3)

    def closure() -> float:
        evaluations[-1] += 1
        optimizer.zero_grad()
        training.forward_backward()
        return 1.0 / evaluations[-1]

    for _ in loop.steps(loader(host, 100)):
        optimizer.step(closure)
        evaluations.append(0)
    assert evaluations[0] > 1
    assert host.of("forward") == pytest.approx([3.0 * count for count in evaluations[:4]])
    assert host.of("backward") == pytest.approx([5.0 * count for count in evaluations[:4]])


def test_a_closure_may_use_mixed_precision(host: Host, loop: MeteredLoop) -> None:
    training, scaler = Training(host), torch.amp.GradScaler("cpu", enabled=False)
    optimizer = SlowUpdate(host, training.model.parameters())
    types = set()

    def closure() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            output = training.model(torch.ones(1, 2))
        types.add(output.dtype)
        host.device.wait(3.0)
        scaler.scale(output.sum()).backward()

    for _ in loop.steps(loader(host, 100)):
        scaler.step(optimizer, closure)
    assert types == {torch.bfloat16}
    assert host.of("forward") == pytest.approx([3.0] * 4)
    assert host.of("optimizer") == pytest.approx([6.0] * 4)


def test_a_named_phase_includes_the_passes_of_a_closure(host: Host, loop: MeteredLoop) -> None:
    training = Training(host)
    optimizer = SlowUpdate(host, training.model.parameters())
    for _ in loop.steps(loader(host, 100)):
        with loop.phase("optimizer"):
            optimizer.step(training.forward_backward)
    assert host.of("optimizer") == pytest.approx([14.0] * 4)
    assert host.of("forward") == pytest.approx([0.0] * 4)


def test_several_optimizers_make_one_step(host: Host, loop: MeteredLoop) -> None:
    first, second = Training(host), Training(host)
    for _ in loop.steps(loader(host, 100)):
        for training in (first, second):
            training.forward_backward()
            training.update()
    assert host.of("backward") == pytest.approx([10.0] * 4)
    assert host.of("forward") == pytest.approx([3.0 + 3.0] * 4, abs=3.0)


def test_an_update_of_another_kind_is_told(host: Host, loop: MeteredLoop) -> None:
    for _ in loop.steps(itertools.count()):
        loop.updated()
    assert len(host.of("step")) == 4


def one_loop(loop: MeteredLoop, host: Host, train: Callable[[], None]) -> None:
    for number, _ in enumerate(loop.steps(loader(host, 100))):
        train()
        assert number < 4


def a_loader_per_epoch(loop: MeteredLoop, host: Host, train: Callable[[], None]) -> None:
    for _ in range(10):
        for _ in loop.steps(loader(host, 3)):
            train()


def one_iterator(loop: MeteredLoop, host: Host, train: Callable[[], None]) -> None:
    batches = iter(loop.steps(loader(host, 3)))
    for _ in range(10):
        try:
            next(batches)
        except StopIteration:
            batches = iter(loop.steps(loader(host, 3)))
            if next(batches, None) is None:
                break
        train()


def an_iterator_per_step(loop: MeteredLoop, host: Host, train: Callable[[], None]) -> None:
    batches = loader(host, 100)
    while next(iter(loop.steps(batches)), None) is not None:
        train()


def left_and_entered_again(loop: MeteredLoop, host: Host, train: Callable[[], None]) -> None:
    for _ in range(10):
        for _ in loop.steps(loader(host, 100)):
            train()
            break


def a_part_of_the_loader(loop: MeteredLoop, host: Host, train: Callable[[], None]) -> None:
    for _ in range(10):
        for _ in itertools.islice(loop.steps(loader(host, 100)), 3):
            train()


class Bar:
    """Iterates as tqdm does: with a total if there is one."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches
        with contextlib.suppress(TypeError):
            self.total = len(batches)

    def __iter__(self) -> Iterator[Any]:
        yield from self._batches


def with_a_progress_bar(loop: MeteredLoop, host: Host, train: Callable[[], None]) -> None:
    for _ in range(10):
        for _ in Bar(loop.steps(loader(host, 3))):
            train()


def fetched_by_the_script(loop: MeteredLoop, host: Host, train: Callable[[], None]) -> None:
    for _ in loop.steps(itertools.count()):
        with loop.phase("data"):
            host.device.wait(0.5)
        train()


@pytest.mark.parametrize(
    "way",
    [
        one_loop,
        a_loader_per_epoch,
        one_iterator,
        an_iterator_per_step,
        left_and_entered_again,
        a_part_of_the_loader,
        with_a_progress_bar,
        fetched_by_the_script,
    ],
)
def test_every_way_to_write_a_loop_is_measured_alike(
    way: Callable[[MeteredLoop, Host, Callable[[], None]], None], host: Host, loop: MeteredLoop
) -> None:
    training = Training(host)

    def train() -> None:
        training.forward_backward()
        training.optimizer.step()

    way(loop, host, train)
    assert host.reported is not None
    assert host.reported[2] == 4
    for name, expected in {"data": 0.5, "forward": 3.0, "backward": 5.0, "step": 8.5}.items():
        assert host.of(name) == pytest.approx([expected] * 4), name


def test_an_update_after_the_loop_ends_the_last_step(host: Host, loop: MeteredLoop) -> None:
    training = Training(host)
    for _ in range(3):
        for number in loop.steps(loader(host, 5)):
            training.forward_backward()
            if number % 3 == 2:
                training.update()
        training.update()  # with what the last two batches have accumulated
        host.device.wait(1000.0)
    assert host.of("data") == pytest.approx([1.5, 1.0, 1.5, 1.0])
    assert max(host.of("step")) == pytest.approx(1.5 + 3 * 8.0 + 3.0)


def test_a_batch_that_raises_is_part_of_the_next_step(host: Host, loop: MeteredLoop) -> None:
    training = Training(host)
    for number in loop.steps(loader(host, 100)):
        with contextlib.suppress(RuntimeError):
            if number == 1:
                training.model(torch.ones(1, 3))
            training.forward_backward()
            training.update()
    assert host.of("step") == pytest.approx([11.5, 12.0, 11.5, 11.5])


@pytest.mark.parametrize(("every", "is_told"), [(4, True), (1, False), (1000, False)])
def test_an_evaluation_within_the_loop_is_told(every: int, is_told: bool) -> None:
    host = Host(enough=8)
    loop, training = MeteredLoop(host, 32, "rows"), Training(host)
    for number in loop.steps(loader(host, 100)):
        training.forward_backward()
        training.update()
        if number % every == every - 1:
            with torch.no_grad():
                training.model(torch.ones(1, 2))
    assert host.reported is not None
    assert [line.partition(";")[0] for line in host.reported[1].doubts] == is_told * [
        "2 steps of 8 called the model without gradients, which counts as other"
    ]


@pytest.mark.parametrize("batches", [4, 3])
def test_an_evaluation_between_two_epochs_is_as_it_should_be(batches: int) -> None:
    """Whether the epoch ends with an update, or with batches whose gradients accumulate on."""
    host = Host(enough=8)
    loop, training = MeteredLoop(host, 32, "rows"), Training(host)
    fetched = 0
    while host.reported is None:
        for _ in loop.steps(loader(host, batches)):
            fetched += 1
            training.forward_backward()
            if fetched % 2 == 0:
                training.update()
        with torch.no_grad():
            training.model(torch.ones(1, 2))
    assert host.reported[1].doubts == []


def test_all_models_that_are_named_mark_their_forward_pass(host: Host, loop: MeteredLoop) -> None:
    trainings = [Training(host), Training(host)]
    for training in trainings:
        loop.watch(training.model, training.optimizer)
    for _ in loop.steps(loader(host, 100)):
        for training in trainings:
            training.forward_backward()
            training.update()
    assert host.of("forward") == pytest.approx([6.0] * 4)
    assert host.of("other") == pytest.approx([6.0] * 4)


def test_a_compiled_model_is_measured_like_any_other(host: Host, loop: MeteredLoop) -> None:
    training = Training(host)
    compiled: Any = torch.compile(training.model, backend="eager")
    training.model = compiled
    loop.watch(compiled)
    for _ in loop.steps(loader(host, 100)):
        training.forward_backward()
        training.update()
    assert host.of("forward") == pytest.approx([3.0] * 4)
    assert host.of("backward") == pytest.approx([5.0] * 4)


@pytest.mark.parametrize("is_inner", [True, False])
def test_a_second_loop_or_meter_is_refused(host: Host, loop: MeteredLoop, is_inner: bool) -> None:
    if not is_inner:
        with pytest.raises(ConfigError, match=r"one dpeval\.Meter"):
            MeteredLoop(host, None, "img")
        return
    for _ in loop.steps(range(3)):
        with pytest.raises(ConfigError, match="within a loop"):
            next(loop.steps(range(3)))
        break


@pytest.mark.parametrize("unit", ["", "a\nb", "u" * 21])
def test_a_unit_is_a_short_name(unit: str) -> None:
    with pytest.raises(ConfigError, match="unit"):
        dpeval.Meter(unit=unit)


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_a_communication_hook_of_the_script_is_wrapped(host: Host, loop: MeteredLoop) -> None:
    called = []

    def halve(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        called.append(state)
        host.device.wait(7.0)
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer() / 2)
        return future

    halve.__annotations__ = {}
    model = DistributedDataParallel(nn.Linear(2, 2, bias=False))
    model.register_comm_hook("mine", halve)
    for _ in loop.steps(loader(host, 100)):
        model(torch.ones(1, 2)).sum().backward()
        loop.updated()
        gradient = model.module.weight.grad
        assert gradient is not None
        assert gradient.flatten().tolist() == [0.5] * 4
        model.zero_grad()
    assert called == ["mine"] * 4
    assert host.of("comm_exposed") == pytest.approx([7.0] * 4)


@pytest.mark.usefixtures("group")
def test_a_hook_that_came_before_the_meter_is_left_alone_and_told(host: Host) -> None:
    model = DistributedDataParallel(nn.Linear(2, 2))
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    model.register_comm_hook(None, allreduce_hook)
    loop = MeteredLoop(host, None, "img")
    for _ in loop.steps(loader(host, 100)):
        model(torch.ones(1, 2)).sum().backward()
        loop.updated()
    assert host.reported is not None
    (line,) = host.reported[1].missing
    assert line.startswith("exposed communication: ")


@pytest.mark.usefixtures("group")
def test_the_communication_of_every_model_is_timed(host: Host) -> None:
    before = DistributedDataParallel(nn.Linear(2, 2))
    init = DistributedDataParallel.__init__
    loop = MeteredLoop(host, None, "img")
    models = [DistributedDataParallel(nn.Linear(2, 2)), before]
    loop.watch(before)
    buckets: list[int] = []
    for number in loop.steps(loader(host, 100)):
        if number == 2:
            models.append(DistributedDataParallel(nn.Linear(2, 2)))
        for model in models:
            model(torch.ones(1, 2)).sum().backward()
        loop.updated()
        buckets.append(len(loop._clock.bucket_s))
    loop._clock.drain()
    assert len(loop._clock.bucket_s) == 3
    assert sorted(len(series) for _, series in loop._clock.bucket_s.values()) == [2, 4, 4]
    assert DistributedDataParallel.__init__ is init


def result(rank: int, stopped_by: StopReason) -> RankResult:
    empty: dict[str, Any] = {
        "losses": [], "peak_bytes": None, "peak_allocated_bytes": None, "tuning_peak_bytes": None,
        "baseline_bytes": 0, "setup_s": {}, "buckets": {}, "ablation": [],
        "measured_rows": 0,
    }  # fmt: skip
    return RankResult(rank=rank, host="", pid=1, stopped_by=stopped_by, **empty)


@pytest.mark.parametrize(
    ("ended", "steps", "expected"),
    [
        ({0: "ended", 1: "ended"}, [7, 7], None),
        ({0: "precision", 1: "precision"}, [7, 7], None),
        ({0: "ended", 1: "ended"}, [7, 9], "rank 0 ended after 7 steps and that of rank 1 had"),
        ({1: "ended"}, [8, 8], "rank 1 ended after 8 steps while rank 0 went on"),
        ({0: "ended"}, [8, 9], "rank 0 ended after 8 steps and that of rank 1 had taken 9"),
    ],
)
def test_ranks_that_end_at_different_steps_disagree(
    ended: dict[int, StopReason], steps: list[int], expected: str | None
) -> None:
    results = {rank: result(rank, reason) for rank, reason in ended.items()}
    found = disagreement(results, dict(enumerate(steps)))
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert expected in found.message


def test_the_measurement_of_a_script_under_torchrun_is_set_by_a_variable() -> None:
    assert measure_of("rel_precision=0.1 max_steps=50").max_steps == 50
    for wrong in ("steps=3", "max_steps=many", "max_steps", "max_steps=0"):
        with pytest.raises(ConfigError):
            measure_of(wrong)
