"""``task=causal_lm`` and ``task=callable``, trained by real ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from dpeval.record.schema import Record
from tests.multiprocess.conftest import Finished
from tests.multiprocess.test_script import run

SHORT = ("measure=quick", "measure.ablation=true", "measure.max_steps=40", "measure.min_steps=6",
         "hardware.oversubscribe=true", "num_devices=1,2", "analyze=false",
         "sweep.order=sequential")  # fmt: skip
"""In order, because a run of few steps may end before its turns of ablation have come."""
FUNCTION = """
import dpeval, torch
from torch import nn

def make(rank):
    torch.manual_seed(rank.rank)
    batches = [(torch.randn(rank.per_device_batch_size, 8), torch.ones(1)) for _ in range(3)]
    def loss(model, batch):
        return (model(batch[0]) - batch[1]).square().mean()
    def samples(batch):
        return 2 * len(batch[0])
    return dpeval.Training(nn.Linear(8, 1), batches, loss, samples, "pairs")
"""


def by_devices(done: Finished) -> Mapping[int, Record]:
    assert done.status == 0, done.err
    return {int(made.config["num_devices"]): made for made in done.records}


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, Record]:
    """A tiny GPT over 1 and 2 ranks."""
    folder = tmp_path_factory.mktemp("language")
    return by_devices(
        run(
            folder, "-m", "task=causal_lm", *SHORT, "model.args.layers=2", "model.args.width=32",
            "dataset.seq_len=32", "dataset.num_classes=200", f"dataset.root={folder}",
            "dataset.args.tokens=50000", "batch=6",
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, Record]:
    """A function of the user over 1 and 2 ranks."""
    folder = tmp_path_factory.mktemp("function")
    (folder / "mine.py").write_text(FUNCTION)
    return by_devices(
        run(folder, "-m", "task=callable", "task.function=mine.make", *SHORT, "batch=6")
    )


def test_a_language_model_is_measured_in_tokens_and_sequences(
    language: Mapping[int, Record],
) -> None:
    assert sorted(language) == [1, 2]
    for made in language.values():
        assert (made.status, made.unit, made.samples_per_step) == ("ok", "tokens", 6 * 32)
        assert made.throughput is not None
        assert made.throughput.sequences_per_s is not None
        assert made.throughput.img_per_s == pytest.approx(32 * made.throughput.sequences_per_s)
        assert made.dataset is not None
        assert made.dataset.train_images == 49_999 // 32


def test_a_language_model_has_what_a_classifier_has(language: Mapping[int, Record]) -> None:
    for devices, made in language.items():
        assert made.loss is not None
        assert made.loss.start == pytest.approx(math.log(200), rel=0.1)
        assert made.memory.forecast is not None
        assert (made.ablation is not None) == (devices > 1)
        assert made.missing == []
    begun = [made.loss.start for made in language.values() if made.loss is not None]
    # The same sequences in every global batch, whatever the number of ranks.
    assert begun[0] == pytest.approx(begun[1], rel=1e-3)


def test_what_a_function_returns_is_measured_in_its_own_unit(
    function: Mapping[int, Record],
) -> None:
    assert sorted(function) == [1, 2]
    for devices, made in function.items():
        assert (made.status, made.unit, made.samples_per_step) == ("ok", "pairs", 12)
        assert made.loss is not None
        assert (made.ablation is not None) == (devices > 1)
        assert made.memory.forecast is None
        assert made.dataset is None
        assert made.config["model"] == {"name": "make"}
        assert made.config["strategy"]["name"] == "ddp"
