"""What happens inside a scheduler's job: one run, told to end in time, with one record.

submitit carries only the path of a folder here; everything else is read from the JSON that
the submitting process left in it, so a pickle holds no configuration and no code.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from dpeval import record
from dpeval.config import Config, check
from dpeval.errors import DpevalError, LaunchError
from dpeval.launchers.follow import PROGRESS_NAME, Progress, write_progress
from dpeval.launchers.inside import describe_job, oar_nodes, show_oar_gpus
from dpeval.launchers.neighbours import Watch
from dpeval.launchers.unmeasured import unmeasured
from dpeval.record.schema import Cause, Record
from dpeval.run import forkserver
from dpeval.run.job import Node
from dpeval.util.frozen import Frozen

if TYPE_CHECKING:
    from dpeval.run.session import Session

SPEC_NAME = "job.json"
ATTEMPTS_NAME = "attempts.jsonl"
OAR_RESUBMIT_STATUS = 99
"""Exit status after which OAR submits an ``idempotent`` job again."""
NODE_VARIABLE = "DPEVAL_NODE"
"""Index of a node that another node of an OAR job has started."""
_PROGRESS_EVERY_S = 2.0
_REFUSAL_S = 2.0


class JobSpec(Frozen):
    """Everything a job needs to know of its run."""

    launcher: str
    config: dict[str, Any]
    overrides: list[str]
    identity: str
    requeue: int
    """How often this run may go back to the queue after an interruption."""


class Attempt(Frozen):
    """One start of a run."""

    job_id: str
    host: str
    at_s: float


@dataclass(frozen=True)
class CarriedRun:
    """The callable that submitit pickles."""

    folder: str

    def __call__(self) -> None:
        status = carry(Path(self.folder))
        if status:
            # Not an exception: submitit would print a traceback for a run that ended in order.
            sys.exit(status)


@dataclass(frozen=True)
class CarriedPreparation:
    """Makes the data ready in a job, where the login node may not compute."""

    specs: tuple[str, ...]
    """One :class:`JobSpec` as JSON for each data set."""

    def __call__(self) -> None:
        from dpeval.data import prepare

        for spec in self.specs:
            config = rebuild(JobSpec.model_validate_json(spec).config)
            point_at_scratch(config)
            prepare(config.dataset, print)


def rebuild(plain: Mapping[str, Any]) -> Config:
    """The checked configuration from its plain form (:func:`dpeval.config.to_plain`)."""
    config = TypeAdapter(Config).validate_python(plain)
    check(config)
    return config


def carry(folder: Path) -> int:
    """Run what lies in `folder` and return the job's exit status.

    Every ending that lets this process act leaves a record: also a signal before the first
    step, and an interruption after which the run goes back to the queue.
    """
    spec = JobSpec.model_validate_json((folder / SPEC_NAME).read_bytes())
    node = place(spec, folder, os.environ)
    if _is_done(folder):
        return 0
    config = rebuild(spec.config)
    point_at_scratch(config)
    if spec.launcher == "oar":
        show_oar_gpus(os.environ)
    if node is not None and node.index > 0:
        return assist(config, folder, spec, node)
    attempts = _note_attempt(folder, spec)
    job = describe_job(spec.launcher, os.environ)
    with _told_to_end() as stops:
        others = Watch(job, os.environ)
        made = _execute(config, folder, spec, node)
        others.look()
    details, warnings = others.told()
    job = job.model_copy(update={"details": {**job.details, **details}})
    made = made.model_copy(update={"scheduler": job, "warnings": [*made.warnings, *warnings]})
    record.write(made, folder / record.FILE_NAME)
    may_go_on = made.status == "interrupted" and attempts <= spec.requeue
    if may_go_on and ("SIGUSR2" in stops or is_preempted(spec.launcher)):
        return requeue(spec.launcher)
    return 0 if made.status in ("ok", "skipped") else 1


def assist(config: Config, folder: Path, spec: JobSpec, node: Node) -> int:
    """Carry a further node's ranks of a run that node 0 records; return the exit status."""
    with _told_to_end():
        session = _session(folder=None)
        return 0 if session.assist(session.job(config, folder, spec.overrides, node)) else 1


def place(spec: JobSpec, folder: Path, environment: Mapping[str, str]) -> Node | None:
    """This process's node among those of its run; None where there is only one."""
    count = int(spec.config["num_nodes"])
    if count == 1:
        return None
    if spec.launcher == "slurm":
        job, restart = environment["SLURM_JOB_ID"], environment.get("SLURM_RESTART_COUNT", "0")
        return Node(int(environment["SLURM_NODEID"]), count, folder, f"{job}-{restart}")
    index = int(environment.get(NODE_VARIABLE, "0"))
    return Node(index, count, folder, environment["OAR_JOB_ID"])


@contextlib.contextmanager
def other_nodes(spec: JobSpec, config: Config, node: Node | None) -> Iterator[None]:
    """Start this program on the further nodes of an OAR job, which OAR itself leaves idle."""
    if spec.launcher != "oar" or node is None:
        yield
        return
    hosts = oar_nodes(os.environ)
    if len(hosts) < node.count:
        raise LaunchError(f"num_nodes={node.count}, and OAR gave {', '.join(hosts) or 'none'}")
    started = []
    try:
        for index, host in enumerate(hosts[1 : node.count], 1):
            script = node.folder / f".node-{index}-{node.attempt}.sh"
            # The environment may hold secrets: nobody else may read it, not for a moment.
            with os.fdopen(os.open(script, os.O_WRONLY | os.O_CREAT, 0o700), "w") as file:
                file.write(_node_script(index))
            command = f"/bin/bash {shlex.quote(str(script))} {shlex.quote(str(node.folder))}"
            log = (node.folder / f"node-{index}.log").open("ab")
            with log:
                started.append(
                    subprocess.Popen(
                        [*config.site.remote_shell, host, command],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        _check_started(started, node.folder)
        yield
    finally:
        for process in started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.terminate()


def _check_started(started: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    """A remote shell that is refused ends at once; nobody should wait for its node.

    Raises:
        LaunchError: one has ended already.
    """
    deadline_s = time.monotonic() + _REFUSAL_S
    while time.monotonic() < deadline_s:
        for index, process in enumerate(started, 1):
            if process.poll():
                log = (folder / f"node-{index}.log").read_text(errors="replace").strip()
                raise LaunchError(
                    f"node {index} could not be started (site.remote_shell, status "
                    f"{process.returncode}): {log[-300:]}"
                )
        time.sleep(0.1)


def _node_script(index: int) -> str:
    """A shell script that goes on, on another node, in the environment of this process."""
    carried = {
        name: value
        for name, value in os.environ.items()
        if name.isidentifier() and name not in ("HOSTNAME", "PWD", "CUDA_VISIBLE_DEVICES")
    }
    carried[NODE_VARIABLE] = str(index)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in carried.items()]
    return "\n".join(
        [
            *exports,
            f"cd {shlex.quote(str(Path.cwd()))} || exit 1",
            f'exec {shlex.quote(sys.executable)} -u -m dpeval.launchers.job "$1"',
            "",
        ]
    )


def _is_done(folder: Path) -> bool:
    path = folder / record.FILE_NAME
    return path.exists() and record.read(path).status == "ok"


def _note_attempt(folder: Path, spec: JobSpec) -> int:
    """Add a line to the attempts and return how many there are."""
    path = folder / ATTEMPTS_NAME
    attempt = Attempt(
        job_id=describe_job(spec.launcher, os.environ).job_id,
        host=socket.gethostname(),
        at_s=time.time(),
    )
    # What an earlier attempt told of itself is no news of this one.
    (folder / PROGRESS_NAME).unlink(missing_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(attempt.model_dump_json() + "\n")
    return len(path.read_text(encoding="utf-8").splitlines())


def _session(folder: Path | None) -> Session:
    """A session that prints to the job's log and leaves its progress in `folder`."""
    from rich.console import Console

    from dpeval.run.console import PlainReporter
    from dpeval.run.job import Job, Snapshot
    from dpeval.run.session import Session

    class JobReporter(PlainReporter):
        """Prints to the job's log, and tells `dpeval.status` how far the run is."""

        _told_s = float("-inf")

        def progress(self, job: Job, snapshot: Snapshot) -> None:
            super().progress(job, snapshot)
            if folder is None or time.monotonic() - self._told_s < _PROGRESS_EVERY_S:
                return
            self._told_s = time.monotonic()
            now = Progress(
                host=socket.gethostname(),
                stage=snapshot.stage.name.lower(),
                steps=snapshot.steps,
                img_per_s=snapshot.img_per_s,
                at_s=time.time(),
            )
            write_progress(now, folder)

    return Session(JobReporter(Console(highlight=False, soft_wrap=True)))


def _execute(config: Config, folder: Path, spec: JobSpec, node: Node | None) -> Record:
    from dpeval.run import record_builder

    try:
        session = _session(folder)
        job = session.job(config, folder, spec.overrides, node)
    except KeyboardInterrupt:
        # Importing torch takes seconds, minutes on a slow file system: time for a signal.
        message = "told to end by the scheduler while the program was starting"
        cause = Cause(kind="interrupt", message=message)
        job_record = describe_job(spec.launcher, os.environ)
        return unmeasured(spec, "interrupted", cause, job_record)
    begun = datetime.now().astimezone().isoformat(timespec="milliseconds")
    try:
        with other_nodes(spec, config, node):
            return session.execute(job)
    except KeyboardInterrupt:
        message = "told to end by the scheduler before the first step"
        cause = Cause(kind="interrupt", message=message)
        return record_builder.blank(
            job, session.environment, begun, status="interrupted", cause=cause
        )
    except DpevalError as error:
        cause = Cause(kind="setup", message=str(error), exception=type(error).__name__)
        return record_builder.blank(job, session.environment, begun, status="failed", cause=cause)


@contextlib.contextmanager
def _told_to_end() -> Iterator[list[str]]:
    """Turn the scheduler's early warning (USR2) into the stop that a run already understands.

    The fork server is started while USR2 is ignored: it keeps that over its exec, and so do the
    ranks; where the scheduler signals every process of a job they would die of it otherwise.
    """

    stops: list[str] = []

    def warn(number: int, _frame: FrameType | None) -> None:
        stops.append(signal.Signals(number).name)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    forkserver.warm_up()
    previous = signal.signal(signal.SIGUSR2, warn)
    # After a preemption SLURM sends CONT and TERM; submitit has bent both to nothing.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    try:
        yield stops
    finally:
        signal.signal(signal.SIGUSR2, previous)


def point_at_scratch(config: Config) -> None:
    """Let the data lie where the site wants it, unless the configuration names a folder."""
    if config.site.scratch is not None and config.dataset.root is None:
        os.environ["DPEVAL_DATA"] = os.path.expandvars(config.site.scratch)


def is_preempted(launcher: str) -> bool:
    """Whether this job has to give way to another, not because somebody cancelled it.

    SLURM sends SIGTERM for both, and requeues a preempted job itself only if that outlives its
    grace time, which a run that ends cleanly does not.
    """
    if launcher != "slurm":
        return False
    done = subprocess.run(
        ["scontrol", "show", "job", os.environ["SLURM_JOB_ID"]],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    found = re.search(r"\bPreemptTime=(\S+)", done.stdout)
    return found is not None and found[1] not in ("None", "Unknown", "N/A")


def requeue(launcher: str) -> int:
    """Send this job back to the queue; return the exit status with which it must end."""
    if launcher == "oar":
        return OAR_RESUBMIT_STATUS
    done = subprocess.run(
        ["scontrol", "requeue", os.environ["SLURM_JOB_ID"]],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if done.returncode:
        print(f"dpeval: not requeued: {done.stderr.strip()}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(carry(Path(sys.argv[1])))
