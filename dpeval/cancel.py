"""``python -m dpeval.cancel <sweep>``: end a sweep's jobs, and only them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    """The command line; returns the exit status."""
    from dpeval import cli

    parser = argparse.ArgumentParser(prog="python -m dpeval.cancel", description=__doc__)
    parser.add_argument("sweep", type=Path, help="folder of a sweep, outputs/<study>/<time>")
    asked = parser.parse_args()

    def command() -> None:
        from dpeval.launchers import manifest as manifests
        from dpeval.launchers.scheduler import scheduler
        from dpeval.launchers.wait import cancel

        manifest = manifests.read(asked.sweep)
        ended = cancel(manifest, asked.sweep, scheduler(manifest.launcher))
        print(f"{len(ended)} jobs cancelled" + (f": {' '.join(ended)}" if ended else ""))

    return cli.run_main(command)


if __name__ == "__main__":
    sys.exit(main())
