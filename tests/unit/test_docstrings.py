"""Public functions document their parameters, if three or more, and the errors they raise."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import dpeval

ROOT = Path(dpeval.__file__).parent
MIN_PARAMETERS = 3


def functions(node: ast.AST, context: str = "") -> Iterator[tuple[ast.FunctionDef, str]]:
    """Public functions and methods below `node`, each with the docstrings that describe it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from functions(child, ast.get_docstring(child) or "")
        elif isinstance(child, ast.FunctionDef):
            own = ast.get_docstring(child) or ""
            if child.name == "__init__":
                yield child, f"{context}\n{own}"
            elif not child.name.startswith("_"):
                yield child, own


def parameters(function: ast.FunctionDef) -> list[str]:
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


@functools.cache
def functions_of(path: Path) -> list[tuple[ast.FunctionDef, str]]:
    """The public functions of a file, each with the docstrings that describe it."""
    return list(functions(ast.parse(path.read_text(encoding="utf-8"))))


def undocumented(path: Path, root: Path = ROOT) -> list[str]:
    """What the docstrings of one file below `root` lack, one line per function."""
    found = []
    for function, text in functions_of(path):
        names = parameters(function)
        if len(names) < MIN_PARAMETERS or text.startswith("See :meth:`"):
            continue  # an override is documented where the method is declared
        _, _, described = text.partition("Args:")
        entry = r"^ *(?:\w+, )*{}\b.*:"  # parameters of one kind may share a line
        missing = [name for name in names if not re.search(entry.format(name), described, re.M)]
        if missing:
            where = f"{path.relative_to(root)}:{function.lineno}"
            found.append(f"{where} {function.name}: {', '.join(missing)}")
    return found


def test_every_parameter_is_documented() -> None:
    lines = [line for path in sorted(ROOT.rglob("*.py")) for line in undocumented(path)]
    assert not lines, "\n".join(lines)


INTERNAL = {"AssertionError", "NotImplementedError", "RuntimeError", "TypeError", "ValueError"}
"""Raised at bugs, not for the caller to handle."""


def raised(function: ast.FunctionDef) -> set[str]:
    """The names of the errors that `function` itself raises, nested functions included."""
    return {
        node.exc.func.id
        for node in ast.walk(function)
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
        and node.exc.func.id[0].isupper()
    } - INTERNAL


def unannounced(path: Path, root: Path = ROOT) -> list[str]:
    """The errors that the docstrings of one file below `root` lack, one line per function."""
    found = []
    for function, text in functions_of(path):
        _, _, described = text.partition("Raises:")
        missing = sorted(name for name in raised(function) if name not in described)
        if missing and text and not text.startswith("See :meth:`"):
            where = f"{path.relative_to(root)}:{function.lineno}"
            found.append(f"{where} {function.name}: {', '.join(missing)}")
    return found


def test_every_error_is_documented() -> None:
    lines = [line for path in sorted(ROOT.rglob("*.py")) for line in unannounced(path)]
    assert not lines, "\n".join(lines)


def test_a_missing_error_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text('def f():\n    """F."""\n    raise DataError("no")\n', encoding="utf-8")
    assert unannounced(path, tmp_path) == ["module.py:1 f: DataError"]


def test_a_missing_parameter_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    text = "F.\n\n    Args:\n        one: 1.\n        three: 3.\n"
    path.write_text(f'def f(one, two, three):\n    """{text}    """\n', encoding="utf-8")
    assert undocumented(path, tmp_path) == ["module.py:1 f: two"]
