"""Where a sweep's data is stored: one rule for the submitting process and its jobs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from dpeval.config import Config, scratch_folder
from dpeval.errors import ConfigError

_VARIABLE = "DPEVAL_DATA"


@contextlib.contextmanager
def data_at(config: Config, *, is_needed: bool = False) -> Iterator[None]:
    """Store data in the site's scratch folder within a context, unless the user names another.

    Jobs that are submitted in it inherit the folder.

    Args:
        config: a run's configuration.
        is_needed: whether this process itself prepares data there.

    Raises:
        ConfigError: `is_needed`, and the folder's name has a variable that is not set.
    """
    before = os.environ.get(_VARIABLE)
    try:
        point_at_scratch(config)
    except ConfigError:
        if is_needed:
            raise
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = before


def point_at_scratch(config: Config) -> None:
    """Store data in the site's scratch folder from now on, unless the user names another.

    Raises:
        ConfigError: the folder's name has a variable that is not set.
    """
    if config.dataset.root is not None or config.task.has_own_data:
        return
    folder = scratch_folder(config.site, os.environ)
    if folder is not None:
        os.environ[_VARIABLE] = folder
