"""Sittings: the runs of a sweep take turns on one machine, so that drift cancels in their
ratios."""
