"""``task=script`` before anything starts: its keys, its arguments, its environment, its log."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpeval.commands.hydra_app import compose
from dpeval.config import Config, check_script, fill_in, identity, to_plain
from dpeval.errors import ConfigError
from dpeval.launchers.in_job.run_job import rebuild
from dpeval.record.plan import Plan, RankPlan
from dpeval.run import rank_supervisor
from dpeval.worker.environment import torchrun_environment
from dpeval.worker.messages import RankTask

SCRIPT = ("task=script", "task.script=train.py")


def test_the_default_task_is_written_nowhere_so_its_identity_stays() -> None:
    assert "task" not in to_plain(Config())
    assert identity(compose(["task=classification"])) == identity(compose([]))
    assert rebuild(to_plain(compose([]))) == compose([])


def test_what_a_script_decides_is_neither_recorded_nor_compared() -> None:
    plain = to_plain(compose([*SCRIPT]))
    assert not {"precision", "optimizer", "compile", "memory_format"} & set(plain)
    assert plain["model"] == {"name": "train"}
    assert identity(compose([*SCRIPT, "precision=bf16"])) == identity(compose([*SCRIPT]))
    assert identity(compose([*SCRIPT, "task.args=[a]"])) != identity(compose([*SCRIPT]))


def test_a_job_rebuilds_the_configuration_that_was_submitted() -> None:
    config = compose([*SCRIPT, 'task.args=[--lr, 0.1, "{batch}"]', "num_devices=2"])
    assert rebuild(to_plain(config)) == config
    assert config.task.args == ["--lr", "0.1", "{batch}"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=script"], "task.script=train.py"),
        ([*SCRIPT, "task.module=train"], "exactly one of task.script"),
        (["task.script=train.py"], "needs task=script"),
        ([*SCRIPT, "task.args=['{per_device_batch}']"], "did you mean {per_device_batch_size}?"),
        ([*SCRIPT, "baseline=serial"], "baseline=same"),
        ([*SCRIPT, "task.exit_timeout_s=0"], "task.exit_timeout_s=0"),
    ],
)
def test_a_wrong_task_is_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        compose(overrides)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("override", ["model=resnet18", "precision=bf16", "dataset.image_px=64"])
def test_a_key_that_a_script_would_ignore_is_refused(override: str) -> None:
    Path("train.py").touch()
    config = compose([*SCRIPT])
    check_script(config, [*SCRIPT, "batch=8"])
    with pytest.raises(ConfigError, match="has no effect with task=script"):
        check_script(config, [*SCRIPT, override])


@pytest.mark.parametrize("where", ["task.script=missing.py", "task.module=no_such_package.train"])
def test_a_script_that_is_not_there_is_told(where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        check_script(compose(["task=script", where]), [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#!/bin/sh\nif true; then exit; fi\n", "train.py, line 2: invalid syntax"),
        (b"\x7fELF\0\0", "null bytes"),
        (b"# coding: klingon\n", "unknown encoding: klingon"),
    ],
)
def test_a_script_that_is_not_python_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    script = tmp_path / "train.py"
    script.write_bytes(content)
    with pytest.raises(ConfigError, match=f"task.script=.*{message}.*is it Python"):
        check_script(compose(["task=script", f"task.script={script}"]), [])


def test_placeholders_are_replaced_and_other_braces_stay() -> None:
    values = {"batch": 32, "seed": 7}
    args = ["--bs={batch}", "{seed}", "{epoch}-{batch}.pt", '{"a": 1}']
    assert fill_in(args, values) == ["--bs=32", "7", "{epoch}-32.pt", '{"a": 1}']


def test_ranks_are_numbered_as_torchrun_numbers_them() -> None:
    ranks = [
        RankPlan(
            rank=rank, node=rank // 2, local_rank=rank % 2, device="cpu", cpus=[rank], threads=1,
            per_device_batch_size=4, weight=0.25,
        )
        for rank in range(4)
    ]  # fmt: skip
    plan = Plan(world_size=4, global_batch_size=16, backend="gloo", ranks=ranks)
    task = RankTask(Config(), plan, 3, None, "10.0.0.1", 1234, {})
    found = torchrun_environment(task)
    expected = {
        "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "1234",
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected


def test_a_script_that_prints_without_end_fills_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_supervisor, "LONGEST_LOG_BYTES", 100)
    monkeypatch.setattr(rank_supervisor, "KEPT_LOG_BYTES", 10)
    log = tmp_path / "rank-0.log"
    with log.open("ab", buffering=0) as file:
        file.write(b"x" * 100)
        rank_supervisor.keep_short(log)
        assert log.stat().st_size == 100
        file.write(b"0123456789")
        rank_supervisor.keep_short(log)
        file.write(b"the end")
    assert log.read_bytes() == b"[dpeval cut the beginning of this log]\n0123456789the end"
    rank_supervisor.keep_short(tmp_path / "none.log")
    assert not (tmp_path / "none.log").exists()
