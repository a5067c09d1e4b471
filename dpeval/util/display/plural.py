"""Counts in sentences: ``1 run``, ``2 runs``, ``all 3 runs``."""

from __future__ import annotations


def inflected(count: int, noun: str, *, plural: str = "") -> str:
    """`noun` in the singular or plural, as `count` requires, without the count.

    Args:
        count: the number.
        noun: in the singular.
        plural: for nouns whose plural is not formed with s (``processes``).
    """
    return noun if count == 1 else plural or f"{noun}s"


def counted(count: int, noun: str, *, plural: str = "") -> str:
    """`count` and `noun`: ``1 run``, ``2 runs``; arguments as for :func:`inflected`.

    Args:
        count: how many.
        noun: in the singular.
        plural: if adding an s is not enough (``processes``).
    """
    return f"{count} {inflected(count, noun, plural=plural)}"


def some_of(count: int, total: int, noun: str) -> str:
    """``no run``, ``the run`` (of one), ``1 of 2 runs``, ``both runs``, ``all 3 runs``.

    Args:
        count: the number meant.
        total: the number in all, at least 1.
        noun: in the singular.
    """
    if not count:
        return f"no {noun}"
    if total == 1:
        return f"the {noun}"
    if count < total:
        return f"{count} of {total} {noun}s"
    return f"both {noun}s" if total == 2 else f"all {total} {noun}s"
