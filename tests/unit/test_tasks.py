"""``task=causal_lm`` and ``task=callable``, without processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dpeval
from dpeval.commands.hydra_app import compose
from dpeval.components import gpt
from dpeval.components.check import check
from dpeval.components.loss import GlobalMeanLoss
from dpeval.components.tasks import forecast_task, task_of
from dpeval.components.tasks.base import Rank
from dpeval.config import Config, check_script, identity, to_plain
from dpeval.data import prepare
from dpeval.data.loading.loaders import Loader, Shard
from dpeval.data.sources.source import NO_SOURCE, Source
from dpeval.devices.cpu import CpuDevice
from dpeval.errors import ConfigError, DataError, ModelError
from dpeval.launchers.in_job.run_job import rebuild
from dpeval.planning.memory.forecast import forecast

LM = ("task=causal_lm", "model.args.layers=1", "model.args.heads=2", "model.args.width=8",
      "dataset.seq_len=8", "dataset.num_classes=50")  # fmt: skip
HERE = "tests.unit.test_tasks"
RANK = Rank(1, 2, 6, 3, torch.device("cpu"), 0)


def shard(source: Source, config: Config, rank: int = 0) -> Shard:
    return Shard(source, config.dataset, [3, 3], rank, 0, CpuDevice(), False, [])


def write(path: Path, tokens: int, dtype: str = "uint16") -> None:
    (np.arange(tokens) % 50).astype(dtype).tofile(path)


def files(folder: Path, *overrides: str) -> Config:
    return compose([*LM, "dataset=token_files", "dataset.seq_len=8", "dataset.num_classes=50",
                    f"dataset.root={folder}", *overrides])  # fmt: skip


def test_a_language_model_brings_its_model_data_and_optimizer_unless_told_otherwise() -> None:
    config = compose(["task=causal_lm"])
    assert (config.model.name, config.dataset.name) == ("gpt", "generated_tokens")
    assert compose(["task=causal_lm", "optimizer=sgd"]).optimizer.name == "SGD"
    assert rebuild(to_plain(config)) == config
    assert "image_px" not in to_plain(config)["dataset"]
    assert "seq_len" not in to_plain(compose([]))["dataset"]
    assert identity(compose(["task=causal_lm", "dataset.seq_len=9"])) != identity(config)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_targets_are_the_inputs_one_token_on_and_ranks_share_the_sequences(
    dtype: str, tmp_path: Path
) -> None:
    write(tmp_path / "train.bin", 8 * 6 + 1, dtype)
    config = files(tmp_path, f"dataset.args.dtype={dtype}")
    source = prepare(config.dataset, lambda _: None)
    assert source.train_samples == 6
    firsts: list[int] = []
    for rank in (0, 1):
        loader = forecast_task(config).loader(shard(source, config, rank))
        inputs, targets = loader.put(loader.next())
        assert inputs.shape == targets.shape == (3, 8)
        torch.testing.assert_close(targets, (inputs + 1) % 50)
        firsts += inputs[:, 0].tolist()
        assert loader.images_read == 3
        loader.close()
    assert sorted(firsts) == [8 * sequence for sequence in range(6)]


@pytest.mark.parametrize(
    ("tokens", "overrides", "message"),
    [
        (8, (), "one sequence needs 9"),
        (100, ("dataset.num_classes=40",), "has token 49, but dataset.num_classes=40"),
        (101, ("dataset.args.dtype=uint32",), "not a whole number of uint32 tokens"),
        (100, ("dataset.args.file=val.bin",), "set dataset.root and dataset.args.file"),
    ],
)
def test_a_wrong_file_of_tokens_is_one_line(
    tokens: int, overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    write(tmp_path / "train.bin", tokens)
    with pytest.raises(DataError, match=message) as raised:
        prepare(files(tmp_path, *overrides).dataset, lambda _: None)
    assert "\n" not in str(raised.value)


def test_generated_tokens_are_made_once_and_fall_in_frequency(tmp_path: Path) -> None:
    config = compose([*LM, f"dataset.root={tmp_path}", "dataset.args.tokens=20000"])
    told: list[str] = []
    source = prepare(config.dataset, told.append)
    assert prepare(config.dataset, told.append) == source
    assert len(told) == 1
    counts = np.bincount(np.fromfile(Path(source.root) / source.tokens, "<u2"), minlength=50)
    assert counts.sum() == 20000
    assert counts[0] > counts[10] > counts[49] > 0


def test_the_loss_of_parts_adds_up_to_the_mean_over_all_tokens() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 8, 50), torch.randint(50, (6, 8))
    criterion = GlobalMeanLoss(6 * 8, 50)
    parts = [criterion(logits[at : at + 2], labels[at : at + 2]) for at in (0, 2, 4)]
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(torch.stack(parts).sum(), expected)


def test_a_token_sees_only_those_before_it() -> None:
    torch.manual_seed(0)
    model = gpt(vocab_size=50, seq_len=8, layers=2, heads=2, width=8)
    tokens = torch.randint(50, (1, 8))
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 50
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])
    with pytest.raises(ConfigError, match=r"not a multiple of model\.args\.heads=3"):
        gpt(vocab_size=50, seq_len=8, heads=3, width=8)


def test_a_language_models_memory_is_forecast_and_grows_with_its_length() -> None:
    config, longer = compose([*LM]), compose([*LM, "dataset.seq_len=64"])
    for one in (config, longer):
        check(one)
    found, more = (forecast(one, 8, forecast_task(one).on_meta) for one in (config, longer))
    assert more.parts["activations"] > 4 * found.parts["activations"]
    assert found.parts["input"] == 8 * 8 * 9
    assert sum(found.parts.values()) == found.total_bytes


def test_images_and_tokens_are_not_mixed_up() -> None:
    images = Source(root="", num_classes=1, train_files=["a"], train_labels=[0])
    with pytest.raises(ConfigError, match="use dataset=generated_tokens"):
        forecast_task(compose([*LM])).check_source(images)
    tokens = Source(root="", num_classes=1, tokens="t", sequences=1)
    with pytest.raises(ConfigError, match="use task=causal_lm"):
        forecast_task(compose([])).check_source(tokens)
    with pytest.raises(ConfigError, match="it applies to images only"):
        check_script(compose([*LM]), ["task=causal_lm", "dataset.image_px=64"])


# task=callable


def make(rank: Rank, length: int = 2) -> dpeval.Training:
    batches = [torch.full((rank.per_device_batch_size, length), float(at)) for at in range(2)]
    return dpeval.Training(
        nn.Linear(length, 1), batches, lambda model, batch: model(batch).mean(), len, "pairs"
    )


def none(rank: Rank) -> None:
    return None


def raising(rank: Rank) -> None:
    raise KeyError("no such graph")


def with_(**fields: Any) -> Callable[[Rank], dpeval.Training]:
    return lambda _: dpeval.Training(**{
        "model": nn.Linear(2, 1), "batches": [torch.zeros(3, 2)],
        "loss": lambda model, batch: model(batch).mean(), **fields,
    })  # fmt: skip


def once() -> Iterator[Tensor]:
    yield torch.zeros(3, 2)


ending = with_(batches=once())
no_model = with_(model=1)
no_unit = with_(unit="")
vector = with_(loss=lambda model, batch: model(batch))
frozen = with_(loss=lambda _, batch: batch.mean())
no_samples = with_(samples=0)
six_samples = with_(samples=6)
seven_samples = with_(samples=7)
counted_samples = with_(samples=len)
default_samples = with_()


def function(name: str, *overrides: str) -> Config:
    return compose(["task=callable", f"task.function={HERE}.{name}", *overrides])


def steps(config: Config, count: int) -> tuple[list[Tensor], Loader]:
    task = task_of(config)
    model = task.model(RANK)
    loader, loss = task.loader(shard(NO_SOURCE, config, RANK.rank)), task.loss(model, RANK)
    return [loss(model, loader.put(loader.next())) for _ in range(count)], loader


@pytest.mark.parametrize(
    ("name", "expected"),
    [("default", 1.0), ("six", 2.0), ("seven", None), ("counted", None)],
)
def test_progress_knows_the_samples_that_need_no_batch(name: str, expected: float | None) -> None:
    task = task_of(function(f"{name}_samples"))
    task.model(RANK)  # three items per device
    assert task.samples_per_item == expected


def test_a_function_gives_model_batches_loss_and_samples() -> None:
    config = function("make", "+task.kwargs.length=4")
    check(config)
    task = task_of(config)
    model = task.model(RANK)
    assert task.unit == "pairs"
    nn.init.ones_(model.get_parameter("weight"))
    nn.init.zeros_(model.get_parameter("bias"))
    loader, loss = task.loader(shard(NO_SOURCE, config)), task.loss(model, RANK)
    found = [loss(model, loader.put(loader.next())).item() for _ in range(3)]
    # Half of the global batch is this rank's; the batches begin anew.
    assert found == [0.0, 2.0, 0.0]
    assert loader.images_read == 9


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("none", 0, "returned a NoneType; it must return a dpeval.Training"),
        ("raising", 0, r"fails with KeyError: 'no such graph' \(test_tasks.py, line \d+\)"),
        ("no_model", 0, "model is a int; it must be a torch.nn.Module"),
        ("no_unit", 0, "unit=''; give a short name"),
        ("vector", 1, r"a tensor of shape \[3, 1\]; it must return the mean"),
        ("frozen", 1, "does not depend on any trainable parameter"),
        ("no_samples", 1, "samples of a batch is 0"),
        ("ending", 2, "its batches have ended"),
    ],
)
def test_a_fault_of_the_function_is_one_line(name: str, count: int, message: str) -> None:
    with pytest.raises(ModelError, match=message) as raised:
        steps(function(name), count)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=callable"], "set task.function=package.module.name"),
        (["task.function=a.b"], "needs task=callable"),
        (["task=callable", "task.function=a.b", "task.args=[1]"], "needs task=script"),
    ],
)
def test_a_wrong_function_is_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(overrides)


def test_a_function_is_looked_for_before_a_rank_starts() -> None:
    with pytest.raises(ConfigError, match="has no 'mak'"):
        check(function("mak"))
    with pytest.raises(ConfigError, match=r"does not accept task\.kwargs"):
        check(function("make", "+task.kwargs.size=4"))
    with pytest.raises(ConfigError, match=r"tell it with task\.kwargs"):
        check_script(function("make"), ["task=callable", "model=resnet18"])


def test_another_version_of_a_script_is_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = Path("train.py")
    found = []
    for text in ("one", "another", "one"):
        script.write_text(text)
        found.append(identity(compose(["task=script", "task.script=train.py"])))
    assert found[0] == found[2] != found[1]
    assert function("make").task.content != ""
