"""Which runs may be compared: a series shares task, machine, software and data.

A run without a strategy (``strategy=none``) is the best serial execution, and hence the one-device
run of every series that differs from it only in the strategy (Hoefler & Belli 2015, "Scientific
Benchmarking of Parallel Computing Systems", SC'15, rule 1).

Two machines, library versions or commits in one folder make two series with distinct names;
:func:`differences` lists the fields in which they differ.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd
from omegaconf import MISSING

from dpeval.config import SERIAL, Config, to_plain
from dpeval.config.identity import OUTPUT_KEYS
from dpeval.record.schema import Record
from dpeval.util.display.plural import counted

REPETITION = frozenset(["repetition", "seed"])
"""Configuration keys in which repetitions of one measurement may differ."""
NOT_TASK = REPETITION.union(
    OUTPUT_KEYS, ["num_devices", "num_nodes", "batch", "scaling", "measure", "memory"]
)
"""Configuration keys that may vary within a series: the axes of a study (`scaling` and the kind of
hardware have their own columns), where results go, and how long a run is measured."""
NOT_HARDWARE = frozenset(
    ["kind", "memory_gib", "oversubscribe", "startup_timeout_s", "hang_timeout_s"]
)
NOT_DATASET = frozenset(["root", "on_missing", "download_timeout_s"])
NOT_MEASURED = {
    "hardware": frozenset(["startup_timeout_s", "hang_timeout_s"]),
    "dataset": NOT_DATASET,
}
"""Keys of groups that set time-outs and locations, not what is measured; the data that a run used
is in its record."""
FEATURES = "cpu_features"
_MOST_VALUE = 400
"""Longer than the list of a CPU's instruction sets."""
_MOST_SHOWN = 80


def task(run: Record) -> str:
    """The requested configuration that a series shares, as flat JSON."""
    config = {key: value for key, value in run.config.items() if key not in NOT_TASK}
    for group, left_out in (("hardware", NOT_HARDWARE), ("dataset", NOT_DATASET)):
        if isinstance(values := config.get(group), dict):
            config[group] = {k: v for k, v in values.items() if k not in left_out}
    return _flat(config)


def configuration(run: Record) -> str:
    """Everything requested that decides what is measured, except the repetition, as flat JSON.

    Keys that the record lacks get today's default, so that a new key does not separate records of
    earlier releases."""
    config = _with_defaults(run.config, _DEFAULTS)
    config = {k: v for k, v in config.items() if k not in REPETITION and k not in OUTPUT_KEYS}
    for group, left_out in NOT_MEASURED.items():
        if isinstance(values := config.get(group), dict):
            config[group] = {k: v for k, v in values.items() if k not in left_out}
    for group, values in config.items():
        if isinstance(values, dict) and str(values.get("_target_")).startswith("dpeval."):
            # The module that holds a part of dpeval may change between releases.
            config[group] = {**values, "_target_": str(values["_target_"]).rpartition(".")[2]}
    return _flat(config)


_DEFAULTS = {
    # What `auto` resolved to is recorded, except in old records, where it is unknown.
    key: value
    for key, value in to_plain(Config()).items()
    if key != "memory_format"
}


def _with_defaults(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    known = {key: value for key, value in defaults.items() if value != MISSING}
    merged = {**known, **values}
    for key, default in known.items():
        if isinstance(default, dict) and isinstance(values.get(key), dict):
            merged[key] = _with_defaults(values[key], default)
    return merged


def place(run: Record) -> str:
    """Machine, software and data of a run, as flat JSON.

    A scheduler allocates interchangeable nodes, so for its jobs the kind of host counts, not its
    name. Hosts with the same name and CPU model may still differ in instruction sets, and
    severalfold in bf16 speed; records that predate this field lack it."""
    environment = run.environment
    features = " ".join(environment.cpu_features)
    return _flat(
        {
            FEATURES: features or None,
            "host": environment.host if run.scheduler is None else "",
            "cpu": environment.cpu_model,
            "cores": environment.physical_cores,
            "gpus": ", ".join(sorted({gpu.name for gpu in environment.gpus})),
            "python": environment.python,
            "versions": dict(environment.versions),
            "commit": (environment.git_commit or "")[:12],
            "uncommitted": bool(environment.git_dirty),
            "data": run.dataset.used if run.dataset is not None else "",
        }
    )


def fields_of(flat: str) -> dict[str, str]:
    """The fields of :func:`task`, :func:`place` or :func:`configuration`, by dotted name."""
    found: dict[str, str] = json.loads(flat)
    return found


def _flat(value: Any) -> str:
    found: dict[str, str] = {}
    _flatten(value, "", found, 0)
    return json.dumps(found, sort_keys=True, separators=(",", ":"))


def _flatten(value: Any, prefix: str, found: dict[str, str], depth: int) -> None:
    if isinstance(value, dict) and depth < 5:
        for key, inner in list(value.items())[:200]:
            name = f"{prefix}.{key}" if prefix else str(key)
            _flatten(inner, name[:_MOST_VALUE], found, depth + 1)
    elif value is not None:
        # Hostile text must neither fill a table nor steer a terminal.
        whole = str(value)
        shown = "".join(c if c.isprintable() else " " for c in whole[:_MOST_VALUE])
        found[prefix] = shown if len(whole) <= _MOST_VALUE else f"{shown} …{_digest(whole)}"


def _digest(text: str) -> str:
    """Distinguishes long values with the same beginning."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]


def assign(runs: pd.DataFrame) -> pd.Series[str]:
    """The name of every run's series, from its `task` and `place`.

    A run that measured nothing (skipped before submission, out of memory) says nothing about a
    machine. It joins a measured series of its task: the one with its own place, or else the most
    common one of its study. So it appears as a gap there and not as a separate series."""
    if runs.empty:
        return pd.Series([], dtype=object, index=runs.index)
    runs = runs.assign(place=_with_features(runs["place"]))
    homes = _homes(runs)
    keys = [
        (task_, home)
        for task_, home in zip(runs["task"], runs["place"].where(homes.isna(), homes), strict=True)
    ]
    served = _served(dict.fromkeys(keys))
    keys = [served[key][0] if key in served else key for key in keys]
    names = _names(dict.fromkeys(keys))
    named = pd.Series([names[key] for key in keys], index=runs.index, dtype=object)
    return _by_nodes(runs, _apart_from_serial(runs, named))


Key = tuple[str, str]
"""Task and place, as flat JSON."""


def _served(keys: Mapping[Key, None]) -> dict[Key, list[Key]]:
    """For each key of serial runs, the keys that differ from it only in the strategy, if any."""
    tasks = {key: fields_of(key[0]) for key in keys}
    others: dict[tuple[str, str], list[Key]] = {}
    for key, fields in tasks.items():
        if fields.get("strategy.name") != SERIAL:
            others.setdefault(_but_strategy(fields, key[1]), []).append(key)
    found = {}
    for key, fields in tasks.items():
        if fields.get("strategy.name") == SERIAL:
            # A run that measured nothing may not know its data.
            data = {fields_of(key[1]).get("data"), ""}
            alike = others.get(_but_strategy(fields, key[1]), [])
            alike = sorted(o for o in alike if data == {""} or fields_of(o[1]).get("data") in data)
            if alike:
                found[key] = alike
    return found


def _but_strategy(fields: Mapping[str, str], where: str) -> tuple[str, str]:
    rest = {name: value for name, value in fields.items() if not name.startswith("strategy.")}
    return json.dumps(rest, sort_keys=True), json.dumps(_without_data(where), sort_keys=True)


def _apart_from_serial(runs: pd.DataFrame, named: pd.Series[str]) -> pd.Series[str]:
    """`named`, with a strategy's runs on one device separated from serial runs of the same series.

    The two are not repetitions of one another.
    """
    is_serial = runs["strategy"].eq(SERIAL)
    if not is_serial.any():
        return named
    cell = [named, runs["hardware"], runs["scaling"], runs["num_devices"], runs["batch"]]
    is_measured = is_serial & runs["img_per_s"].notna()
    is_beside = is_measured.groupby(cell).transform("any") & ~is_serial
    return named.where(~is_beside, named + ", " + runs["strategy"] + " on one device")


def with_shared_baselines(runs: pd.DataFrame) -> pd.DataFrame:
    """`runs`, with the serial runs that are its baseline added to every series.

    :func:`assign` puts a serial run into one series. Other series that differ only in their
    strategy get a copy of its row here, under their name."""
    is_serial = runs["strategy"].eq(SERIAL)
    if not is_serial.any() or is_serial.all():
        return runs
    keys = list(zip(runs["task"], _with_features(runs["place"]), strict=True))
    served = _served(dict.fromkeys(keys))
    names: dict[Key, set[str]] = {}
    for key, name, devices in zip(keys, runs["series"], runs["num_devices"], strict=True):
        if devices > 1:
            names.setdefault(key, set()).add(name)
    copies = []
    for position, key in enumerate(keys):
        if key not in served:
            continue
        own = runs["series"].iloc[position]
        wanted = {name for other in served[key] for name in names.get(other, ())} - {own}
        copies += [runs.iloc[[position]].assign(series=name) for name in sorted(wanted)]
    if not copies:
        return runs
    shared = pd.concat([runs, *copies], ignore_index=True)
    return shared.assign(series=_apart_from_serial(shared, shared["series"]))


def _with_features(places: pd.Series[str]) -> pd.Series[str]:
    """`places`; one without instruction sets takes those of the only otherwise equal place."""
    known: dict[str, list[str]] = {}
    for place_ in dict.fromkeys(places):
        fields = json.loads(place_)
        features = fields.pop(FEATURES, None)
        alike = known.setdefault(json.dumps(fields, sort_keys=True), [])
        if features is not None:
            alike.append(place_)
    found = {}
    for place_ in dict.fromkeys(places):
        fields = json.loads(place_)
        alike = known.get(json.dumps(fields, sort_keys=True), [])
        found[place_] = alike[0] if FEATURES not in fields and len(alike) == 1 else place_
    return places.map(found)


def _homes(runs: pd.DataFrame) -> pd.Series[str]:
    """For every run that measured nothing, the place of the measured series it joins."""
    measured = runs["img_per_s"].notna()
    counts = Counter(
        zip(runs.loc[measured, "task"], runs.loc[measured, "study"], runs.loc[measured, "place"],
            strict=True)
    )  # fmt: skip
    by_task: dict[str, list[tuple[int, str, str]]] = {}
    for (task_, study, where), count in counts.items():
        by_task.setdefault(task_, []).append((count, study, where))
    found: dict[Any, str] = {}
    known: dict[tuple[str, str, str], str | None] = {}
    for index, task_, study, where in zip(
        runs.index, runs["task"], runs["study"], runs["place"], strict=True
    ):
        if measured[index]:
            continue
        key = (task_, study, where)
        if key not in known:
            known[key] = _home(by_task.get(task_, []), study, where)
        if (home := known[key]) is not None:
            found[index] = home
    return pd.Series(found, index=runs.index, dtype=object)


def _home(candidates: list[tuple[int, str, str]], study: str, where: str) -> str | None:
    if not candidates:
        return None
    own = _without_data(where)
    return max(candidates, key=lambda c: (_without_data(c[2]) == own, c[1] == study, c[0], c[2]))[2]


def _without_data(where: str) -> dict[str, str]:
    return {key: value for key, value in json.loads(where).items() if key != "data"}


def _names(keys: Mapping[tuple[str, str], None]) -> dict[tuple[str, str], str]:
    """A readable name for each (task, place); equal names get the fields in which they differ."""
    fields = {key: _fields(key) for key in keys}
    alike: dict[str, list[tuple[str, str]]] = {}
    for key, values in fields.items():
        alike.setdefault(_short(values), []).append(key)
    names: dict[tuple[str, str], str] = {}
    for name, group in alike.items():
        if len(group) == 1:
            names[group[0]] = name
            continue
        differing = _differing([fields[key] for key in group])
        for key in group:
            shown = [f"{field} {fields[key].get(field, '–')[:_MOST_SHOWN]}" for field in differing]
            more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
            names[key] = f"{name}, {', '.join(shown[:3])}{more}"
        _number(names, sorted(group))
    return names


def _number(names: dict[tuple[str, str], str], group: list[tuple[str, str]]) -> None:
    """Number names that are still equal after the first three differing fields."""
    seen: Counter[str] = Counter()
    for key in group:
        seen[names[key]] += 1
        if (count := seen[names[key]]) > 1:
            names[key] += f" (#{count})"


def _fields(key: tuple[str, str]) -> dict[str, str]:
    return {**json.loads(key[0]), **json.loads(key[1])}


def _differing(all_fields: list[dict[str, str]]) -> list[str]:
    names = dict.fromkeys(name for fields in all_fields for name in fields)
    return [name for name in names if len({fields.get(name) for fields in all_fields}) > 1]


def _short(fields: Mapping[str, str]) -> str:
    threads, side = fields.get("hardware.cores_per_device"), fields.get("dataset.image_px")
    torch = fields.get("versions.torch")
    parts = [
        fields.get("model.name"),
        fields.get("dataset.name"),
        f"{side} px" if side else "",
        fields.get("precision"),
        fields.get("dataset.loader"),
        counted(int(threads), "thread") if threads and threads.isdecimal() else "",
        fields.get("host"),
        fields.get("gpus") or fields.get("cpu"),
        f"torch {torch}" if torch else "",
    ]
    return ", ".join(part[:_MOST_SHOWN] for part in parts if part) or fields.get(
        "source", "unnamed"
    )


def _by_nodes(runs: pd.DataFrame, named: pd.Series[str]) -> pd.Series[str]:
    """Separate runs of one device count and batch on different numbers of nodes."""
    if runs["num_nodes"].nunique() < 2:
        return named
    keys = [named, runs["hardware"], runs["scaling"], runs["num_devices"], runs["batch"]]
    fewest = runs["num_nodes"].groupby(keys).transform("min")
    suffix = ", on " + runs["num_nodes"].astype(str) + " nodes"
    return named.where(runs["num_nodes"] == fewest, named + suffix)


def differences(runs: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Per series, the fields of task and place in which the series of `runs` differ."""
    measured = runs[runs["img_per_s"].notna()] if runs["img_per_s"].notna().any() else runs
    # A serial run says nothing about the strategy of the series it is the baseline of.
    telling = measured.sort_values("strategy", key=lambda name: name.eq(SERIAL), kind="stable")
    first = telling.groupby("series", sort=False)[["task", "place"]].first()
    fields = {
        str(name): _fields((row.task, row.place))
        for name, row in zip(first.index, first.itertuples(), strict=True)
    }
    differing = _differing(list(fields.values()))
    return (
        {
            name: {field: values.get(field, "") for field in differing}
            for name, values in fields.items()
        }
        if differing
        else {}
    )
