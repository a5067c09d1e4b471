"""What a scheduler's job starts: submitit, if nobody else can have written what it will load."""

from __future__ import annotations

import sys
from pathlib import Path

from dpeval.launchers.in_job.job_signals import hold
from dpeval.util.files import only_we_write


def main() -> int:
    """Run the pickled submission in the folder that the command line names.

    The folder was private when the job was submitted. Where a group can write to a folder above it,
    another may have taken its place since, and a pickle is code.
    """
    folder = Path(sys.argv[1])
    if not only_we_write(folder):
        print(
            f"dpeval: others can write to {folder}, from which this job would load code, so it is "
            "not started; submit the sweep from a folder that only you can write to",
            file=sys.stderr,
        )
        return 2
    hold()
    # Late: the check comes before anything that loads code from the folder.
    from submitit.core.submission import submitit_main

    submitit_main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
