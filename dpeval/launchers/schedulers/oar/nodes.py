"""Start a run on all nodes of its OAR job: OAR itself starts only the first."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dpeval.config import Config
from dpeval.errors import LaunchError
from dpeval.run.job import Node
from dpeval.system.gpu.libraries import VISIBLE_DEVICES
from dpeval.util.entry import safe_options

NODE_VARIABLE = "DPEVAL_NODE"
"""Set on the nodes that node 0 of an OAR job starts: the node's index."""
_REFUSAL_S = 2.0


def hosts(environment: Mapping[str, str]) -> list[str]:
    """The hosts of this job, starting with the first node."""
    try:
        lines = Path(environment["OAR_NODEFILE"]).read_text(encoding="utf-8").split()
    except (KeyError, OSError):
        return []
    return list(dict.fromkeys(lines))


@contextlib.contextmanager
def started(config: Config, node: Node | None) -> Iterator[None]:
    """Run this program on the other nodes too, for the duration of the context.

    Raises:
        LaunchError: OAR allocated fewer nodes than requested, or the remote shell fails.
    """
    if node is None:
        yield
        return
    given = hosts(os.environ)
    if len(given) < node.count:
        raise LaunchError(f"num_nodes={node.count}, but OAR allocated {', '.join(given) or 'none'}")
    shells: list[subprocess.Popen[bytes]] = []
    scripts: list[Path] = []
    try:
        for index, host in enumerate(given[1 : node.count], 1):
            script = node.folder / f".node-{index}-{node.attempt}.sh"
            # The environment may contain secrets: nobody else may read the file, and it is removed.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with os.fdopen(os.open(script, flags, 0o700), "w") as file:
                scripts.append(script)
                file.write(_node_script(index))
            command = f"/bin/bash {shlex.quote(str(script))} {shlex.quote(str(node.folder))}"
            log = (node.folder / f"node-{index}.log").open("ab")
            with log:
                shells.append(
                    subprocess.Popen(
                        [*config.site.remote_shell, host, command],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        _check_started(shells, node.folder)
        yield
    finally:
        for process in shells:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.terminate()
        for script in scripts:
            script.unlink(missing_ok=True)


def _check_started(shells: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    """Check that no remote shell fails at once; the run would wait for that node in vain.

    Raises:
        LaunchError: one has failed.
    """
    deadline_s = time.monotonic() + _REFUSAL_S
    while time.monotonic() < deadline_s:
        for index, process in enumerate(shells, 1):
            if process.poll():
                log = (folder / f"node-{index}.log").read_text(errors="replace").strip()
                raise LaunchError(
                    f"cannot start node {index}: site.remote_shell exited with status "
                    f"{process.returncode}: {log[-300:]}"
                )
        time.sleep(0.1)


def _node_script(index: int) -> str:
    """A shell script that runs this program on another node, in this process's environment."""
    exported = {
        name: value
        for name, value in os.environ.items()
        if name.isidentifier() and name not in ("HOSTNAME", "PWD", *VISIBLE_DEVICES)
    }
    exported[NODE_VARIABLE] = str(index)
    python = shlex.join([sys.executable, *safe_options()])
    exports = [f"export {name}={shlex.quote(value)}" for name, value in exported.items()]
    return "\n".join(
        [
            *exports,
            f"cd {shlex.quote(str(Path.cwd()))} || exit 1",
            f'exec {python} -u -m dpeval.launchers.in_job.run_job "$1"',
            "",
        ]
    )
