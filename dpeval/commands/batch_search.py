"""Searches for the largest per-device batch that fits: by forecast, confirmed with real steps."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from dpeval.commands.hydra_app import compose
from dpeval.config import CAUSAL_LM, Config, MeasureConfig, MemoryConfig, ScalingConfig
from dpeval.errors import ConfigError, MachineError, NoForecast, RunFailed
from dpeval.record.memory import Budget
from dpeval.run import forkserver
from dpeval.util.display.tables import make_console, make_table
from dpeval.util.display.units import GIB
from dpeval.util.frozen import Frozen

if TYPE_CHECKING:
    from dpeval.run.job import Job, Snapshot

TRIAL_MEASURE = MeasureConfig(
    name="fit",
    rel_precision=0.05,
    min_warmup_steps=2,
    min_steps=3,
    max_steps=8,
    time_limit_s=3600.0,
    ablation=False,
    conditions=False,
)
"""Enough steps to create the optimizer's state and to fragment the allocator. Only their number
ends a trial, because their duration does not matter for memory."""
CLOSE_ENOUGH = 1 / 32
"""The search ends when the smallest batch that failed is at most this far above the largest that
fit."""
MAX_TRIES = 12
LARGEST = 1 << 16


class Trial(Frozen):
    """One batch, tried with real steps in fresh processes."""

    batch: int
    fits: bool
    status: str
    peak_bytes: int | None
    forecast_bytes: int | None
    img_per_s: float | None


class Case(Frozen):
    """The largest per-device batch of one combination."""

    overrides: list[str]
    model: str
    hardware: str
    num_devices: int
    precision: str
    image_px: int | None = None
    seq_len: int | None = None
    """Of a language model, in tokens; replaces `image_px`."""
    budget: Budget
    forecast_batch: int | None
    """The largest batch by forecast alone; None if the model cannot run on fake tensors."""
    confirmed_batch: int
    """The largest batch that fit; 0 if not even one image fits."""
    failed_batch: int | None
    """The smallest batch that did not fit; None if all fit."""
    img_per_s: float | None
    """Throughput of all devices together, at the confirmed batch."""
    tries: list[Trial]

    @property
    def unit(self) -> str:
        return "img" if self.seq_len is None else "tokens"


class Fit(Frozen):
    """The result of the command, as written to ``fit.json``."""

    started_at: str
    cases: list[Case]


def expand(arguments: list[str]) -> list[list[str]]:
    """Every combination of ``key=a,b`` lists, in Hydra's override grammar.

    Raises:
        ConfigError: an argument is not an override.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(arguments)
    except HydraException as error:
        raise ConfigError(f"'{' '.join(arguments)}' is not of the form key=value") from error
    choices: list[list[str]] = []
    for override in parsed:
        if override.is_sweep_override():
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([str(override.input_line)])
    return [list(combination) for combination in itertools.product(*choices)]


def largest(fits: Callable[[int], bool], guess: int, limit: int = LARGEST) -> int:
    """The largest batch that fits; 0 if none does.

    Starts at `guess`, doubles the step away from it, then halves the bracket.

    Args:
        fits: whether a batch fits; monotonic.
        guess: the batch to start with.
        limit: the largest batch to consider.
    """
    low, high, step = 0, limit + 1, 1
    probe = min(max(guess, 1), limit)
    while high - low > 1:
        if fits(probe):
            low = probe
            probe = min(low + step, high - 1) if high > limit else (low + high) // 2
        else:
            high = probe
            probe = max(high - step, low + 1) if low == 0 else (low + high) // 2
        step *= 2
    return low


def search(
    attempt: Callable[[int], Trial], guess: Callable[[], int | None], first: int
) -> tuple[list[Trial], int, int | None]:
    """Try batches until the largest one that fits is known well enough (:data:`CLOSE_ENOUGH`).

    Args:
        attempt: takes real steps at a batch.
        guess: forecasts the largest batch that fits, from the trials so far.
        first: the batch to start with.

    Returns:
        The trials, the largest batch that fit (0: none) and the smallest that did not.
    """
    tries: list[Trial] = []
    low, high, probe = 0, None, max(1, first)
    while len(tries) < MAX_TRIES:
        tries.append(attempt(probe))
        if tries[-1].fits:
            low = max(low, probe)
        else:
            high = probe
        if high is not None and high - low <= max(1, int(low * CLOSE_ENOUGH)):
            break
        probe = _next(low, high, guess())
    return tries, low, high


def _next(low: int, high: int | None, guess: int | None) -> int:
    """The next batch to try: next to the guess, or the middle of the bracket."""
    margin = max(1, int(low * CLOSE_ENOUGH))
    if high is None:
        return max(low + margin, min(guess or 2 * low, 2 * low))
    middle = (low + high) // 2
    if guess is None:
        return max(low + 1, middle)
    # If the guess is right, one trial just below it and one just above it close the bracket.
    wanted = guess if guess > low else low + margin
    return max(low + 1, min(high - 1, wanted))


class _NullListener:
    """A listener that shows no progress: a trial prints one line when it ends."""

    def progress(self, job: Job, snapshot: Snapshot) -> None:
        pass


class BatchSearch:
    """Finds the largest per-device batch of configurations on this machine."""

    def __init__(self, report: Callable[[str], None], folder: Path) -> None:
        forkserver.warm_up()
        from dpeval.run.console import make_reporter
        from dpeval.run.session import Session

        self._report, self._folder = report, folder
        self._session = Session(make_reporter())
        self._count = 0

    def case(self, config: Config, overrides: list[str]) -> Case:
        """The largest per-device batch of `config`, confirmed.

        Raises:
            MachineError: this machine has too few devices.
            RunFailed: a trial failed for a reason other than memory.
        """
        predictor = self._session.predictor
        budget = predictor.budget_at(config)(config.num_devices)
        name = f"{config.model.name} on {config.num_devices} {config.hardware.kind}"
        folder = self._folder / f"tries-{self._count}"
        self._count += 1
        forecast_batch = self._guess(config, budget, None)
        forecast = f"batch {forecast_batch}" if forecast_batch is not None else "none"
        self._report(
            f"{name}: budget {budget.bytes / GIB:.2f} GiB ({budget.source}), forecast {forecast}"
        )

        def attempt(batch: int) -> Trial:
            made = self._attempt(config, batch, budget, folder / str(batch), overrides)
            outcome = "fits" if made.fits else "does not fit"
            peak = f", {made.peak_bytes / GIB:.2f} GiB" if made.peak_bytes else ""
            self._report(f"{name}: batch {batch} {outcome}{peak}")
            return made

        tries, low, high = search(
            attempt, lambda: self._guess(config, budget, folder), forecast_batch or 2
        )
        best = next((item for item in tries if item.batch == low and item.fits), None)
        is_lm = config.task.kind == CAUSAL_LM
        return Case(
            overrides=overrides,
            model=config.model.name,
            hardware=config.hardware.kind,
            num_devices=config.num_devices,
            precision=config.precision,
            image_px=None if is_lm else config.dataset.image_px,
            seq_len=config.dataset.seq_len if is_lm else None,
            budget=budget,
            forecast_batch=forecast_batch,
            confirmed_batch=low,
            failed_batch=high,
            img_per_s=best.img_per_s if best is not None else None,
            tries=tries,
        )

    def _guess(self, config: Config, budget: Budget, folder: Path | None) -> int | None:
        """The largest batch by forecast, corrected by the trials in `folder`."""
        predictor = self._session.predictor

        def total(batch: int) -> int:
            return predictor.forecast(config, batch, folder=folder).needed_bytes

        try:
            # Not one image, because batch normalisation may not be able to train on it.
            small, large = total(2), total(10)
            slope = max(1.0, (large - small) / 8)
            first = 2 + int((budget.bytes - small) / slope)
            return largest(lambda batch: total(batch) <= budget.bytes, first)
        except NoForecast:
            return None

    def _attempt(
        self, config: Config, batch: int, budget: Budget, folder: Path, overrides: list[str]
    ) -> Trial:
        from dpeval.data import used
        from dpeval.data.loading import noise
        from dpeval.run import execute

        asked = dataclasses.replace(
            config,
            batch=batch,
            scaling=ScalingConfig(kind="weak"),
            measure=TRIAL_MEASURE,
            memory=MemoryConfig(on_excess="try"),
        )
        job = self._session.plan_memory(self._session.job(asked, folder, overrides))
        if job.plan.skip is not None:
            raise MachineError(job.plan.skip)
        source = noise.source(config.dataset, of_tokens=config.task.kind == CAUSAL_LM)
        record = execute.execute(
            job,
            source,
            used(source, config.dataset),
            self._session.environment,
            _NullListener(),
            self._session.files,
        )
        if record.status not in ("ok", "oom"):
            reason = record.cause.message if record.cause is not None else record.status
            raise RunFailed(f"{config.model.name} at batch {batch} per device: {reason}")
        peaks = [rank.peak_bytes for rank in record.ranks if rank.peak_bytes is not None]
        context = job.memory.forecast.parts.get("context", 0) if job.memory.forecast else 0
        peak = max(peaks) + context if peaks else None
        within = peak is None or peak <= budget.bytes
        return Trial(
            batch=batch,
            fits=record.status == "ok" and within,
            status=record.status,
            peak_bytes=peak,
            forecast_bytes=job.memory.forecast.total_bytes if job.memory.forecast else None,
            img_per_s=record.throughput.img_per_s if record.throughput else None,
        )


def table(cases: list[Case]) -> Any:
    """One row per case."""
    units = {case.unit for case in cases}
    rate = units.pop() if len(units) == 1 else "samples"
    headings = ("model", "devices", "size", "precision", "budget", "forecast", "confirmed",
                "peak there", f"{rate}/s", "tries")  # fmt: skip
    made = make_table("Largest batch per device that fits", dict.fromkeys(headings, "right"))
    for case in cases:
        best = next((t for t in case.tries if t.batch == case.confirmed_batch), None)
        peak = best.peak_bytes if best is not None else None
        made.add_row(
            case.model,
            f"{case.num_devices} {case.hardware}",
            f"{case.image_px} px" if case.image_px is not None else f"{case.seq_len} tokens",
            case.precision,
            f"{case.budget.bytes / GIB:.2f} GiB",
            str(case.forecast_batch or "–"),
            str(case.confirmed_batch or "none"),
            f"{peak / GIB:.2f} GiB" if peak else "–",
            f"{case.img_per_s:.1f}" if case.img_per_s else "–",
            str(len(case.tries)),
        )
    return made


def run_fit(arguments: list[str]) -> Fit:
    """Find the largest batch of every combination; print a table and write ``fit.json``.

    Raises:
        ConfigError, MachineError, RunFailed: see :meth:`BatchSearch.case`.
    """
    combinations = expand([item for item in arguments if item not in ("-m", "--multirun")])
    configs = [(compose(overrides), overrides) for overrides in combinations]
    for config, _ in configs:
        if config.task.has_own_data:
            raise ConfigError(
                f"dpeval.fit tries batches of random images or tokens, but task={config.task.kind} "
                "makes its batches itself; find the largest with a sweep: batch=16,32,64"
            )
    started = datetime.now().astimezone()
    folder = Path("outputs") / configs[0][0].study / f"fit-{started:%Y-%m-%d_%H-%M-%S}"
    console = make_console()
    fitter = BatchSearch(lambda line: console.print(line, markup=False), folder)
    cases = [fitter.case(config, overrides) for config, overrides in configs]
    found = Fit(started_at=started.isoformat(timespec="seconds"), cases=cases)
    console.print(table(cases))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "fit.json"
    path.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    console.print(f"record: {path}", markup=False)
    return found
