"""``dpeval COMMAND …`` or ``python -m dpeval COMMAND …``: all commands behind one name."""

from __future__ import annotations

import importlib
import sys

from dpeval.util import entry


class Command:
    """One command of dpeval, also ``python -m dpeval.NAME``."""

    # Not a NamedTuple: a file of the working directory may be called typing.py, see entry.start.
    def __init__(self, name: str, meaning: str, example: str, module: str) -> None:
        """State what a user may call.

        Args:
            name: what follows ``dpeval``.
            meaning: one line.
            example: a whole command line.
            module: has a function `main` that reads ``sys.argv`` and returns the exit status.
        """
        self.name, self.meaning, self.example, self.module = name, meaning, example, module


COMMANDS = (
    Command("train", "measure one run, or a sweep with -m",
            "dpeval train -m num_devices=1,2 batch=16,32", "dpeval.train"),
    Command("analyze", "turn records into a recommendation, figures and a report",
            "dpeval analyze outputs/default", "dpeval.analyze"),
    Command("export", "write records as runs of MLflow, TensorBoard or W&B",
            "dpeval export outputs/default --to tensorboard", "dpeval.export"),
    Command("status", "show the status of every run of a sweep",
            "dpeval status outputs/default/SWEEP --watch", "dpeval.status"),
    Command("cancel", "end the jobs of a sweep",
            "dpeval cancel outputs/default/SWEEP", "dpeval.cancel"),
    Command("fit", "find the largest batch that fits into memory",
            "dpeval fit model=resnet50 hardware.memory_gib=4", "dpeval.fit"),
    Command("data", "prepare, verify, list and delete data",
            "dpeval data prepare dataset=imagenette_160", "dpeval.data.__main__"),
    Command("input_bench", "measure how fast each loader can feed a rank",
            "dpeval input_bench dataset=imagenette_160", "dpeval.input_bench"),
)  # fmt: skip


def main() -> int:
    """The command line; returns the exit status."""
    return entry.start(lambda: _run)


def _run() -> int:
    asked = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if asked in ("-h", "--help", "help"):
        print(overview())
        return 0
    if asked in ("-V", "--version"):
        from dpeval.util.version import __version__

        print(f"dpeval {__version__}")
        return 0
    found = next((one for one in COMMANDS if one.name == asked.replace("-", "_")), None)
    if found is None:
        from dpeval.errors import nearest

        names = [one.name for one in COMMANDS]
        print(
            f"dpeval: there is no command '{asked}'{nearest(asked, names)}; there are "
            f"{', '.join(names)}",
            file=sys.stderr,
        )
        return 2
    sys.argv[:2] = [f"dpeval {found.name}"]
    status: int = importlib.import_module(found.module).main()
    return status


def overview() -> str:
    """Every command with one line and an example."""
    lines = [
        "How many devices should this training run on, at what batch size, and where does the "
        "rest of the speed go?",
        "",
        "usage: dpeval COMMAND …, or python -m dpeval COMMAND …",
        "",
    ]
    for one in COMMANDS:
        lines += [f"  {one.name:<12} {one.meaning}", f"  {'':<12}   {one.example}"]
    return "\n".join([*lines, "", "For details: dpeval COMMAND --help"])


if __name__ == "__main__":
    sys.exit(main())
