"""The command line and the script of an OAR submission, which the dry run also prints."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")


def oarsub_command(parameters: Mapping[str, Any], script: Path, count: int | None) -> list[str]:
    """The arguments of oarsub.

    submitit-oar 1.1.2 writes options to a file and splits its lines at white space, which breaks
    names, folders and properties that contain spaces; here every option is one argument.

    Args:
        parameters: the executor's keyword arguments.
        script: the file that the job runs.
        count: elements of the array; None or 1: a single job.
    """
    options: dict[str, Any] = {
        "n": parameters["n"],
        # OAR refuses log paths with a space or a quote, so the script redirects its output.
        "O": "/dev/null",
        "E": "/dev/null",
        "d": "/",
        **({"q": parameters["queue"]} if "queue" in parameters else {}),
        **({"array": str(count)} if count is not None and count > 1 else {}),
        **parameters["additional_parameters"],
    }
    command = ["oarsub"]
    for key, value in options.items():
        flag = f"-{key}" if len(key) == 1 else f"--{key}"
        if value is True:
            command.append(flag)
            continue
        for item in value if isinstance(value, list) else [value]:
            command += [flag, str(item)]
    # Quoted: OAR runs this through the user's shell.
    return [*command, f"/bin/bash {shlex.quote(str(script))}"]


def waves(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """`items` in order, in chunks of `size`."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


def oar_script(
    command: str,
    folder: Path,
    directory: Path,
    setup: Sequence[str],
    environment: Mapping[str, str],
    stderr_to_stdout: bool = False,
) -> str:
    """The script of an OAR job; it sets the environment, because OAR passes none on.

    The logs of job N are ``N_0_log.out`` and ``.err`` in `folder`, as submitit expects.
    ``exec`` replaces the shell with Python, so that OAR's checkpoint signal reaches it.

    Args:
        command: what to run at the end.
        folder: where the logs go.
        directory: the working directory.
        setup: shell lines to run before `command`.
        environment: variables to set.
        stderr_to_stdout: write one log instead of two.
    """
    logs = shlex.quote(f"{folder}/") + '"${OAR_JOB_ID}"_0_log'
    errors = "2>&1" if stderr_to_stdout else f"2>>{logs}.err"
    lines = ["#!/bin/bash", f"exec </dev/null >>{logs}.out {errors}"]
    lines += [
        f"export {name}={shlex.quote(value)}"
        for name, value in environment.items()
        if name.isidentifier()
    ]
    lines += [f"cd {shlex.quote(str(directory))} || exit 1", *setup]
    lines += ["export SUBMITIT_EXECUTOR=oar", f"exec {command}", ""]
    return "\n".join(lines)
