"""Composing: what a user may write, and what a wrong word is answered with."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import itertools
import sys
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from dpeval import train
from dpeval.commands import hydra_app
from dpeval.commands.main import explain
from dpeval.config import (
    LOADERS,
    Config,
    DatasetConfig,
    HardwareConfig,
    MeasureConfig,
    SiteConfig,
    StrategyConfig,
    check,
    identity,
    to_plain,
)
from dpeval.config.composition import FORMER_TARGETS
from dpeval.errors import ConfigError
from dpeval.util.importing import locate
from dpeval.util.paths import conf_dir

Captured = pytest.CaptureFixture[str]


def test_defaults_compose() -> None:
    config = hydra_app.compose([])
    assert (config.model.name, config.dataset.name, config.batch) == (
        "densenet121",
        "imagenette",
        32,
    )


def test_every_option_composes() -> None:
    """An option of each group at a time: composing one takes as long as composing six."""
    needed = {
        "torchvision": ["model.name=resnet18"],
        "image_folder": ["dataset.root=/x", "dataset.num_classes=3"],
    }
    groups = ("hardware", "model", "dataset", "scaling", "strategy", "measure")
    options = [
        [(group, path.stem) for path in sorted((conf_dir() / group).glob("*.yaml"))]
        for group in groups
    ]
    assert all(options)
    for chosen in itertools.zip_longest(*options):
        there = [one for one in chosen if one is not None]
        own = [word for _, option in there for word in needed.get(option, [])]
        hydra_app.compose([*(f"{group}={option}" for group, option in there), *own])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("batch=0", "batch=0 is too small; the smallest valid value is 1"),
        ("batch=abc", "batch=abc is not a whole number"),
        ("num_devices=all", "num_devices=all is not a whole number; give a number: this process"),
        ("analyze=maybe", "analyze=maybe is not true or false"),
        ("imagenette", "not of the form key=value; write dataset=imagenette"),
        ("denset121", "write model=densenet121"),
        ("gpu", "write hardware=gpu"),
        ("batch=null", "batch must have a value other than null"),
        ("task.args=3", "task.args must be a list, such as [a,b]"),
        ("model.args=3", "model.args must be keys with values, such as {a: 1}"),
        ("bacth=3", "there is no key 'bacth'; did you mean 'batch'?"),
        ("+foo=3", "there is no key 'foo'"),
        ("dataset.image_pxx=3", "did you mean 'dataset.image_px'?"),
        ("model=densnet121", "did you mean 'densenet121'?"),
        ("hardware.cores_per_device=-1", "hardware.cores_per_device=-1 is too small"),
        ("hardware=tpu", "hardware=tpu is not one of cpu, gpu"),
        ("measure.rel_precision=0", "measure.rel_precision=0.0 is too small"),
        ("measure.rel_precision=nan", "is not a finite number"),
        ("measure.time_limit_s=inf", "is not a finite number"),
        ("model=torchvision", "model.name has no value"),
        ("batch=1,2", "add -m to sweep"),
        ("precision=fp8", "precision=fp8 is not one of fp32"),
        ("precision=fp16", "needs hardware=gpu"),
        ("num_devices=33", "batch=32 is too small for num_devices=33"),
        ("measure.max_steps=5", "leaves too few steps for a mean"),
        ("measure.time_limit_s=0.001", "the smallest valid value is 1"),
        ("repetition=1", "the sweep sets it"),
        ("site.partitoin=x", "did you mean 'site.partition'?"),
        ("partition=x", "did you mean 'site.partition'?"),
        ("measure.partition=x", "did you mean 'site.partition'?"),
        ("gpus=2", "did you mean 'num_devices'?"),
        ("lr=0.1", "did you mean 'optimizer.args.lr'?"),
        ("hydra.sweep.dirr=x", "did you mean 'hydra.sweep.dir'?"),
        ("hardware.kind=cuda", "did you mean 'gpu'?"),
        ("precision=Float32", "did you mean 'fp32'?"),
        ("precision=half", "did you mean 'fp16'?"),
        ("site.startup_s=0", "site.startup_s=0.0 is too small; it must be above 0"),
        (
            "dataset.loader=cache",
            "constant or an import path (package.name); did you mean 'cached'?",
        ),
        ("hardware=cuda", "is not one of cpu, gpu; did you mean 'gpu'?"),
        ("hardware=rocm", "is not one of cpu, gpu; did you mean 'gpu'?"),
        ("hardware=mps", "dpeval times GPUs with CUDA events, so MPS is not supported: use cpu"),
        ("hardware.kind=xpu", "dpeval times GPUs with CUDA events, so XPU is not supported"),
        ("hardware=null", "takes the name of an option"),
        ("+batch=3", "leave out the + before the key"),
        ("+hardware=gpu", "leave out the + before the key"),
        ("++hardware=gpu", "leave out the + before the key"),
        ("~foo", "leave out the ~"),
        ("hydra/launcher=sbatch", "did you mean 'slurm'?"),
        ("hydra.launcher.dry_rnu=true", "did you mean 'hydra.launcher.dry_run'?"),
        ("+site.foo=1", "there is no key 'site.foo'; keys of site: account, "),
        ("+hardware.foo=1", "keys of hardware: cores_per_device, "),
        ("site.walltime=3", "keys of site: account, "),
        ("dry_run=true", "did you mean 'hydra.launcher.dry_run'?"),
        ("++measure.foo.bar=1", "there is no key 'measure.foo'"),
        ("~site.partition", "'site.partition'"),
        ("~measure.min_steps", "'measure.min_steps' cannot be deleted; set it with"),
        ("num_nodes=2", "does not divide evenly"),
    ],
)
def test_wrong_words_are_one_clear_line(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        hydra_app.compose([override])
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("flags", [["-m", "--cfg", "job"], ["--resolve"], ["--info", "--run"]])
def test_flags_of_hydra_that_exclude_each_other_are_one_line(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(sys, "argv", ["dpeval-train", *flags])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert train.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("dpeval: ")
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("torch.optim.lr_scheduler", "torch.optim.lr_scheduler is a module and cannot be called"),
        ("torch.optim.Adem", "has no 'Adem'; did you mean 'Adam'?"),
    ],
)
def test_a_target_is_callable(path: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        locate(path, key="optimizer.name")
    assert words in str(caught.value)


def test_every_loader_of_dpeval_is_where_its_line_says() -> None:
    for loader in LOADERS.values():
        assert callable(locate(loader.path, key="dataset.loader"))


def test_a_users_own_file_beside_the_working_directory(tmp_path: Path) -> None:
    own = tmp_path / "conf" / "model"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("name: mine\n_target_: my_package.build\nargs: {width: 3}\n")
    config = hydra_app.compose(["model=mine"])
    assert config.model._target_ == "my_package.build"
    assert config.model.args == {"width": 3}


def test_a_dataset_and_a_strategy_of_ones_own_take_keys_of_their_own(tmp_path: Path) -> None:
    for group in ("dataset", "strategy"):
        own = tmp_path / "conf" / group
        own.mkdir(parents=True)
        (own / "mine.yaml").write_text("name: mine\n_target_: mine.build\nargs: {width: 3}\n")
    config = hydra_app.compose(["dataset=mine", "strategy=mine", "dataset.args.width=4"])
    assert config.dataset.args == {"width": 4}
    assert config.strategy.args == {"width": 3}
    assert identity(config) != identity(hydra_app.compose(["dataset=mine", "strategy=mine"]))
    assert identity(config) != identity(
        hydra_app.compose(
            ["dataset=mine", "strategy=mine", "dataset.args.width=4", "strategy.args.width=5"]
        )
    )


def test_a_target_names_the_face_of_a_package_and_no_file_in_it() -> None:
    """Such a path is part of a run's identity, which must outlast a move inside the package."""
    found = 0
    for path in conf_dir().rglob("*.yaml"):
        composed = OmegaConf.load(path)
        assert isinstance(composed, DictConfig)
        target = composed.get("_target_", "")
        if target.startswith("dpeval."):
            package, _, name = target.rpartition(".")
            assert package.count(".") == 1, (path, target)
            assert name in importlib.import_module(package).__all__, (path, target)
            found += 1
    assert found >= 6


@pytest.mark.parametrize("former", FORMER_TARGETS)
def test_a_first_name_of_a_target_means_what_it_meant(former: str) -> None:
    group = "strategy" if ".strategies." in former else "model"
    old, new = (
        hydra_app.compose([f"{group}._target_={name}"]) for name in (former, FORMER_TARGETS[former])
    )
    assert callable(locate(getattr(old, group)._target_, key="target"))
    assert identity(old) == identity(new)


@pytest.mark.parametrize("launcher", ["local", "slurm", "oar"])
@pytest.mark.parametrize("key", ["dry_run", "wait"])
def test_every_launcher_knows_the_keys_that_all_share(launcher: str, key: str) -> None:
    hydra_app.compose([f"hydra/launcher={launcher}", f"hydra.launcher.{key}=true"])


def train_in(
    folder: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> tuple[int, str]:
    """Run ``dpeval.train`` with `words` in this process; return its status and output."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["dpeval-train", *words])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    status = train.main()
    printed = capsys.readouterr()
    return status, printed.out + printed.err


@pytest.mark.parametrize("launcher", ["basic", "submitit_slurm"])
def test_other_launchers_have_a_dry_run(
    launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    words = ["-m", f"hydra/launcher={launcher}", "hydra.launcher.dry_run=true", "num_devices=1,2"]
    status, printed = train_in(tmp_path, words, monkeypatch, capsys)
    assert status == 0
    assert "[2/2] num_devices=2" in printed
    assert "nothing was submitted" in printed
    assert not list(tmp_path.rglob("metrics.json"))


@pytest.mark.parametrize("launcher", ["local", "submitit_local"])
def test_an_unknown_key_of_any_launcher_is_one_line(
    launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    words = ["-m", f"hydra/launcher={launcher}", "+hydra.launcher.dry_rnu=true"]
    status, printed = train_in(tmp_path, words, monkeypatch, capsys)
    assert status == 2
    assert "there is no key 'hydra.launcher.dry_rnu'; did you mean" in printed
    assert len(printed.strip().splitlines()) == 1


def test_a_single_run_is_not_submitted_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    status, printed = train_in(tmp_path, ["hydra/launcher=slurm"], monkeypatch, capsys)
    assert status == 2
    assert "hydra/launcher=slurm launches sweeps" in printed
    assert "add -m" in printed


def test_every_key_says_what_it_means() -> None:
    for kind in (HardwareConfig, DatasetConfig, StrategyConfig, MeasureConfig, SiteConfig):
        tree = ast.parse(inspect.getsource(kind)).body[0]
        assert isinstance(tree, ast.ClassDef)
        for key, text in zip(tree.body, [*tree.body[1:], None], strict=True):
            if isinstance(key, ast.AnnAssign):
                assert isinstance(text, ast.Expr), f"{kind.__name__}: {ast.unparse(key)}"


def test_a_loader_may_be_an_import_path() -> None:
    assert hydra_app.compose(["dataset.loader=my_package.Mine"]).dataset.loader == "my_package.Mine"


def test_a_wrong_key_in_a_users_file_names_the_file(tmp_path: Path) -> None:
    own = tmp_path / "conf" / "model"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("nmae: mine\n")
    with pytest.raises(ConfigError, match=r"did you mean 'model.name'\? \(in model/mine.yaml\)"):
        hydra_app.compose(["model=mine"])


def test_weak_scaling_takes_the_batch_per_device() -> None:
    assert hydra_app.compose(["scaling=weak", "batch=1", "num_devices=4"]).batch == 1


def test_a_limit_on_steps_may_end_a_window_before_its_minimum() -> None:
    assert hydra_app.compose(["measure=quick", "measure.max_steps=4"]).measure.min_steps > 4
    with pytest.raises(ConfigError, match="use 4 or more"):
        hydra_app.compose(["measure=quick", "measure.max_steps=3"])


def test_identity_ignores_where_output_goes_and_nothing_else() -> None:
    base = hydra_app.compose([])
    assert identity(hydra_app.compose(["study=other", "analyze=false"])) == identity(base)
    for change in ("seed=1", "batch=16", "model=resnet18", "measure.rel_precision=0.03"):
        assert identity(hydra_app.compose([change])) != identity(base)


@given(batch=st.integers(-5, 200), devices=st.integers(-5, 200))
def test_bounds_hold_for_every_number(batch: int, devices: int) -> None:
    config = dataclasses.replace(_BASE, batch=batch, num_devices=devices)
    if batch >= 1 and devices >= 1 and batch >= devices:
        check(config)
    else:
        with pytest.raises(ConfigError):
            check(config)


_BASE = dataclasses.replace(
    Config(),
    model=dataclasses.replace(Config().model, name="m"),
    dataset=dataclasses.replace(Config().dataset, name="d"),
)


@pytest.mark.parametrize(
    ("overrides", "layout"),
    [
        ([], "channels_last"),
        (["precision=bf16"], "channels_last"),
        (["hardware=gpu"], "contiguous"),
        (["hardware=gpu", "precision=tf32"], "channels_last"),
        (["hardware=gpu", "precision=bf16"], "channels_last"),
        (["hardware=gpu", "precision=fp16"], "channels_last"),
        (["hardware=gpu", "memory_format=channels_last"], "channels_last"),
        (["memory_format=contiguous"], "contiguous"),
    ],
)
def test_the_memory_format_is_known_before_anything_uses_it(
    overrides: list[str], layout: str
) -> None:
    config = hydra_app.compose(overrides)
    assert config.memory_format == layout
    assert to_plain(config)["memory_format"] == layout, "what the record shows"
    explicit = hydra_app.compose([*overrides, f"memory_format={layout}"])
    assert identity(config) == identity(explicit), "resuming finds either"


def test_an_option_that_hydra_does_not_find_is_one_line() -> None:
    missing = MissingConfigException("long text", "hardware/cuda", ["cpu", "gpu"])
    assert isinstance(missing, OSError), "which is no reason to take it for a fault of the disk"
    told = explain(missing)
    assert isinstance(told, ConfigError)
    assert str(told) == "hardware=cuda is not one of cpu, gpu; did you mean 'gpu'?"
