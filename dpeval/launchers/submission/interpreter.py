"""Which Python a job will run, checked before it waits in a queue for hours."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dpeval.config import SiteConfig
from dpeval.errors import LaunchError

_NEEDED = ("torch", "submitit", "dpeval")
_LOOK = (
    "import importlib.util as found; "
    f"print('missing', *(name for name in {_NEEDED} if found.find_spec(name) is None))"
)
_LIMIT_S = 60.0
_FILES = (".sif", ".sqsh", ".img")


def check_interpreter(site: SiteConfig, setup: Sequence[str], say: Callable[[str], object]) -> str:
    """Check that the jobs' Python can import what it needs after `setup`; return its name.

    Args:
        site: the cluster's settings.
        setup: shell lines that a job runs first.
        say: prints a warning, where `setup` cannot be tried on this machine.

    Raises:
        LaunchError: it cannot, or the container's image does not exist.
    """
    image = site.container.image
    if image is not None:
        is_file = image.startswith(("/", "./", "../", "~")) or image.endswith(_FILES)
        if is_file and "://" not in image and not Path(image).expanduser().exists():
            raise LaunchError(f"site.container.image={image} does not exist here")
        return f"{site.container.python} of {image}"
    if not setup:
        return sys.executable
    script = "\n".join([*setup, f"exec {shlex.quote(sys.executable)} -c {shlex.quote(_LOOK)}"])
    try:
        done = subprocess.run(
            ["bash", "-c", script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIMIT_S,
            check=False,
        )
        lines, errors = done.stdout.split("\n"), done.stderr
    except subprocess.TimeoutExpired:
        lines, errors = [], f"it took more than {_LIMIT_S:.0f} s"
    answer = next((line.split() for line in reversed(lines) if line.startswith("missing")), None)
    if answer is None:
        why = (errors.strip() or "no message").splitlines()[-1]
        say(f"warning: {sys.executable} does not start after site.setup on this machine: {why}")
    elif answer[1:]:
        raise LaunchError(
            f"the jobs will run {sys.executable}, which cannot find {', '.join(answer[1:])} after "
            "site.setup; load the same modules here, or change site.setup"
        )
    return sys.executable
