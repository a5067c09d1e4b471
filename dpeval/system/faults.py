"""Errors of the file system and the machine, as one line that says what to do."""

from __future__ import annotations

import errno

from dpeval.errors import MachineError

_ELSEWHERE = (
    "write to another folder, as in hydra.run.dir=FOLDER (one run) or hydra.sweep.dir=FOLDER (-m), "
    "or start dpeval from a folder that you can write to"
)
_SPACE = "free some space there, or write to another folder"
ADVICE = {
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.EROFS: _ELSEWHERE,
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.ENAMETOOLONG: "choose shorter names: study, hydra.run.dir, hydra.sweep.subdir",
    errno.ENOTDIR: "a file is in the place of a folder; rename it, or write to another folder",
    errno.ELOOP: "correct the symbolic links in this path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the machine has too many open files; stop other programs",
    errno.EAGAIN: "raise the limit of processes (ulimit -u), or stop other programs",
    errno.ENOMEM: "the machine is out of memory; stop other programs",
    errno.ESTALE: "the network file system has lost the file; try again",
    errno.EIO: "the disk or network file system has failed",
}
"""What to do about a system error, by its number. Other errors are bugs of dpeval."""
_MOST_PATH = 200


def of_system(error: OSError) -> MachineError | None:
    """The MachineError for `error`; None if the machine is not at fault."""
    advice = ADVICE.get(error.errno or 0)
    if advice is None:
        return None
    path = str(error.filename or "")
    shown = path if len(path) <= _MOST_PATH else f"{path[:_MOST_PATH]}…"
    return MachineError(f"{shown}{': ' if shown else ''}{error.strerror}; {advice}")
