"""Measure the runs of a sweep in sittings: as many at once as memory holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, groupby

from dpeval.config import SERIAL, Config, curve_of
from dpeval.record.schema import Record
from dpeval.run.job import Job
from dpeval.run.session import Session
from dpeval.sitting.coordinator import Coordinator
from dpeval.sitting.rounds import waves_that_fit
from dpeval.sitting.seat import Seat
from dpeval.system.processes.signals import stop_signals
from dpeval.util.display.units import GIB


def measure(session: Session, jobs: Sequence[Job]) -> Iterator[tuple[Job, Record]]:
    """Run or skip every job; yield each with its record as soon as that is written.

    Jobs of one repetition take turns. Every repetition is a sitting of its own with new processes,
    because repetitions show how much processes differ.

    Args:
        session: the session on this machine.
        jobs: planned runs, all repetitions of them.
    """
    session.look_ahead(jobs)
    by_repetition = sorted(jobs, key=lambda job: job.config.repetition)
    for _, group in groupby(by_repetition, key=lambda job: job.config.repetition):
        ready: list[Job] = []
        for job in group:
            announced = session.announce(job)
            record = session.skipped(announced)
            if record is None:
                ready.append(announced)
                continue
            session.reporter.run_ended(announced, record)
            yield job, record
        for waves in _sittings(session, ready):
            with stop_signals() as received:
                for job, record in _sit(session, waves):
                    session.reporter.run_ended(job, record)
                    yield job, record
                if received:
                    return


def _sit(session: Session, waves: Sequence[Sequence[Job]]) -> Iterator[tuple[Job, Record]]:
    jobs = list({job.folder: job for job in chain.from_iterable(waves)}.values())
    if len(jobs) == 1:  # nobody to take turns with
        yield jobs[0], session.measure(jobs[0])
        return
    seats = {job.folder: Seat(session.live(job)) for job in jobs}
    for job, base in zip(jobs, bases([job.config for job in jobs]), strict=True):
        seats[job.folder].base = seats[jobs[base].folder] if base is not None else None
    seated = [[seats[job.folder] for job in wave] for wave in waves]
    coordinator = Coordinator(seated, session.reporter, jobs[0].config.seed)
    for run, record in coordinator.measure():
        yield run.job, record


def bases(configs: Sequence[Config]) -> list[int | None]:
    """For each run, the base of its speedup: the run of the same task on the fewest devices.

    A serial run is the base for every strategy, and takes precedence over a strategy on one device.
    None: the run is itself a base."""
    return [_base_of(at, configs) for at in range(len(configs))]


def _base_of(at: int, configs: Sequence[Config]) -> int | None:
    config = configs[at]
    alike = [
        index
        for index, other in enumerate(configs)
        if curve_of(other) == curve_of(config)
        and (other.strategy == config.strategy or _is_serial(other))
    ]
    base = min(
        alike, key=lambda index: (configs[index].num_devices, not _is_serial(configs[index]))
    )
    return base if base != at else None


def _is_serial(config: Config) -> bool:
    return config.strategy.name == SERIAL


def _sittings(session: Session, jobs: Sequence[Job]) -> list[list[list[Job]]]:
    """The waves of every sitting: jobs on the same hardware whose forecast peaks fit into memory.

    A wave that has no run in common with the one before begins another sitting.
    """
    sittings: list[list[list[Job]]] = []
    for hardware in dict.fromkeys(job.config.hardware for job in jobs):
        alike = [job for job in jobs if job.config.hardware == hardware]
        free = session.predictor.budget_at(alike[0].config)(1).bytes
        needs = [_needed_bytes(job) for job in alike]
        before: set[int] = set()
        for wave in waves_that_fit(needs, free, bases([job.config for job in alike])):
            if not before & set(wave):
                sittings.append([])
            sittings[-1].append([alike[index] for index in wave])
            before = set(wave)
    return sittings


def _needed_bytes(job: Job) -> int | None:
    """Peak memory of a run: on the host, or on each of its GPUs. None if it is unknown."""
    forecast = job.memory.forecast
    if job.config.task.is_script:
        # Scripts take turns only on request, so they are assumed to fit, within the budget of each.
        return int((job.config.hardware.memory_gib or 0) * GIB) * job.plan.world_size
    if forecast is None:
        return None
    return forecast.needed_bytes * (job.plan.world_size if job.config.hardware.kind == "cpu" else 1)
