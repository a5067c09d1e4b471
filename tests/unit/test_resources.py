"""What each run requests, how runs are grouped, and that nothing reaches a shell unquoted."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpeval.config import (
    Config,
    HardwareConfig,
    LauncherOptions,
    MeasureConfig,
    SiteConfig,
    check_bounds,
    identity,
)
from dpeval.errors import ConfigError, LaunchError
from dpeval.launchers.schedulers.base import one_line
from dpeval.launchers.schedulers.oar.scheduler import Oar, OarOptions, oar_parameters
from dpeval.launchers.schedulers.oar.submission import oar_script, oarsub_command
from dpeval.launchers.schedulers.registry import scheduler
from dpeval.launchers.schedulers.resources import (
    Group,
    JobRequest,
    check_folder,
    derive,
    group,
    job_name,
    override,
    round_up_mib,
    shortfalls,
)
from dpeval.launchers.schedulers.slurm import SlurmOptions
from dpeval.launchers.schedulers.slurm_request import sbatch_file, slurm_parameters
from dpeval.record.memory import Forecast
from dpeval.util import entry

OPTIONS = LauncherOptions(signal_delay_s=30)
GIB = 2**30
NASTY = st.text(
    alphabet=st.one_of(st.sampled_from(list(" '\"$()`;&|<>*?~#!{}[]=:,\t")), st.characters()),
    max_size=40,
)


def config(**changes: Any) -> Config:
    base = Config(measure=MeasureConfig(time_limit_s=60.0, ablation=False))
    return dataclasses.replace(base, **changes)


def forecast(size: int) -> Forecast:
    return Forecast(total_bytes=size, parts={}, source="model")


def gpu(devices: int, **site: Any) -> Config:
    return config(
        hardware=HardwareConfig(kind="gpu"),
        num_devices=devices,
        batch=64,
        site=SiteConfig(**site),
    )


def test_gpus_are_those_of_the_run_not_of_the_sweep() -> None:
    asked = [derive(gpu(n), None, OPTIONS).gpus for n in (1, 2, 3)]
    assert asked == [1, 2, 3]


def test_cores_of_a_gpu_rank_include_its_workers() -> None:
    asked = gpu(2, cores_per_gpu=4)
    workers = dataclasses.replace(asked.dataset, workers=8)
    assert derive(asked, None, OPTIONS).cores == 8
    assert derive(dataclasses.replace(asked, dataset=workers), None, OPTIONS).cores == 18
    hardware = dataclasses.replace(asked.hardware, cores_per_device=6)
    given = dataclasses.replace(asked, dataset=workers, hardware=hardware)
    assert derive(given, None, OPTIONS).cores == 12


def test_cpu_devices_request_cores_and_no_gpu() -> None:
    hardware = HardwareConfig(cores_per_device=4)
    found = derive(config(hardware=hardware, num_devices=3), None, OPTIONS)
    assert (found.cores, found.gpus) == (12, 0)
    assert "gpus_per_node" not in slurm_parameters(found, SiteConfig(), OPTIONS, "n")
    shared = dataclasses.replace(found, exclusive=False)
    request = oar_parameters(shared, SiteConfig(), OPTIONS, "n")
    assert request["additional_parameters"]["l"].startswith("/nodes=1/core=12,")


def test_two_nodes_request_half_of_the_devices_each() -> None:
    found = derive(dataclasses.replace(gpu(4), num_nodes=2), None, OPTIONS)
    assert (found.nodes, found.gpus) == (2, 2)
    assert slurm_parameters(found, SiteConfig(), OPTIONS, "n")["ntasks_per_node"] == 1


def test_memory_covers_the_forecast_of_all_ranks_of_the_node() -> None:
    found = derive(config(num_devices=4), forecast(3 * GIB), OPTIONS)
    assert found.memory_mib is not None
    assert found.memory_mib * 2**20 >= 4 * 3 * GIB


@given(st.integers(1, 2**42))
def test_rounding_up_covers_and_wastes_at_most_half(size: int) -> None:
    rounded = round_up_mib(size) * 2**20
    assert rounded >= size
    assert rounded <= max(1.5 * size + 2**20, GIB)


def test_time_covers_windows_startup_and_warning() -> None:
    measure = MeasureConfig(time_limit_s=600, ablation=True, ablation_share=0.5)
    found = derive(config(measure=measure, site=SiteConfig(startup_s=60)), None, OPTIONS)
    assert found.time_min == 18  # (600 * 1.5 + 60 + 30 + 60) / 60 = 17.5
    assert override(found, LauncherOptions(timeout_min=5)).time_min == 5


def test_equal_requests_share_a_group_and_keep_their_order() -> None:
    runs = [gpu(n) for _ in range(2) for n in (2, 1, 2)]
    needs = [JobRequest((i,), derive(run, None, OPTIONS), run.site) for i, run in enumerate(runs)]
    groups = group(needs, lambda r, s: slurm_parameters(r, s, OPTIONS, "n"))
    assert [(g.parameters["gpus_per_node"], g.members) for g in groups] == [
        (2, (0, 2, 3, 5)),
        (1, (1, 4)),
    ]


def test_more_jobs_than_an_array_may_have_are_several_arrays() -> None:
    needs = [JobRequest((at,), derive(gpu(1), None, OPTIONS), SiteConfig()) for at in range(7)]
    groups = group(needs, lambda r, s: slurm_parameters(r, s, OPTIONS, "n"), most=3)
    assert [one.members for one in groups] == [(0, 1, 2), (3, 4, 5), (6,)]


def test_the_site_does_not_change_the_identity() -> None:
    assert identity(gpu(1)) == identity(gpu(1, account="x", partition="y"))


def test_site_profiles_translate_to_requests() -> None:
    nef = SiteConfig(gpu_level="gpunum", gpu_properties="gpu='YES'", exclusive=False)
    found = derive(dataclasses.replace(gpu(2), site=nef), None, OPTIONS)
    asked = oar_parameters(found, nef, OPTIONS, "n")["additional_parameters"]
    assert asked["l"].startswith("/nodes=1/gpunum=2,walltime=")
    assert asked["p"] == "gpu='YES'"
    zay = SiteConfig(gpu_option="gres", gpu_type="v100", cores_per_gpu=10, ask_memory=False)
    found = derive(dataclasses.replace(gpu(2), site=zay), None, OPTIONS)
    made = slurm_parameters(found, zay, OPTIONS, "n")
    assert (made["gres"], made["cpus_per_task"], "mem" in made) == ("gpu:v100:2", 20, False)


@pytest.mark.parametrize(
    ("properties", "devices", "is_told"),
    [("", 2, True), ("gpu_model='A100'", 2, False), ("cluster='a'", 2, False), ("", 0, False)],
)
def test_gpus_of_any_model_are_told_before_submission(
    properties: str, devices: int, *, is_told: bool
) -> None:
    site = SiteConfig(properties=properties, gpu_properties="gpu_count>={gpus}")
    needed = dataclasses.replace(derive(gpu(2), None, OPTIONS), gpus=devices)
    assert ("no GPU model" in scheduler("oar").caution(needed, site, OPTIONS)) == is_told
    assert scheduler("slurm").caution(needed, site, OPTIONS) == ""


def test_all_properties_are_required() -> None:
    site = SiteConfig(
        properties="cluster='a' OR cluster='b'",
        gpu_properties="gpu_count>={gpus}",
        memory_properties="memnode>={mib}",
    )
    found = derive(dataclasses.replace(gpu(2), site=site), None, OPTIONS)
    asked = oar_parameters(found, site, OPTIONS, "n")["additional_parameters"]
    assert asked["p"] == (
        f"(cluster='a' OR cluster='b') AND (gpu_count>=2) AND (memnode>={found.memory_mib})"
    )


def test_requeue_only_if_requested_and_allowed() -> None:
    found = derive(gpu(1), None, OPTIONS)
    again = LauncherOptions(requeue=1)

    def slurm(site: SiteConfig, options: LauncherOptions) -> bool:
        return "requeue" in slurm_parameters(found, site, options, "n")["additional_parameters"]

    assert slurm(SiteConfig(), again)
    assert not slurm(SiteConfig(), OPTIONS)
    assert not slurm(SiteConfig(requeue=False), again)
    asked = oar_parameters(found, SiteConfig(besteffort=True), again, "n")
    assert asked["additional_parameters"]["t"] == ["besteffort", "idempotent"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("signal_delay_s", 0),
        ("timeout_min", 0),
        ("gpus_per_node", -1),
        ("prepare", "maybe"),
        ("poll_s", 0.0),
        ("poll_s", float("nan")),
    ],
)
def test_invalid_options_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^hydra\.launcher\.{key}={value} "):
        check_bounds(LauncherOptions(**{key: value}), "hydra.launcher.")


@pytest.mark.parametrize("options", [LauncherOptions, SlurmOptions, OarOptions])
def test_default_options_are_within_their_bounds(options: type[LauncherOptions]) -> None:
    check_bounds(options(), "hydra.launcher.")


@given(NASTY)
def test_job_names_need_no_quoting(study: str) -> None:
    name = job_name(study, "ab12")
    assert name == shlex.quote(name)
    assert name.isascii()


@given(NASTY)
def test_text_for_a_scheduler_is_one_line_or_refused(value: str) -> None:
    try:
        text = one_line("site.account", value)
    except ConfigError:
        assert any(ord(char) < 32 or ord(char) == 127 for char in value)
    else:
        assert text == value
        assert "\n" not in text


@pytest.mark.parametrize("folder", ["/a/%j", "/a\nb", "/a\\b", "/a/%A"])
def test_folders_that_schedulers_rewrite_are_refused(folder: str) -> None:
    with pytest.raises(LaunchError, match="which schedulers replace"):
        check_folder("hydra.sweep.dir", folder)


@given(st.text(alphabet=" '\"$()`;&|<>*é-a/", min_size=1, max_size=30))
@settings(deadline=None)
def test_sbatch_file_quotes_any_folder_and_account(text: str) -> None:
    site = SiteConfig(account=text, setup=["module load x"])
    found = derive(gpu(2), None, OPTIONS)
    parameters = slurm_parameters(found, site, OPTIONS, "name")
    folder = Path("/sweep") / text.replace("/", "_")
    lines = sbatch_file(Group(found, parameters, ((0, 1), (2,))), folder, "/py thon").splitlines()
    flags = {
        word.split("=", 1)[0]: word.split("=", 1)[-1]
        for line in lines
        if line.startswith("#SBATCH ")
        for word in shlex.split(line)[1:]
    }
    assert flags["--account"] == text
    assert flags["--output"] == f"{folder}/%A_%a_0_log.out"
    assert flags["--gpus-per-node"] == "2"
    command = shlex.split(next(line for line in lines if line.startswith("srun ")))
    python = ["/py thon", *entry.safe_options(), "-u"]
    module = "dpeval.launchers.in_job.start_job"
    assert command[command.index("/py thon") :] == [*python, "-m", module, str(folder)]


@given(NASTY.filter(lambda text: all(ord(char) >= 32 and ord(char) != 127 for char in text)))
def test_every_option_of_oarsub_is_one_argument(text: str) -> None:
    site = SiteConfig(properties=text or None, partition="besteffort queue")
    found = derive(gpu(2), None, OPTIONS)
    parameters = oar_parameters(found, site, OPTIONS, "name")
    folder = Path("/a b")
    command = oarsub_command(parameters, folder / "job's.sh", 3)
    if text:
        assert command[command.index("-p") + 1] == text
    assert command[command.index("-q") + 1] == "besteffort queue"
    assert command[command.index("--array") + 1] == "3"
    assert shlex.split(command[-1]) == ["/bin/bash", "/a b/job's.sh"]


@given(value=st.text(alphabet=st.characters(exclude_characters="\0", codec="utf-8"), max_size=30))
@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_environment_of_an_oar_job_arrives_unchanged(tmp_path: Path, value: str) -> None:
    script = oar_script(
        "printenv -0 DPEVAL_X", tmp_path, Path("/"), ["# set-up"], {"DPEVAL_X": value}
    )
    subprocess.run(["/bin/bash", "-c", script], env={"OAR_JOB_ID": "7"}, check=True)
    log = tmp_path / "7_0_log.out"
    assert log.read_bytes() == value.encode() + b"\0"
    log.unlink()


def asked_of_slurm(run: Config, site: SiteConfig, **options: Any) -> dict[str, Any]:
    made = SlurmOptions(**options)
    return slurm_parameters(override(derive(run, None, made), made), site, made, "n")


@pytest.mark.parametrize(
    ("key", "value", "parameter", "expected"),
    [
        ("partition", "fast", "partition", "fast"),
        ("qos", "high", "qos", "high"),
        ("account", "me", "account", "me"),
        ("constraint", "a100", "constraint", "a100"),
        ("exclude", "node[1-2]", "exclude", "node[1-2]"),
        ("gres", "gpu:a100:2", "gres", "gpu:a100:2"),
        ("mem_gb", 7, "mem", "7168M"),
        ("mem_per_cpu", "2G", "mem_per_cpu", "2G"),
        ("timeout_min", 3, "time", 3),
        ("cpus_per_task", 9, "cpus_per_task", 9),
        ("gpus_per_node", 4, "gpus_per_node", 4),
        ("array_parallelism", 5, "array_parallelism", 5),
        ("signal_delay_s", 17, "signal_delay_s", 17),
        ("setup", ["module load y"], "setup", ["module load y"]),
        ("stderr_to_stdout", True, "stderr_to_stdout", True),
    ],
)
def test_plugin_keys_override_derived_values_and_the_site(
    key: str, value: Any, parameter: str, expected: Any
) -> None:
    site = SiteConfig(
        partition="p", qos="q", account="a", constraint="c", setup=["x"], ask_memory=False
    )
    asked = asked_of_slurm(gpu(2), site, **{key: value})
    assert asked[parameter] == expected
    assert "mem" not in asked or parameter == "mem"


def test_a_generic_resource_replaces_the_derived_gpus() -> None:
    asked = asked_of_slurm(gpu(2), SiteConfig(), gres="gpu:a100:2")
    assert "gpus_per_node" not in asked
    assert SlurmOptions(gres="gpu:a100:2").gpus_asked == 2
    assert SlurmOptions(gres="gpu:3").gpus_asked == 3
    assert SlurmOptions(gres="gpu:v100").gpus_asked == 1
    assert SlurmOptions(gres="shard:8").gpus_asked is None


def test_additional_parameters_take_precedence_and_are_checked() -> None:
    site = SiteConfig(options={"hint": "nomultithread"})
    asked = asked_of_slurm(gpu(1), site, additional_parameters={"hint": "multithread"})
    assert asked["additional_parameters"]["hint"] == "multithread"
    with pytest.raises(ConfigError, match="additional_parameters"):
        asked_of_slurm(gpu(1), site, additional_parameters={"hint": "a\nrm"})


def test_keys_that_request_too_little_cause_a_warning() -> None:
    needed = derive(gpu(4), None, OPTIONS)
    [line] = shortfalls(gpu(4), needed, SlurmOptions(gpus_per_node=2))
    assert "GPUs per node" in line
    assert shortfalls(gpu(4), needed, SlurmOptions(gpus_per_node=8)) == []
    with pytest.raises(ConfigError, match="num_nodes"):
        shortfalls(gpu(4), needed, SlurmOptions(nodes=2))
    with pytest.raises(ConfigError, match="tasks_per_node"):
        shortfalls(gpu(4), needed, SlurmOptions(tasks_per_node=2))


def test_a_group_of_one_is_not_an_array() -> None:
    found = derive(gpu(1), None, OPTIONS)
    text = sbatch_file(
        Group(found, slurm_parameters(found, SiteConfig(), OPTIONS, "n"), ((0, 1),)), Path("/x")
    )
    assert "--array" not in text
    assert "#SBATCH --exclusive" in text.splitlines()


def test_parameters_are_plain_json() -> None:
    found = derive(gpu(1), forecast(GIB), OPTIONS)
    for parameters in (
        slurm_parameters(found, SiteConfig(), OPTIONS, "n"),
        oar_parameters(found, SiteConfig(), OPTIONS, "n"),
    ):
        assert json.loads(json.dumps(parameters)) == parameters


def test_oar_runs_beyond_the_limit_wait_for_those_before() -> None:
    options = LauncherOptions(array_parallelism=2)
    found = derive(gpu(2), None, OPTIONS)
    parameters = oar_parameters(found, SiteConfig(), OPTIONS, "n")
    text = Oar().preview(Group(found, parameters, tuple((at,) for at in range(5))), Path(), options)
    first, second, third = text.splitlines()
    assert "--array 2" in first
    assert "-a" not in shlex.split(first)
    assert "--array 2" in second
    assert "-a '<each job above>'" in second
    assert "--array" not in third


def asked_of_oar(site: SiteConfig, **more: Any) -> dict[str, Any]:
    found = derive(dataclasses.replace(gpu(2), site=site), None, OPTIONS)
    options = LauncherOptions(requeue=1, signal_delay_s=30, **more)
    asked: dict[str, Any] = oar_parameters(found, site, options, "n")["additional_parameters"]
    return asked


def test_options_of_the_user_join_what_is_derived_for_oar() -> None:
    site = SiteConfig(
        besteffort=True,
        gpu_properties="gpu_count>={gpus}",
        options={"t": "exotic", "p": "cluster='a' OR cluster='b'", "vsm": True, "notify": None},
    )
    asked = asked_of_oar(site)
    assert asked["t"] == ["besteffort", "idempotent", "exotic"]
    assert asked["p"] == "(gpu_count>=2) AND (cluster='a' OR cluster='b')"
    assert (asked["vsm"], "notify" in asked) == (True, False)
    assert "checkpoint" not in asked_of_oar(SiteConfig(options={"checkpoint": False}))
    instead = asked_of_oar(site, additional_parameters={"p": "host='x'", "type": ["deploy"]})
    assert instead["p"] == "host='x'"
    assert instead["t"] == ["besteffort", "idempotent", "exotic", "deploy"]


def test_a_list_is_several_options_of_oarsub() -> None:
    site = SiteConfig(options={"stagein": ["a b", "c"]})
    found = derive(dataclasses.replace(gpu(1), site=site), None, OPTIONS)
    command = oarsub_command(oar_parameters(found, site, OPTIONS, "n"), Path("/s"), None)
    at = command.index("--stagein")
    assert command[at : at + 4] == ["--stagein", "a b", "--stagein", "c"]


def flags_of(site: SiteConfig, **more: Any) -> set[str]:
    """The options in the file for sbatch."""
    found = derive(dataclasses.replace(gpu(1), site=site), None, OPTIONS)
    parameters = slurm_parameters(found, site, SlurmOptions(**more), "n")
    text = sbatch_file(Group(found, parameters, ((0,),)), Path("/f"), "/p")
    found_flags = [
        shlex.split(line)[1] for line in text.splitlines() if line.startswith("#SBATCH ")
    ]
    names = [flag.partition("=")[0] for flag in found_flags]
    assert len(names) == len(set(names)), "an option is given twice"
    return set(found_flags)


def test_options_of_the_user_take_the_place_of_what_is_derived_for_slurm() -> None:
    site = SiteConfig(options={"exclusive": False, "exclude": ["n1", "n2"], "cpus-per-task": 7})
    flags = flags_of(site)
    assert {"--exclude=n1,n2", "--cpus-per-task=7", "--requeue"} <= flags
    assert not any(flag.startswith("--exclusive") for flag in flags)
    again = flags_of(SiteConfig(), additional_parameters={"no-requeue": True, "mem": None})
    assert "--no-requeue" in again
    assert "--requeue" not in again
    assert not any(flag.startswith("--mem=") for flag in again)


def test_an_option_that_is_a_mapping_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^site\.options\.l is a mapping"):
        asked_of_oar(SiteConfig(options={"l": {"nodes": 1}}))
