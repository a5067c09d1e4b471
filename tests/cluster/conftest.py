"""Real schedulers for the tests, started once per session and always stopped.

They need root and Debian's packages (``bash tests/cluster/install.sh``); without them the
tests are skipped.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
TEST_USER = os.environ.get("DPEVAL_TEST_USER", "dpevaltest")

TINY = (
    "model=calibrated",
    "dataset.image_px=8",
    "measure=quick",
    "measure.min_steps=6",
    "measure.time_limit_s=3",
    "measure.conditions=false",
    "hardware.oversubscribe=true",
    "site.startup_s=120",
    "hydra.launcher.signal_delay_s=15",
    "hydra.launcher.pack=false",
    "analyze=false",
)
"""A run of a few seconds whose speed is known by construction."""
LONG = (
    *(word for word in TINY if "time_limit_s" not in word),
    "measure.time_limit_s=300",
    "measure.rel_precision=0.00005",
    "measure.max_steps=100000",
)
"""A run that continues until it is stopped."""


@dataclass(frozen=True)
class Watching:
    """A command that runs in the background."""

    process: subprocess.Popen[bytes]
    output: Path

    def text(self) -> str:
        """What it has printed so far, in whole lines."""
        return self.output.read_text().rpartition("\n")[0]

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def has_failed(self) -> bool:
        return self.process.poll() not in (None, 0)


@dataclass(frozen=True)
class Cluster:
    """A running scheduler and how to submit sweeps to it."""

    launcher: str
    root: Path
    environment: dict[str, str]
    python: tuple[str, ...] = (sys.executable,)
    work: Path = field(default_factory=Path)

    def node(self, number: int) -> str:
        """The name of a node of this SLURM cluster, counted from 1."""
        return f"{node_names()}{number}"

    def run(self, *command: str, timeout_s: float = 560) -> subprocess.CompletedProcess[str]:
        """Run a command with this cluster's environment in the test's folder."""
        return subprocess.run(
            command,
            cwd=self.work,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def module(
        self, name: str, *arguments: str, timeout_s: float = 560
    ) -> subprocess.CompletedProcess[str]:
        """``python -m dpeval.<name> <arguments>``."""
        return self.run(*self.python, "-m", f"dpeval.{name}", *arguments, timeout_s=timeout_s)

    @contextlib.contextmanager
    def watching(self, name: str, *arguments: str) -> Iterator[Watching]:
        """``python -m dpeval.<name> <arguments>`` in the background; ended with the context."""
        with tempfile.NamedTemporaryFile("w") as output:
            process = subprocess.Popen(
                [*self.python, "-m", f"dpeval.{name}", *arguments],
                cwd=self.work,
                env={**self.environment, "PYTHONUNBUFFERED": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                yield Watching(process, Path(output.name))
            finally:
                process.kill()
                process.wait()

    def sweep(
        self, *overrides: str, study: str = "study", timeout_s: float = 560
    ) -> tuple[subprocess.CompletedProcess[str], Path]:
        """Submit a sweep; return the finished process and the study's newest folder."""
        done = self.module(
            "train",
            "-m",
            f"hydra/launcher={self.launcher}",
            f'study="{study}"',
            *overrides,
            timeout_s=timeout_s,
        )
        assert self._sweeps(study), done.stdout + done.stderr
        return done, self.newest(study)

    def newest(self, study: str = "study") -> Path:
        return self._sweeps(study)[-1].parent

    def _sweeps(self, study: str) -> list[Path]:
        return sorted((self.work / "outputs" / study).glob("*/sweep.json"))


@dataclass(frozen=True)
class Calls:
    """Counts the calls of the scheduler's commands from outside its jobs."""

    log: Path

    def count(self) -> Counter[str]:
        return Counter(self.log.read_text().split())


def counted(cluster: Cluster, *commands: str) -> tuple[Cluster, Calls]:
    """`cluster` with each of `commands` wrapped in a script that logs the call."""
    calls = Calls(cluster.work / "calls.log")
    calls.log.touch()
    # Jobs inherit these commands; their calls are not counted.
    scripts = {
        name: f'[ -n "$SLURM_JOB_ID" ] || echo {name} >>{shlex.quote(str(calls.log))}\n'
        f'exec {shutil.which(name)} "$@"'
        for name in commands
    }
    return with_commands(cluster, **scripts), calls


def with_commands(cluster: Cluster, **scripts: str) -> Cluster:
    """`cluster` with a shell script in the place of each named command, also in its jobs."""
    folder = cluster.work / "commands"
    folder.mkdir()
    for name, text in scripts.items():
        script = folder / name
        script.write_text(f"#!/bin/bash\n{text}\n")
        script.chmod(0o755)
    path = os.pathsep.join([str(folder), cluster.environment["PATH"]])
    return replace(cluster, environment={**cluster.environment, "PATH": path})


def with_steps_in(cluster: Cluster, words: str) -> Cluster:
    """`cluster` whose job steps run `words` in bash, which get the step's command as ``"$@"``."""
    return with_commands(
        cluster,
        srun=f"""for ((at = 1; at <= $#; at++)); do
  if [[ ${{!at}} == */bin/python* ]]; then
    exec {shutil.which("srun")} "${{@:1:at-1}}" /bin/bash -c {shlex.quote(words)} step "${{@:at}}"
  fi
done
exit 1""",
    )


def wait_until(happened: Callable[[], bool], timeout_s: float, what: Callable[[], str]) -> None:
    """Poll until `happened`.

    Raises:
        AssertionError: it did not happen within `timeout_s`.
    """
    deadline_s = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {what()}"
        time.sleep(0.5)


def _require(*programs: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("real schedulers need root")
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; run bash tests/cluster/install.sh")


def _environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def worker() -> int:
    """The number of this process among those of pytest-xdist."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def node_names() -> str:
    """How this process's SLURM nodes begin: cgroups of jobs are named after their nodes."""
    return f"w{worker()}n"


def _started(script: str, **environment: str) -> Iterator[Path]:
    # Not in pytest's folder, which the unprivileged user cannot enter.
    root = Path(tempfile.mkdtemp(prefix="dpeval-cluster-", dir="/tmp"))
    root.chmod(0o755)
    variables = {**os.environ, "SLURM_ROOT": str(root), "OAR_ROOT": str(root), **environment}
    try:
        up = subprocess.run(
            ["bash", str(HERE / f"{script}_up.sh")],
            env=variables,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert up.returncode == 0, up.stdout + up.stderr
        yield root
    finally:
        subprocess.run(
            ["bash", str(HERE / f"{script}_down.sh")], env=variables, timeout=120, check=False
        )
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def slurm_root() -> Iterator[Path]:
    """A SLURM cluster of 4 nodes with 16 CPUs and 4 stand-in GPUs each."""
    _require("slurmctld", "slurmd", "slurmdbd", "mariadbd", "munged", "srun")
    # Each worker of pytest-xdist starts a cluster of its own beside the others'.
    port = int(os.environ.get("DPEVAL_SLURM_PORT", "17817")) + 100 * worker()
    yield from _started("slurm", BASE_PORT=str(port), NODE_NAMES=node_names())


@pytest.fixture(scope="session")
def oar_root() -> Iterator[Path]:
    """An OAR cluster of 4 nodes with 8 cores and 4 GPUs each."""
    _require("oar-server", "oarsub", "oar-database", "pg_ctlcluster")
    yield from _started("oar")


@pytest.fixture
def slurm(slurm_root: Path, tmp_path: Path) -> Cluster:
    """The SLURM cluster, with an empty folder to work in."""
    conf = str(slurm_root / "etc" / "slurm.conf")
    return Cluster("slurm", slurm_root, _environment(SLURM_CONF=conf), work=tmp_path)


@pytest.fixture
def oar(oar_root: Path, tmp_path: Path) -> Cluster:
    """The OAR cluster, with an empty folder to work in."""
    return Cluster("oar", oar_root, _environment(), work=tmp_path)


@pytest.fixture
def unprivileged(slurm: Cluster) -> Iterator[Cluster]:
    """The SLURM cluster as an ordinary user sees it."""
    if subprocess.run(["id", TEST_USER], capture_output=True, check=False).returncode:
        pytest.skip(f"no user {TEST_USER}; run bash tests/cluster/install.sh")
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    environment = {**slurm.environment, "HOME": f"/home/{TEST_USER}", "USER": TEST_USER}
    environment["PYTHONPATH"] += os.pathsep + packages
    environment.pop("DPEVAL_DATA", None)  # it may belong to another user
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/{version}"):
        command = ("runuser", "-u", TEST_USER, "--", python)
        check = subprocess.run(
            [*command, "-c", "import torch, dpeval"], env=environment, cwd="/", check=False
        )
        if check.returncode == 0:
            break
    else:
        pytest.skip(f"{TEST_USER} cannot run a Python that has torch")
    work = Path(tempfile.mkdtemp(prefix="dpeval-user-", dir="/tmp"))
    shutil.chown(work, TEST_USER)
    yield Cluster("slurm", slurm.root, environment, command, work)
    shutil.rmtree(work, ignore_errors=True)
