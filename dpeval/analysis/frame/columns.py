"""The columns of the frame of runs, with their meanings and units.

:data:`SCHEMA` is the one definition; :func:`dpeval.analysis.frame.row.row` fills it from a record.
"""

from __future__ import annotations

from functools import partial

import pyarrow as pa

from dpeval.analysis.frame import step_losses
from dpeval.record.phases import PHASES

VERSION = 16
"""Raise this whenever the same record gives a different row: caches are then rebuilt."""

_PHASE_NOTES = {
    "comm_exposed": "; includes gradient copies where `grad_copy_s` is unknown",
    "grad_copy": "; unknown in records of earlier releases",
}


def _column(
    name: str, meaning: str, unit: str = "", *, kind: pa.DataType, nullable: bool = False
) -> pa.Field:
    return pa.field(name, kind, nullable, metadata={"meaning": meaning, "unit": unit})


_string = partial(_column, kind=pa.string())  # empty if unknown
_integer = partial(_column, kind=pa.int64())
_boolean = partial(_column, kind=pa.bool_())
_number = partial(_column, kind=pa.float64())  # NaN if unknown
_integers = partial(_column, kind=pa.list_(pa.int64()))  # empty if unknown
_numbers = partial(_column, kind=pa.list_(pa.float64()))

SCHEMA = pa.schema(
    [
        _string("path", "folder of the record"),
        _string("run_id", "this attempt"),
        _string("identity", "hash of the configuration"),
        _string("study", "name of the study"),
        _string("status", "ok, skipped, oom, failed, interrupted"),
        _string("cause", "why it is not ok"),
        _string("cause_kind", "the same in one word"),
        _integer("repetition", "which repetition, from 0"),
        _string("series", "runs that may be compared: same machine, software, task"),
        _string("hardware", "cpu or gpu"),
        _string("model", "model"),
        _string("dataset_requested", "data requested"),
        _string("dataset_used", "data that was fed"),
        _number("train_images", "how many images it has"),
        _boolean("stand_in", "whether they differ"),
        _string("loader", "how it was fed"),
        _number("image_px", "side of the images", "px"),
        _string("scaling", "strong or weak"),
        _string("strategy", "how ranks synchronise gradients"),
        _string("precision", "arithmetic"),
        _string("memory_format", "layout of tensors"),
        _integer("num_devices", "world size"),
        _integer("num_nodes", "hosts"),
        _number("threads", "compute threads per rank"),
        _integer("batch", "the batch requested"),
        _number("global_batch", "images per step of all ranks, as requested"),
        _number("images_per_step", "images that all ranks actually process in a step"),
        _number("per_device_batch_max", "images per step of the fullest rank"),
        _integer("micro_batches", "parts of a rank's batch"),
        _boolean("oversubscribed", "more compute threads than CPUs, or more ranks than GPUs"),
        _number("steps", "measured steps"),
        _number("effective_steps", "number of independent steps that the measured ones are worth"),
        _boolean(
            "steady",
            "whether the step time stayed constant; None: unknown",
            nullable=True,
        ),
        _string("stopped_by", "why measuring ended"),
        _number("step_s", "mean step of the slowest rank", "s"),
        _number("step_low_s", "lower end of its 95 % interval", "s"),
        _number("step_high_s", "upper end", "s"),
        _number("step_median_s", "median step of the slowest rank", "s"),
        _string("unit", "what a sample is where columns say images: img, tokens, …"),
        _number("img_per_s", "images of all ranks over the time of the slowest", "img/s"),
        _number("img_per_s_low", "lower end of its 95 % interval", "img/s"),
        _number("img_per_s_high", "upper end", "img/s"),
        _string("sitting", "id shared by runs that took turns"),
        _number("paired_devices", "devices of the run it is compared with in the sitting"),
        _string("paired_strategy", "and its strategy"),
        _number("paired_speedup", "throughput over that run's, round by round"),
        _number("paired_low", "lower end of its 95 % interval"),
        _number("paired_high", "upper end"),
        _integers("rounds", "those of the sitting that are wholly in its steady state"),
        _numbers("round_step_s", "mean step in each of them", "s"),
        _numbers("round_energy_j", "energy per step in each of them; empty: not measured", "J"),
        _number("alone_ratio", "that run's step over one of the first rank alone, round by round"),
        _number("granularity_half", "half-width of the 95 % interval of its logarithm"),
        *(
            _number(f"{phase}_s", f"mean of phase {phase} on the slowest rank{note}", "s")
            for phase in PHASES
            for note in (_PHASE_NOTES.get(phase, ""),)
        ),
        _number("comm_s", "mean time per step with an all-reduce under way", "s"),
        _number("comm_hidden_s", "the part of it hidden behind backward", "s"),
        _number("first_step_s", "first step", "s"),
        _number("setup_s", "run start to first step", "s"),
        _number("wall_s", "whole run", "s"),
        _number("balance", "mean over max compute time of the ranks"),
        _number("slowest_rank", "rank with the largest total time"),
        *(_number(name, meaning, "s") for name, meaning in step_losses.MEANINGS.items()),
        *(_number(name, meaning) for name, meaning in step_losses.HALF_MEANINGS.items()),
        _boolean(
            "waits_assumed",
            "whether ablation blocks are assumed to have waited for data like the main window",
        ),
        _number("alone_batch", "images per step of the first rank"),
        _number("peak_bytes", "peak memory of the fullest rank", "bytes"),
        _number("forecast_bytes", "its forecast", "bytes"),
        _number("budget_bytes", "memory a rank may use", "bytes"),
        _number("energy_j_per_img", "energy", "J/img"),
        _number("loss_start", "mean loss of the first steps"),
        _number("loss_end", "mean loss of the last steps"),
        _string("warnings", "what makes the figures less trustworthy, one per line"),
        _string("warning_codes", "the same for programs, separated by spaces"),
        _string("conditions_bad", "bad conditions of the machine, separated by '; '"),
        _number("major_faults", "pages read back from disk while measuring"),
        _number(
            "page_faults",
            "minor page faults of a rank per step, without those of the reference work",
        ),
        _number("page_fault_share", "lower bound on their share of a step"),
        _number("machine_s", "reference work between steps: how fast the machine itself was", "s"),
        _string("lacks", "what the record lacks, separated by '; '"),
        _string("host", "machine"),
        _string("cpu_model", "its CPU"),
        _string("gpu_name", "its first GPU"),
        _string("torch", "version of torch"),
        _string("git_commit", "commit of dpeval"),
        _string("command", "reproduces the run"),
        _string("started_at", "ISO 8601"),
        _string("task", "JSON: what was requested and must be equal within a series"),
        _string(
            "configuration",
            "JSON: everything requested that decides what is measured, except the repetition",
        ),
        _string("place", "JSON: machine, software and data that must be equal within a series"),
    ]
)
"""Every column of the frame of runs: name, type, meaning and unit."""

LISTS: list[str] = [field.name for field in SCHEMA if pa.types.is_list(field.type)]
"""Columns with several values per run, which no CSV file can hold."""

COLUMNS: dict[str, str] = {
    field.name: b", ".join(filter(None, map(field.metadata.get, (b"meaning", b"unit")))).decode()
    for field in SCHEMA
}
"""Meaning and unit by name."""
