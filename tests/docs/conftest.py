"""The documents and the commands that they show."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("pages/**/*.md")])
_COMMAND = re.compile(r"(?:python -m dpeval[. ]|dpeval )(?=[a-z_]+\b)")
_INLINE = re.compile(r"`(python -m dpeval\.[^`]*)`")


def commands() -> list[tuple[str, list[str]]]:
    """Every command that the documents show: where, and its words from the command's name on."""
    found: dict[str, list[str]] = {}
    for path in DOCUMENTS:
        text = re.sub(r"\\\n\s*", " ", path.read_text())
        lines = [line.strip() for line in text.splitlines() if re.match(r"( {4}|\$ )\S", line)]
        for line in [*lines, *_INLINE.findall(text.replace("\n", " "))]:
            start = _COMMAND.match(line)
            if start and "…" not in line:
                words = shlex.split(line[start.end() :], comments=True)
                found.setdefault(f"{path.name}: {' '.join(words)}", words)
    return list(found.items())
