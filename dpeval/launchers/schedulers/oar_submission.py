"""The command line and the script that OAR is given; the dry run prints the very same."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")


def oarsub_command(parameters: Mapping[str, Any], script: Path, count: int | None) -> list[str]:
    """The argument vector of oarsub.

    submitit-oar 1.1.2 writes options to a file and splits its lines on white space, so that a
    name, folder or property with a space falls apart; here every option is one argument.
    """
    options: dict[str, Any] = {
        "n": parameters["n"],
        # OAR refuses log files with a space or a quote in their path: the script redirects.
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
    # OAR starts this through a shell as the user, hence the quotes.
    return [*command, f"/bin/bash {shlex.quote(str(script))}"]


def waves(items: Sequence[Item], at_once: int) -> Iterator[Sequence[Item]]:
    """`items` in order, `at_once` at a time."""
    for first in range(0, len(items), at_once):
        yield items[first : first + at_once]


def oar_script(
    command: str,
    folder: Path,
    directory: Path,
    setup: Sequence[str],
    environment: Mapping[str, str],
    stderr_to_stdout: bool = False,
) -> str:
    """The file that an OAR job runs: OAR carries no environment into a job, so it sets it.

    Args:
        command: what to run at the end.
        folder: where the logs go.
        directory: the working directory.
        setup: shell lines to run before `command`.
        environment: variables to set.
        stderr_to_stdout: write one log instead of two.

    The logs of job N are ``N_0_log.out`` and ``.err`` in `folder`, as submitit expects.
    ``exec`` puts Python in the shell's place, so that OAR's checkpoint signal reaches it.
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
