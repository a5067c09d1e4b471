"""Which runs share a job, and what that costs: pure functions.

Runs that share a job share its node, so differences between nodes do not affect their ratios, and a
sweep waits in the queue only once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dpeval.config import Config, LauncherOptions, SiteConfig, curve_of
from dpeval.launchers.schedulers.resources import (
    JobRequest,
    NodeSize,
    Resources,
    override,
    together,
)
from dpeval.util.display.plural import counted


@dataclass(frozen=True)
class Need:
    """One run to submit, and what it needs."""

    position: int
    """In the sweep."""
    config: Config
    resources: Resources
    """Before ``hydra/launcher`` overrides any of it."""


def job_of(runs: Sequence[Need], options: LauncherOptions) -> JobRequest:
    """The job that `runs` share.

    Args:
        runs: at one site, on one node; or one run.
        options: the keys of ``hydra/launcher``.
    """
    needed = together([run.config for run in runs], [run.resources for run in runs], options)
    return JobRequest(
        members=tuple(run.position for run in runs),
        resources=override(needed, options),
        site=runs[0].config.site,
    )


def jobs_of(
    needs: Sequence[Need],
    options: LauncherOptions,
    longest_min: Callable[[SiteConfig], int | None],
    pack: bool | None,
) -> list[JobRequest]:
    """The jobs of a sweep: runs that fit on one node share a job.

    Each repetition has its own job, because it shows differences between processes and nodes. So
    has a run on several nodes. Runs are divided further if they exceed a job's time limit.

    Args:
        needs: the runs.
        options: the keys of ``hydra/launcher``.
        longest_min: the longest time limit of a site's jobs, min; None: unlimited.
        pack: whether runs share jobs; None: as ``sweep.order`` asks, and if that is ``auto`` at
            sites that allocate whole nodes.
    """
    made: list[JobRequest] = []
    for runs in _sharing(needs, pack):
        limit_min = options.timeout_min
        if limit_min is None and len(runs) > 1:
            limit_min = longest_min(runs[0].config.site)
        made += [job_of(some, options) for some in _in_time(runs, options, limit_min)]
    return made


def _sharing(needs: Sequence[Need], pack: bool | None) -> list[list[Need]]:
    """The runs that may share a job, in order of first appearance."""
    found: dict[tuple[object, ...], list[Need]] = {}
    for need in needs:
        config = need.config
        key: tuple[object, ...] = (need.position,)
        if _is_to_share(config, pack) and config.num_nodes == 1:
            key = (str(config.site), config.hardware.kind, config.repetition)
        found.setdefault(key, []).append(need)
    return list(found.values())


def apart_words(needs: Sequence[Need], pack: bool | None) -> str:
    """Which runs have jobs of their own although runs are to share them.

    Empty if none has, or if nobody asked for shared jobs and no run could have one.

    Args:
        needs: the runs.
        pack: see :func:`jobs_of`.
    """
    wide = [need for need in needs if need.config.num_nodes > 1 and _is_to_share(need.config, pack)]
    if not wide or (pack is None and len(wide) == len(needs)):
        return ""
    have = "has a job of its own" if len(wide) == 1 else "have a job each"
    return (
        f"{counted(len(wide), 'run')} on several nodes {have}: only runs on one node share a job "
        "and take turns"
    )


def _is_to_share(config: Config, pack: bool | None) -> bool:
    if pack is not None:
        return pack
    if config.sweep.order == "auto":
        return config.site.exclusive
    return config.sweep.order == "interleaved"


def _in_time(
    runs: Sequence[Need], options: LauncherOptions, limit_min: int | None
) -> Iterator[list[Need]]:
    """Divide `runs` so that each part fits into `limit_min`; runs to compare stay together."""
    curves: dict[str, list[Need]] = {}
    for run in runs:
        curves.setdefault(str(curve_of(run.config)), []).append(run)
    part: list[Need] = []
    for curve in curves.values():
        whole = [curve] if _fits(curve, options, limit_min) else [[run] for run in curve]
        for some in whole:
            if part and not _fits([*part, *some], options, limit_min):
                yield part
                part = []
            part = [*part, *some]
    if part:
        yield part


def _fits(runs: Sequence[Need], options: LauncherOptions, limit_min: int | None) -> bool:
    if limit_min is None:
        return True
    needed = together([run.config for run in runs], [run.resources for run in runs], options)
    return needed.time_min <= limit_min


def without_largest(runs: Sequence[Need], options: LauncherOptions) -> list[JobRequest]:
    """Split the job of `runs`, which fits on no node: the largest runs and the others.

    Args:
        runs: of one job that the scheduler has refused.
        options: the keys of ``hydra/launcher``.

    Returns:
        Two jobs; none if all runs are of one size.
    """
    sizes = [(run.resources.devices, run.resources.memory_mib or 0) for run in runs]
    smaller = [run for run, size in zip(runs, sizes, strict=True) if size < max(sizes)]
    largest = [run for run, size in zip(runs, sizes, strict=True) if size == max(sizes)]
    return [job_of(some, options) for some in (smaller, largest)] if smaller else []


def device_hours(jobs: Sequence[JobRequest], node_size: Callable[[SiteConfig], NodeSize]) -> float:
    """Hours times devices that `jobs` are charged if every run takes its whole time limit.

    A whole node is charged whatever the run needs of it. One of unknown size counts as what the
    largest job needs.

    Args:
        jobs: all jobs of a sweep.
        node_size: the nodes of a site.
    """
    return sum(_charged(job, jobs, node_size) * job.resources.time_min / 60 for job in jobs)


def _charged(
    job: JobRequest, jobs: Sequence[JobRequest], node_size: Callable[[SiteConfig], NodeSize]
) -> int:
    """The devices that `job` is charged."""
    needed = job.resources
    if not needed.exclusive:
        return needed.nodes * needed.devices
    whole = _whole(job, node_size) or max(
        other.resources.devices for other in jobs if bool(other.resources.gpus) == bool(needed.gpus)
    )
    return needed.nodes * max(whole, needed.devices)


def _whole(job: JobRequest, node_size: Callable[[SiteConfig], NodeSize]) -> int | None:
    """The devices of a whole node of `job`'s site, as far as known."""
    site, known = job.site, node_size(job.site)
    if job.resources.gpus:
        return site.node_gpus or known.gpus
    return site.node_cores or known.cores


def hours_words(
    packed: Sequence[JobRequest],
    apart: Sequence[JobRequest],
    node_size: Callable[[SiteConfig], NodeSize],
) -> str:
    """The cost of a sweep whose runs share jobs, and of the same with a job for each run.

    Args:
        packed: the jobs if runs share them.
        apart: a job for each run.
        node_size: the nodes of a site.
    """
    limits = "every run takes its whole time limit"
    whole = [job for job in apart if job.resources.exclusive]
    sizes = {_whole(job, node_size) for job in whole}
    if None in sizes:
        limits += ", and a whole node counts as what the largest run needs"
    elif sizes:
        count = " or ".join(str(size) for size in sorted(filter(None, sizes)))
        limits += f", and a whole node counts as its {count} devices"
    if len(packed) == len(apart):
        return f"device-hours at most {device_hours(apart, node_size):.2f} (if {limits})"
    return (
        f"device-hours at most {device_hours(packed, node_size):.2f} in "
        f"{counted(len(packed), 'job')} that runs share (hydra.launcher.pack=true), "
        f"{device_hours(apart, node_size):.2f} with a job for each run (pack=false); if {limits}"
    )
