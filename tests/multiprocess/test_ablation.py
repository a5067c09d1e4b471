"""Ablation blocks train, and leave no trace in the trained state."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpeval.commands import hydra_app
from dpeval.data import prepare
from dpeval.devices.select import open_device
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.instruments.step_buffer import StepBuffer
from dpeval.planning.rank_plan import make_plan
from dpeval.run import forkserver
from dpeval.system.topology import detect
from dpeval.worker.ablation import SavedState, run_ablation
from dpeval.worker.ablation_schedule import (
    KINDS,
    MAX_ROUNDS,
    MAX_STEPS_PER_BLOCK,
    MIN_ROUNDS,
    MIN_STEPS_PER_BLOCK,
    order,
    schedule,
)
from dpeval.worker.loop import train_step
from dpeval.worker.messages import AblationSeries, RankTask
from dpeval.worker.rank_process import rendezvous
from dpeval.worker.trainer import SetupTimer, Trainer, build_trainer

STEPS = 4


@dataclass(frozen=True)
class Seen:
    """What one rank held before and after its blocks, and what they did.

    A state is a digest of each tensor: the tensors themselves of every step, 90 MB each time,
    took gigabytes on their way to the test.
    """

    before: dict[str, str]
    after: dict[str, str]
    seeds: list[dict[str, str]]
    """The state that every block began from."""
    ends: list[list[dict[str, str]]]
    """… and the state after each of its steps; the first block of all only settles."""
    is_where_it_was: bool
    """Parameters and momenta lie in the memory in which they were trained."""
    series: list[AblationSeries]


def state_of(trainer: Trainer) -> dict[str, str]:
    """A digest of each parameter, batch statistic and momentum."""
    tensors = dict(trainer.model.state_dict())
    for index, state in trainer.optimizer.state_dict()["state"].items():
        tensors[f"momentum {index}"] = state["momentum_buffer"]
    return {
        name: hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
        for name, tensor in tensors.items()
    }


def places_of(trainer: Trainer) -> list[int]:
    """Where everything that is trained lies in memory."""
    momenta = [state["momentum_buffer"] for state in trainer.optimizer.state.values()]
    return [tensor.data_ptr() for tensor in [*trainer.model.state_dict().values(), *momenta]]


def rank_main(task: RankTask, step_buffer: StepBuffer, pipe: Connection) -> None:
    rank = task.plan.ranks[task.rank]
    device = open_device(rank.device, rank.cpus, rank.threads)
    store = rendezvous(task)
    assert store is not None
    clock = PhaseClock(device, step_buffer.rows(task.rank))
    trainer = build_trainer(task, device, clock, SetupTimer())
    for index in range(STEPS):
        train_step(trainer, index)
    clock.drain()
    rows = step_buffer.rows(task.rank).copy()
    seeds: list[dict[str, str]] = []
    ends: list[list[dict[str, str]]] = []

    def watched_step(trainer: Trainer, index: int, *, sync: bool) -> None:
        if index == 0:
            seeds.append(state_of(trainer))
            ends.append([])
        train_step(trainer, index, sync=sync)
        ends[-1].append(state_of(trainer))

    before, places = state_of(trainer), places_of(trainer)
    series = run_ablation(trainer, watched_step, store, step_buffer, STEPS)
    np.testing.assert_array_equal(step_buffer.rows(task.rank), rows)
    assert clock.finished == STEPS
    is_where_it_was = places_of(trainer) == places
    pipe.send(Seen(before, state_of(trainer), seeds, ends, is_where_it_was, series))
    pipe.recv()


@pytest.fixture(scope="module")
def seen(data_root: Path) -> list[Seen]:
    """Two ranks of ResNet-18 that take a few steps and then the blocks."""
    config = hydra_app.compose(
        ["model=resnet18", "batch=8", "num_devices=2", "hardware.oversubscribe=true",
         "dataset=imagenette_like", "dataset.train_images=100", "dataset.image_px=32",
         "measure.max_steps=100",
         f"dataset.root={data_root}"]
    )  # fmt: skip
    plan, source = make_plan(config, detect()), prepare(config.dataset, print)
    context = forkserver.context()
    step_buffer = StepBuffer(context, 2, config.measure.max_steps)
    store, port = forkserver.serve_store("127.0.0.1")
    pipes = []
    for rank in range(2):
        ours, theirs = context.Pipe()
        task = RankTask(config, plan, rank, source, "127.0.0.1", port, env={})
        context.Process(target=rank_main, args=(task, step_buffer, theirs), daemon=True).start()
        pipes.append(ours)
    assert all(pipe.poll(400) for pipe in pipes), "a rank did not answer"
    told = [pipe.recv() for pipe in pipes]
    for pipe in pipes:
        pipe.send("done")
    del store
    return told


def test_what_was_trained_is_as_it_was_after_every_block_and_at_the_end(seen: list[Seen]) -> None:
    for rank, told in enumerate(seen):
        assert told.after == told.before
        for seed in told.seeds:
            assert seed == told.before
        assert told.is_where_it_was
        for end in itertools.chain(*told.ends):
            assert end != told.before
        kinds = [series.kind for series in told.series]
        assert kinds == order(len(kinds) // len(KINDS))
        waited = [not series.step_s for series in told.series]
        assert waited == [kind == "alone" and rank == 1 for kind in kinds]
        for series in told.series:
            parts_s = np.array([series.data_s, series.compute_s])
            assert (parts_s >= 0).all()
            if series.kind != "normal":  # there, a rank also waits for others
                np.testing.assert_allclose(parts_s.sum(axis=0), series.step_s)
    weights = "conv1.weight"
    assert seen[0].before[weights] == seen[1].before[weights]


def test_without_synchronisation_ranks_part_ways(seen: list[Seen]) -> None:
    """… or the blocks that are meant to communicate nothing would time communication."""
    _, synced, apart, *_ = zip(seen[0].ends, seen[1].ends, strict=False)
    weights = "conv1.weight"
    assert synced[0][-1][weights] == synced[1][-1][weights]
    assert apart[0][-1][weights] != apart[1][-1][weights]


@pytest.mark.parametrize("rounds", range(MIN_ROUNDS, MAX_ROUNDS + 1, 2))
def test_a_drift_over_the_blocks_has_the_same_mean_for_every_kind(rounds: int) -> None:
    kinds = order(rounds)
    assert len(kinds) == rounds * len(KINDS)
    places = {kind: [at for at, one in enumerate(kinds) if one == kind] for kind in KINDS}
    assert {float(np.mean(at)) for at in places.values()} == {(len(kinds) - 1) / 2}
    for first in range(0, len(kinds), len(KINDS)):
        assert sorted(kinds[first : first + len(KINDS)]) == sorted(KINDS), "one round"


def test_in_six_rounds_every_kind_begins_and_ends_a_round_equally_often() -> None:
    kinds = order(6)
    for place in range(len(KINDS)):
        at_place = kinds[place :: len(KINDS)]
        assert [at_place.count(kind) for kind in KINDS] == [2, 2, 2]


@given(window_s=st.floats(0, 1e5), step_s=st.floats(1e-6, 100), share=st.floats(0.01, 2))
def test_blocks_are_never_single_steps_and_keep_to_their_share_of_time(
    window_s: float, step_s: float, share: float
) -> None:
    made = schedule(window_s, step_s, share)
    assert MIN_ROUNDS <= made.rounds <= MAX_ROUNDS
    assert made.rounds % 2 == 0
    assert MIN_STEPS_PER_BLOCK <= made.steps <= MAX_STEPS_PER_BLOCK
    is_least = (made.rounds, made.steps) == (MIN_ROUNDS, MIN_STEPS_PER_BLOCK)
    needed_s = made.rounds * made.steps * len(KINDS) * step_s
    assert is_least or needed_s <= share * window_s * (1 + 1e-9)


def test_the_gradient_scaler_is_restored_too() -> None:
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def step(images: torch.Tensor) -> None:
        scaler.scale(model(images).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    for _ in range(3):
        step(torch.ones(2, 4))
    state = scaler.state_dict()
    saved = SavedState(model, optimizer, scaler)
    step(torch.full((2, 4), torch.inf))
    assert scaler.get_scale() == 2.0**9, "gradients that overflow halve the scale"
    saved.restore()
    assert scaler.state_dict() == state
