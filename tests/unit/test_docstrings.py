"""Public functions with three or more parameters document every one of them."""

from __future__ import annotations

import ast
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


def undocumented(path: Path, root: Path = ROOT) -> list[str]:
    """What the docstrings of one file below `root` lack, one line per function."""
    found = []
    for function, text in functions(ast.parse(path.read_text(encoding="utf-8"))):
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


def test_a_missing_parameter_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    text = "F.\n\n    Args:\n        one: 1.\n        three: 3.\n"
    path.write_text(f'def f(one, two, three):\n    """{text}    """\n', encoding="utf-8")
    assert undocumented(path, tmp_path) == ["module.py:1 f: two"]
