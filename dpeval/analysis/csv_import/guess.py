"""Guess what the columns of a table hold from the names that other programs use."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from dpeval.analysis.csv_import.fields import (
    RATES,
    TIMES,
    UNIT_IN_NAME,
    Column,
    time_column,
    unit_in,
)
from dpeval.analysis.frame.row import text
from dpeval.errors import ConfigError

_TIME = "(?:_?(?:time|times|duration|latency|sec|secs|seconds))"
_MEAN = "(?:(?:avg|average|mean|median)_?)?"

NAMES: dict[str, tuple[str, ...]] = {
    "num_devices": (
        "num_devices|n_devices|device_count|world_?size|(num|n)_?(gpus?|ranks|procs|processes|"
        "replicas|accelerators|workers)|ngpus?|gpu_count|total_gpus|nprocs?|of_(gpus|accelerators|"
        "devices)|scale_factor|dp_size|data_parallel_size",
        "gpus|devices|replicas|accelerators|ranks|size|np|num_cpus|n_cpus|cpus",
    ),
    "placement": ("placement",),
    "num_nodes": (
        "num_nodes|n_?nodes|node_count|num_hosts|num_machines|num_servers|of_nodes",
        "nodes|hosts|machines|servers",
    ),
    "devices_per_node": (
        "(num_|n_?)?(gpus?|devices|ranks|procs|processes|tasks)(_per_|/)(node|host)|ppn",
    ),
    "rank": ("rank|global_rank|rank_id|worker_rank|rank_number", "process_id|worker_id|proc_id"),
    "global_batch": (
        "(global|total|effective)_?(mini_?)?batch(_?size|_?sz)?|gbs|train_batch_size|global_bsz",
    ),
    "per_device_batch": (
        "(local|per_(device|gpu|rank|worker)|device|gpu|atomic)_?(train_)?(mini_?)?"
        "(batch(_?size)?|bsz|bs)|(mini_?)?batch(_?size)?_per_(device|gpu|rank|worker)|"
        "bs_per_(gpu|device)|local_?bsz|train_micro_batch_size_per_gpu",
    ),
    "batch": ("(mini_?)?batch_?size|batch_?sz|bsz|bs|batch|mini_?batch",),
    "run_id": ("run_?id|run|run_num(ber)?|repetition|repeat|rep|trial|replicate|experiment_id",),
    "iteration": (
        "global_?step",
        "step(_?(id|idx|index|no|number))?",
        "iteration(_?(id|idx|index|no|number))?",
        "iter(_?(id|idx|index|no|number))?",
        "batch_(id|idx|index|no|number)",
    ),
    "model": ("model(_name)?|network|arch|architecture|workload|job_type",),
    "host": ("host(_?name)?|node_name|machine_name",),
    "hardware": ("hardware|device_type",),
    "device_name": (
        "(gpu|accelerator|device)_?(type|name|model|model_name)|worker_type",
        "gpu|accelerator",
    ),
    "precision": ("precision|dtype|data_type",),
    "seq_len": ("(max_)?seq(uence)?_?len(gth)?(_t)?|context_length",),
    "step_s": (
        f"{_MEAN}(step|iter|iteration|train_step|training_step){_TIME}|{_MEAN}(time|sec|secs|"
        f"seconds|s)_(per_)?(step|iter|iteration|batch|it)",
        f"{_MEAN}batch{_TIME}",
        f"{_MEAN}(time|duration|elapsed|latency|elapsed_time|total_time|runtime|wall_time)",
    ),
    "data_s": (f"{_MEAN}(data|(data_?)?load(ing|er)?|dataload(ing|er)?|input|io){_TIME}",),
    "forward_s": (f"{_MEAN}(forward|fwd|fp){_TIME}|forward|fwd",),
    "backward_s": (f"{_MEAN}(backward|bwd|bp){_TIME}|backward|bwd",),
    "comm_s": (f"{_MEAN}(comm|communication|sync|all_?reduce|exposed_comm|grad_sync){_TIME}",),
    "optimizer_s": (f"{_MEAN}(optimi[sz]er|optim|opt|update){_TIME}",),
    "compute_s": (f"{_MEAN}(compute|computation|comp|calc|calculation){_TIME}",),
}
"""Regular expressions for normalised names, per field; the first that matches any column wins."""

_WHAT = {
    "samples": "samples?|images?|imgs?|examples?|sequences?|seqs?|sentences?|records?",
    "tokens": "tokens?|toks?",
    "steps": "steps?|iterations?|iters?|its?|batch(?:es)?",
}
_PER_S = r"(?:_per_|/|_)(?:s|secs?|seconds?)"
_PER_DEVICE = r"(?:_?(?:per_|/)(?:gpu|device|accelerator|chip|worker|rank|replica))"
_RATES = {
    what: re.compile(rf"(?:^|[_/])(?:{words}){_PER_S}(?P<device>{_PER_DEVICE})?(?:_|$)")
    for what, words in _WHAT.items()
}
_SHORT_RATES = {
    "throughput": "throughput", "fps": "samples_per_s", "ips": "samples_per_s",
    "throughput_s/s": "samples_per_s", "throughput_t/s": "tokens_per_s",
    "throughput_t/s/gpu": "tokens_per_s_per_device", "tps": "tokens_per_s",
}  # fmt: skip


def columns(names: Sequence[str], time_unit: str | None = None) -> tuple[Column, ...]:
    """The columns recognised from `names`.

    Args:
        names: as in the file.
        time_unit: the unit of times whose name gives none.

    Raises:
        ConfigError: two columns may be the same field.
    """
    plain = {name: _normalised(name) for name in names}
    found: list[Column] = []
    for field in NAMES:
        name = _only(field, plain, {one.name for one in found})
        if name is not None:
            is_time = field in TIMES
            found.append(time_column(name, field, time_unit) if is_time else Column(name, field))
    fields = {one.field for one in found}
    for surplus, better in (("batch", ("global_batch", "per_device_batch")),
                            ("per_device_batch", ("global_batch",)),
                            ("placement", ("num_devices",)),
                            ("devices_per_node", ("num_devices",))):  # fmt: skip
        if surplus in fields and fields & set(better):
            found = [one for one in found if one.field != surplus]
    if not fields & set(TIMES):
        found += _rate(names)
    return tuple(found)


def looks_like(names: Iterable[str], fields: Sequence[str]) -> dict[str, str]:
    """For each of `names`, the first of `fields` that it looks like, if any."""
    found = {}
    for name in names:
        plain = _normalised(name)
        for field in fields:
            if any(re.fullmatch(pattern, plain) for pattern in NAMES[field]):
                found[name] = field
                break
    return found


def _normalised(name: str) -> str:
    """Lower case, words joined by ``_``, without the unit of a time.

    ``# GPUs`` → ``of_gpus``, ``globalBatchSize`` → ``global_batch_size``, ``iter (ms)`` →
    ``iter_time``.
    """
    has_unit = unit_in(name) is not None and not _is_rate(name)
    bare = UNIT_IN_NAME.sub("", name) if has_unit else name
    bare = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", bare).casefold()
    bare = re.sub(r"^\s*#\s*(of\b)?", "of ", bare)
    words = re.sub(r"[^\w/]+|_+", "_", bare).strip("_")
    words = re.sub(r"_+", "_", words)
    if has_unit and not re.search(f"{_TIME}$|elapsed$|runtime$", words):
        return f"{words}_time".lstrip("_")
    return words


def _is_rate(name: str) -> bool:
    return bool(re.search(r"/\s*(s|sec|second)|per[\s_]?(s|sec|second)", name, re.IGNORECASE))


def _only(field: str, plain: dict[str, str], taken: set[str]) -> str | None:
    for pattern in NAMES[field]:
        matching = [
            name
            for name, words in plain.items()
            if name not in taken and re.fullmatch(pattern, words)
        ]
        if len(matching) > 1:
            shown = " and ".join(f"'{text(name, 40)}'" for name in matching)
            raise ConfigError(
                f"{shown} may each be {field}; name every column with --columns, as in "
                f'--columns "{text(matching[0], 40)}={field.removesuffix("_s")},…"'
            )
        if matching:
            return matching[0]
    return None


def _rate(names: Sequence[str]) -> list[Column]:
    """The throughput to read, if several columns hold it in different units."""
    found: dict[str, str] = {}
    for name in names:
        field = _rate_field(name)
        if field is not None:
            found.setdefault(field, name)
    return [Column(found[field], field) for field in RATES if field in found][:1]


def _rate_field(name: str) -> str | None:
    plain = re.sub(r"[^a-z0-9/]+", "_", name.casefold()).strip("_")
    plain = re.sub(r"_*/_*", "/", plain)
    if plain in _SHORT_RATES:
        return _SHORT_RATES[plain]
    for what, pattern in _RATES.items():
        match = pattern.search(plain)
        if match:
            field = f"{what}_per_s{'_per_device' if match['device'] else ''}"
            return field if field in RATES else None
    return None
