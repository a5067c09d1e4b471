"""The pages of the reference, made from the code each time the site is built.

MkDocs loads this file as a hook (``hooks`` in ``mkdocs.yml``) and calls :func:`on_files`.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel

from dpeval.__main__ import COMMANDS, Command
from dpeval.config import Config
from dpeval.config.bounds import OneOf
from dpeval.config.launcher import LauncherOptions, LocalOptions
from dpeval.launchers.schedulers.registry import SCHEDULERS
from dpeval.record import codes
from dpeval.record.schema import Record

ROOT = Path(__file__).resolve().parents[1]
TERMINAL_COLUMNS = "96"
_ROLE = re.compile(r":\w+:`~?([^`]+)`")
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those written by hand."""
    for name, page in PAGES.items():
        path = f"reference/{name}.md"
        files.append(File.generated(config, path, content=page()))
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    files.append(File.generated(config, "contributing.md", content=contributing))
    return files


# --- configuration ------------------------------------------------------------------------------


def configuration() -> str:
    """Every key that a user can set: type, default, bounds, meaning."""
    parts = [
        "# Configuration",
        "Every key of `dpeval train`, from `dpeval/config`. Set one as `key=value`; with `-m`, "
        "`key=a,b` sweeps it. A default of *required* comes from the chosen option of the group. "
        "Options of groups, such as `measure=quick`, set several keys at once and may differ from "
        "the defaults below; `dpeval train --cfg job` shows what is composed.",
        "## Groups",
        "Each option is a file in `conf/`. A `conf/` folder in your working directory joins the "
        "search path, so a new option is one new file there "
        "([Adding a part](../contributing.md#adding-a-part)).",
        _table(("group", "options"), list(_options())),
        "## The run",
        _key_table(Config, ""),
    ]
    for key, group in _groups(Config, ""):
        parts += [f"## {key}", _first_paragraph(group), _key_table(group, f"{key}.")]
    for name, options in (("local", LocalOptions), ("slurm`, `oar", LauncherOptions)):
        parts += [
            f"## hydra.launcher: `{name}`",
            _first_paragraph(options),
            _key_table(options, "hydra.launcher."),
        ]
    return _page(parts)


def _options() -> Iterator[tuple[str, str]]:
    for group in sorted(path for path in (ROOT / "conf").iterdir() if path.is_dir()):
        if group.name != "hydra":
            names = sorted(path.stem for path in group.glob("*.yaml"))
            yield f"`{group.name}`", " ".join(f"`{name}`" for name in names)
    yield "`hydra/launcher`", " ".join(f"`{name}`" for name in ("local", *SCHEDULERS))


def _groups(node: type, prefix: str) -> Iterator[tuple[str, type]]:
    for name, hint in get_type_hints(node).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield f"{prefix}{name}", hint
            yield from _groups(hint, f"{prefix}{name}.")


def _key_table(node: type, prefix: str) -> str:
    hints = get_type_hints(node, include_extras=True)
    documented = _documented(node)
    rows = []
    for item in dataclasses.fields(node):
        if dataclasses.is_dataclass(_plain(hints[item.name])) or item.name not in documented:
            continue  # a group has a section of its own; `hydra.launcher._target_` is no user's
        rows.append(
            (
                f"`{prefix}{item.name}`",
                _type_words(hints[item.name]),
                _default_words(item),
                documented[item.name],
            )
        )
    return _table(("key", "type and bounds", "default", "meaning"), rows)


def _plain(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _type_words(hint: Any) -> str:
    """The type of a key with its bounds or choices, in words."""
    bounds: list[str] = []
    if get_origin(hint) is Annotated:
        hint, *notes = get_args(hint)
        for note in notes:
            if isinstance(note, OneOf):
                words = " ".join(f"`{choice}`" for choice in note.choices)
                return words + " or an import path" * note.or_import_path
            bounds += _bounds(note)
    options = [one for one in get_args(hint) if one is not type(None)]
    if type(None) in get_args(hint):
        return f"{_type_words(options[0])} or `null`"
    name = hint.__name__ if isinstance(hint, type) and not options else str(hint)
    name = re.sub(r"\b\w+\.", "", name)
    return " ".join([f"`{name}`", ", ".join(bounds)]).strip()


def _bounds(note: Any) -> list[str]:
    metadata = getattr(note, "metadata", None) or [note]
    return [
        f"{sign} {getattr(one, name):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
        for one in metadata
        for name, sign in _BOUNDS.items()
        if getattr(one, name, None) is not None
    ]


def _default_words(item: dataclasses.Field[Any]) -> str:
    if item.default_factory is not dataclasses.MISSING:
        value = item.default_factory()
    elif item.default is dataclasses.MISSING or item.default == "???":
        return "*required*"
    else:
        value = item.default
    if isinstance(value, str):
        return f"`{value}`" if value else "empty"
    return f"`{json.dumps(value)}`"


# --- record -------------------------------------------------------------------------------------


def record() -> str:
    """Every field of ``metrics.json``, and every code that it may hold."""
    parts = [
        "# The record",
        "Every run writes one `metrics.json`, however it ends. Times are in seconds, sizes in "
        "bytes, throughput in samples of the record's `unit` per second. "
        "`dpeval/metrics.schema.json` is the same as JSON Schema. Readers ignore fields that they "
        "do not know: a later version may add some, and never changes what one means.",
    ]
    for model in _models(Record):
        title = "The record itself" if model is Record else model.__name__
        documented = _documented(model)
        types = _annotations(model)
        rows = [
            (f"`{name}`", f"`{types[name]}`", documented.get(name, ""))
            for name in model.model_fields
        ]
        parts += [f"## {title}", _first_paragraph(model)]
        parts.append(_table(("field", "type", "meaning"), rows))
    parts.append("## Codes")
    parts.append("A code is never renamed or removed, so scripts may rely on it.")
    for title, kind in _codes():
        values = " ".join(f"`{value}`" for value in get_args(kind))
        parts.append(f"**{title}**: {values}")
    return _page(parts)


def _codes() -> Iterator[tuple[str, Any]]:
    for name, kind in vars(codes).items():
        if get_args(kind) and all(isinstance(value, str) for value in get_args(kind)):
            yield name, kind


def _models(model: type[BaseModel], seen: set[type] | None = None) -> Iterator[type[BaseModel]]:
    """`model` and every model that its fields hold, each once."""
    seen = set() if seen is None else seen
    if model in seen:
        return
    seen.add(model)
    yield model
    for info in model.model_fields.values():
        for inner in _inside(info.annotation):
            yield from _models(inner, seen)


def _inside(hint: Any) -> Iterator[type[BaseModel]]:
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        yield hint
    for inner in get_args(hint):
        yield from _inside(inner)


# --- commands -----------------------------------------------------------------------------------


def commands() -> str:
    """What every command prints for ``--help``."""
    parts = [
        "# Commands",
        "`dpeval COMMAND …` and `python -m dpeval.COMMAND …` are the same. Every command exits "
        "with 0 for success, 1 if runs failed, 2 for a mistake in the command (one line, before "
        "anything starts), 3 if `analyze --fail-if-slower` found something slower, and 130 if "
        "interrupted.",
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        texts = list(pool.map(help_of, COMMANDS))
    for one, text in zip(COMMANDS, texts, strict=True):
        meaning = one.meaning[:1].upper() + one.meaning[1:]
        parts += [f"## dpeval {one.name}", f"{meaning}. For example:"]
        parts += [_code(one.example), _code(text)]
    return _page(parts)


def help_of(command: Command) -> str:
    """What ``dpeval COMMAND --help`` prints.

    Raises:
        RuntimeError: it exits with an error, or prints nothing.
    """
    done = subprocess.run(
        [sys.executable, "-m", "dpeval", command.name, "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": TERMINAL_COLUMNS},
        check=False,
    )
    if done.returncode or not done.stdout.strip():
        raise RuntimeError(f"dpeval {command.name} --help: {done.stderr or 'it printed nothing'}")
    return done.stdout.strip()


# --- Markdown -----------------------------------------------------------------------------------


@cache
def _body(node: type) -> list[ast.stmt]:
    (defined,) = ast.parse(textwrap.dedent(inspect.getsource(node))).body
    assert isinstance(defined, ast.ClassDef)
    return defined.body


@cache
def _documented(node: type) -> dict[str, str]:
    """The text below each attribute in the source of a class and of its bases in dpeval."""
    found: dict[str, str] = {}
    for base in reversed(node.__mro__):
        if not base.__module__.startswith("dpeval."):
            continue
        body = _body(base)
        for attribute, text in itertools.pairwise(body):
            if (
                isinstance(attribute, ast.AnnAssign)
                and isinstance(attribute.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                found[attribute.target.id] = _prose(text.value.value)
    return found


def _annotations(node: type) -> dict[str, str]:
    """Each attribute's type as the source has it."""
    return {
        attribute.target.id: ast.unparse(attribute.annotation)
        for base in reversed(node.__mro__)
        if base.__module__.startswith("dpeval.")
        for attribute in _body(base)
        if isinstance(attribute, ast.AnnAssign) and isinstance(attribute.target, ast.Name)
    }


def _first_paragraph(node: type) -> str:
    return _prose(inspect.cleandoc(node.__doc__ or "").partition("\n\n")[0])


def _prose(text: str) -> str:
    """A docstring as Markdown: one line, roles and double backquotes as code."""
    line = " ".join(text.split())
    line = _ROLE.sub(lambda found: f"`{found[1].rpartition('.')[2]}`", line)
    return line.replace("``", "`")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _code(text: str) -> str:
    return f"```text\n{text}\n```"


def _page(parts: list[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "configuration": configuration,
    "record": record,
    "commands": commands,
}
