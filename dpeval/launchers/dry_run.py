"""The dry run: what a sweep would request, in words and in the scheduler's own syntax."""

from __future__ import annotations

from collections.abc import Sequence

from dpeval.launchers.schedulers.resources import Group, Resources
from dpeval.run.job import Job, take_turns
from dpeval.util.display.plural import counted


def describe_groups(
    groups: Sequence[Group], labels: Sequence[str], texts: Sequence[str], cost: str
) -> str:
    """The dry run's text: each submission with its jobs and resources, then the totals.

    Args:
        groups: the submissions.
        labels: of every run, by its position in the sweep.
        texts: every submission in the scheduler's own syntax, in the order of `groups`.
        cost: the sweep's device-hours, in words.
    """
    lines: list[str] = []
    for index, (group, text) in enumerate(zip(groups, texts, strict=True), 1):
        each = ", each" if len(group.jobs) > 1 else ""
        lines.append(
            f"submission {index} of {len(groups)}: {counted(len(group.jobs), 'job')}{each} with "
            f"{resource_words(group.resources)}"
        )
        for job in group.jobs:
            if len(job) > 1:
                lines.append(f"  {counted(len(job), 'run')} in one job:")
            indent = " " * (4 if len(job) > 1 else 2)
            lines += [f"{indent}{labels[position]}" for position in job]
        lines += [f"  | {line}".rstrip() for line in text.splitlines()]
        lines.append("")
    runs = sum(len(group.members) for group in groups)
    jobs = sum(len(group.jobs) for group in groups)
    lines.append(cost)
    lines.append(f"{counted(runs, 'run')} in {counted(jobs, 'job')}; nothing was submitted")
    return "\n".join(lines)


def describe_local(jobs: Sequence[Job]) -> str:
    """The dry run on this machine: every run in order, and why any would be skipped or fail."""
    lines: list[str] = []
    total_s = 0.0
    how = "taking turns" if take_turns(jobs) else "one after another"
    for number, job in enumerate(jobs, 1):
        why = "" if job.plan.skip is None else f": skipped, {job.plan.skip}"
        if job.fault is not None:
            why = f": fails, {job.fault}"
        lines.append(f"[{number}/{len(jobs)}] {' '.join(job.overrides) or 'defaults'}{why}")
        if not why:
            total_s += job.config.measure.longest_s
    lines.append(
        f"{counted(len(jobs), 'run')} here, {how}, at most {total_s / 60:.0f} min of "
        "measuring (if every run takes its whole time limit); nothing was run"
    )
    return "\n".join(lines)


def describe_plugin(name: str, labels: Sequence[str]) -> str:
    """The dry run of launcher `name`, which is not dpeval's: every run, but no request."""
    lines = [f"[{number}/{len(labels)}] {label}" for number, label in enumerate(labels, 1)]
    total = f"{counted(len(labels), 'run')} through hydra/launcher={name}; nothing was submitted"
    return "\n".join([*lines, total])


def resource_words(resources: Resources) -> str:
    """``1 whole node with 4 cores, 2 GPUs, 6 GiB for at most 8 min``."""
    words = [counted(resources.cores, "core")]
    if resources.gpus:
        words.append(counted(resources.gpus, "GPU"))
    if resources.all_memory:
        words.append("all memory")
    elif resources.memory_mib is not None:
        words.append(f"{resources.memory_mib / 1024:g} GiB")
    nodes = counted(resources.nodes, "whole node" if resources.exclusive else "node")
    each = " each" if resources.nodes > 1 else ""
    return f"{nodes} with {', '.join(words)}{each} for at most {resources.time_min} min"
