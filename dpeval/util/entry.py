"""The start of every command: safe streams, and imports that the working directory cannot break."""

from __future__ import annotations

# Only what Python itself has loaded by now: a file of the working directory may have the name of
# anything else that is imported before find_own_parts().
import contextlib
import os
import sys
from collections.abc import Callable, Iterator

TYPE_CHECKING = False  # type checkers take it for typing's
if TYPE_CHECKING:
    from pathlib import Path

SAFE_PATH = "PYTHONSAFEPATH"
PACKAGES = ("site-packages", "dist-packages")


def start(load: Callable[[], Callable[[], int]]) -> int:
    """Run a command; returns its exit status.

    Args:
        load: imports the command and returns it. If that fails because a file in the working
            directory has the name of a module, one line says so.
    """
    find_own_parts()
    from dpeval.util.display import output

    output.protect()
    try:
        with _noted_interrupts() as interrupts:
            command = load()
    except (Exception, KeyboardInterrupt) as error:
        # A library that is being imported may replace KeyboardInterrupt by an error of its own.
        if interrupts or isinstance(error, KeyboardInterrupt):
            print("dpeval: interrupted", file=sys.stderr)
            return 130
        file = shadowing_file(error)
        if file is None:
            raise
        print(
            f"dpeval: {file} is imported in place of the module '{file.stem}' that dpeval needs; "
            "rename it, or start dpeval from another directory",
            file=sys.stderr,
        )
        return 2
    return command()


@contextlib.contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """Collect the interrupts (Ctrl-C) that are raised as KeyboardInterrupt."""
    import signal

    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_default:
        signal.signal(signal.SIGINT, note)
    try:
        yield received
    finally:
        if is_default:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def find_own_parts(*, in_job: bool = False) -> None:
    """Put the working directory on the import path, after the standard library and before packages.

    The user's models are found there, even by an installed script, and a ``random.py`` beside them
    does not replace the standard module. If the user keeps the directory off the path, it stays so.

    Args:
        in_job: this process was started with :func:`safe_options`.
    """
    if sys.flags.safe_path if not in_job else SAFE_PATH in os.environ:
        return
    if in_clone():
        return  # the clone's dpeval must come before an installed one
    here = os.getcwd()  # noqa: PTH109  # pathlib, see above
    others = [path for path in sys.path if path not in ("", here)]
    packages = (at for at, path in enumerate(others) if path.endswith(PACKAGES))
    others.insert(next(packages, len(others)), here)
    sys.path[:] = others


def in_clone() -> bool:
    """Whether the working directory is a clone of dpeval's repository."""
    return os.path.isfile("dpeval/util/entry.py")  # noqa: PTH113  # pathlib, see above


def safe_options() -> list[str]:
    """Python's options with which a job ignores files of the working directory until it calls
    :func:`find_own_parts`."""
    return [] if in_clone() else ["-P"]


@contextlib.contextmanager
def children_find_parts_last() -> Iterator[None]:
    """Keep Python processes started here from looking for modules in the working directory first.

    The environment variable that does so is for these processes only: remove it from the
    environment that they pass on.
    """
    if in_clone() or sys.flags.safe_path:
        yield
        return
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        del os.environ[SAFE_PATH]


def shadowing_file(error: BaseException) -> Path | None:
    """The file in the working directory that was imported instead of the intended module."""
    import traceback  # late, see above
    from pathlib import Path

    here = Path.cwd()
    named = [getattr(error, "path", None)]
    named += [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    for name in reversed([one for one in named if one]):
        path = Path(name)
        top = path.relative_to(here).parts[0] if path.is_relative_to(here) else ""
        own = here / top
        is_module = own.suffix == ".py" or (own / "__init__.py").is_file()
        if top and is_module and top != "dpeval":
            return own
    return None
