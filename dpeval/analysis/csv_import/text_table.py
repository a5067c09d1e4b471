"""Read text files with columns: any usual separator, decimal mark, encoding or compression."""

from __future__ import annotations

import bz2
import csv
import glob
import gzip
import io
import lzma
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpeval.analysis.csv_import.fields import unit_in
from dpeval.analysis.frame.row import text
from dpeval.errors import ConfigError
from dpeval.util.arrays import Floats

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
ENDINGS = (".csv", ".tsv", ".txt")
"""Endings of files that are read in a folder, also if compressed."""
OUR_RECORDS = "records-from-csv"
"""Found in a folder that holds the tables of an earlier analysis."""
_OPENERS: dict[str, Callable[[Path], bytes]] = {
    ".gz": lambda file: gzip.decompress(file.read_bytes()),
    ".bz2": lambda file: bz2.decompress(file.read_bytes()),
    ".xz": lambda file: lzma.decompress(file.read_bytes()),
}
_LOOKED_AT = 50
"""How many lines are used to find the separator."""
_BYTES_LOOKED_AT = 4096
"""How many bytes show whether a file is text, and of which kind."""


@dataclass(frozen=True)
class TextTable:
    """A file's cells, as text."""

    file: Path
    names: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]
    """Line number and cells of every row with as many cells as there are names."""
    problems: tuple[str, ...]
    """One line for each other row."""
    separator: str


@dataclass(frozen=True)
class Source:
    """A file to read."""

    file: Path
    is_named: bool
    """Whether the user named the file itself, not a folder or pattern."""


def expand(paths: Sequence[Path]) -> list[Source]:
    """The files that `paths` stand for: files, folders, and patterns with ``*``.

    Raises:
        ConfigError: one of them matches no file.
    """
    found: dict[Path, bool] = {}
    for path in paths:
        if path.is_dir():
            files = [
                file for file in sorted(path.rglob("*")) if _is_table(file) and not _is_ours(file)
            ]
            if not files:
                raise ConfigError(f"{path} contains no table ({', '.join(ENDINGS)}, or compressed)")
            found.update(dict.fromkeys(files, False))
        elif not path.exists() and glob.has_magic(str(path)):
            files = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
            files = [file for file in files if file.is_file()]
            if not files:
                raise ConfigError(f"no file matches {path}")
            found.update(dict.fromkeys(files, False))
        else:
            found[path] = True
    return [Source(file, is_named) for file, is_named in found.items()]


def read(file: Path) -> TextTable:
    """Read `file`.

    Raises:
        ConfigError: it is not text, or not a table with a header line.
    """
    lines = _text_of(file).splitlines()
    _check_kind(file, lines)
    lines = _without_comments(lines)
    separator = None
    if lines and (said := re.fullmatch(r'"?sep=(.)"?', lines[0].strip())):
        separator = said[1]
        lines[0] = ""
    separator = separator or _separator(lines)
    if separator is None and _is_split_by_blanks(lines):
        lines, separator = ["\t".join(line.split()) for line in lines], "\t"
    if separator is None:
        first = next((line for line in lines if line.strip()), "")
        what = f"its first line is '{text(first, 60)}'" if first else "it is empty"
        raise ConfigError(
            f"{file} is not a table: no separator ({', '.join(SEPARATORS.values())}) splits its "
            f"lines into columns; {what}"
        )
    return _table(file, lines, separator)


def _check_kind(file: Path, lines: Sequence[str]) -> None:
    """Refuse what is text and no table.

    Raises:
        ConfigError: it is a web page or JSON.
    """
    start = next((line.strip().casefold() for line in lines if line.strip()), "")
    if start.startswith(("<!doctype html", "<html")):
        raise ConfigError(f"{file} is a web page, not a table; download the file that it shows")
    if start.startswith(("{", "[{")):
        raise ConfigError(f"{file} is JSON, not a table; write it as CSV, one line per run")


def _without_comments(lines: Sequence[str]) -> list[str]:
    """`lines` with comments above the table made blank.

    The last of several lines that begin with # names the columns if numbers follow it; then it
    stays.
    """
    filled = [at for at, line in enumerate(lines) if line.strip()]
    count = next((n for n, at in enumerate(filled) if not lines[at].startswith("#")), len(filled))
    if not 0 < count < len(filled):
        return list(lines)
    has_names = bool(re.match(r"\s*[-+.\d]", lines[filled[count]]))
    comments = set(filled[: count - 1] if has_names else filled[:count])
    return ["" if at in comments else line for at, line in enumerate(lines)]


def _is_split_by_blanks(lines: Sequence[str]) -> bool:
    """Whether all lines have as many words, so that blanks separate columns."""
    counts = {len(line.split()) for line in lines if line.strip()}
    return len(counts) == 1 and min(counts) > 1 and sum(map(bool, map(str.strip, lines))) > 1


def _is_table(file: Path) -> bool:
    name = file.with_suffix("") if file.suffix in _OPENERS else file
    return name.suffix.casefold() in ENDINGS and file.is_file()


def _is_ours(file: Path) -> bool:
    return any((folder / OUR_RECORDS).is_dir() for folder in file.parents)


def _text_of(file: Path) -> str:
    try:
        data = _OPENERS.get(file.suffix, Path.read_bytes)(file)
    except (OSError, EOFError, lzma.LZMAError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{file} cannot be read: {text(why, 200)}") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    if (encoding := _utf_16(data)) is not None:
        return data.decode(encoding, errors="replace")
    if b"\0" in data[:_BYTES_LOOKED_AT] or data.startswith(b"PK\x03\x04"):
        raise ConfigError(f"{file} is not a text file; save the table as CSV")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _utf_16(data: bytes) -> str | None:
    """UTF-16 in one of its byte orders, if `data` is that without a mark of its order.

    Names and numbers are almost all ASCII, so every other byte is zero.
    """
    head = data[:_BYTES_LOOKED_AT]
    first, second = head[::2].count(0), head[1::2].count(0)
    if min(first, second) > max(first, second) / 10 or max(first, second) < len(head) / 4:
        return None
    return "utf-16-le" if second > first else "utf-16-be"


def _separator(lines: Sequence[str]) -> str | None:
    """The separator that splits the most lines into the same number of columns as the first."""
    shown = [line for line in lines if line.strip()][:_LOOKED_AT]
    best, best_score = None, 0.0
    for separator in SEPARATORS:
        counts = [len(_without_empty_ends(row)) for row in csv.reader(shown, delimiter=separator)]
        names = next((count for count in counts if count > 1), 0)
        if names:
            fitting = sum(count == names for count in counts) / len(counts)
            score = fitting * (1 + names / 1000)  # ties go to the one with more columns
            if score > best_score:
                best, best_score = separator, score
    return best


def _table(file: Path, lines: Sequence[str], separator: str) -> TextTable:
    reader = csv.reader(io.StringIO("\n".join(lines)), delimiter=separator, skipinitialspace=True)
    parsed = _parsed(reader)
    is_bars, is_below = separator == "|", False
    names: tuple[str, ...] = ()
    rows, problems = [], []
    for line, cells in parsed:
        if names and not is_below:
            is_below = True
            if better := _second_header(names, [cell.strip() for cell in cells]):
                names = better
                continue
        if names and len(cells) == len(names) and cells[0] and cells[0][0] not in ":- \t":
            row = tuple(map(str.strip, cells))  # the usual row of a long table, in little time
            if row != names:
                rows.append((line, row))
            continue
        stripped = [cell.strip() for cell in cells]
        if is_bars and stripped and not stripped[0] and not stripped[-1]:
            stripped = stripped[1:-1]  # a Markdown table
        if not any(stripped) or all(re.fullmatch(r":?-+:?", cell) for cell in stripped):
            continue
        if not names:
            bare = tuple(_without_empty_ends(stripped))
            if len(bare) > 1:  # otherwise a title above the table
                names = bare
            continue
        row = (*stripped[: len(names)], *[""] * (len(names) - len(stripped)))
        surplus = [cell for cell in stripped[len(names) :] if cell]
        if row == names:
            continue  # the header again, where files were joined
        if surplus:
            problems.append(
                f"{file}, line {line}: has {len(stripped)} cells, and there are {len(names)} names"
                f" (separator: {SEPARATORS.get(separator, separator)})"
            )
        else:
            rows.append((line, row))
    _check_names(file, names)
    return TextTable(file, names, tuple(rows), tuple(problems), separator)


def _second_header(names: Sequence[str], cells: Sequence[str]) -> tuple[str, ...]:
    """The names of the columns if the row below the first header is a header, too; else nothing.

    It completes names that are repeated or missing, as of a group of columns, or holds their units.
    """
    if len(cells) != len(names) or any(re.search(r"\d", cell) for cell in cells):
        return ()
    units = [unit_in(f"({cell.strip('()[]')})") for cell in cells]
    if any(units):
        shown = zip(names, units, strict=True)
        return tuple(name if unit is None else f"{name} ({unit})" for name, unit in shown)
    is_partial = len(set(names)) < len(names) or "" in names[1:]
    return tuple(cells) if is_partial and len(set(cells)) == len(cells) and all(cells) else ()


def _parsed(reader: Iterable[list[str]]) -> Iterable[tuple[int, list[str]]]:
    try:
        for cells in reader:
            yield reader.line_num, cells  # type: ignore[attr-defined]
    except csv.Error as error:
        raise ConfigError(f"cannot be read as CSV: {error}") from error


def _without_empty_ends(cells: Sequence[str]) -> list[str]:
    kept = list(cells)
    while kept and not kept[-1].strip():
        kept.pop()
    return kept


def _check_names(file: Path, names: tuple[str, ...]) -> None:
    if not names:
        raise ConfigError(f"{file} is not a table: no line holds column names")
    if all(re.fullmatch(r"[-+0-9.,eE]*", name) for name in names):
        raise ConfigError(
            f"{file} has no header: its first line is '{text(', '.join(names), 60)}'; add a line "
            "with column names"
        )


@dataclass(frozen=True)
class NumberReader:
    """How to read a table's numbers."""

    comma: bool
    """Whether a comma is the decimal mark."""

    @classmethod
    def of(cls, cells: Iterable[str], separator: str) -> NumberReader:
        """The reader for a table.

        Args:
            cells: cells that hold numbers.
            separator: between columns; if it is not a comma, a comma is the decimal mark unless
                the cells show otherwise.
        """
        return cls(_is_decimal_comma(cells, separator))

    def __call__(self, cell: str) -> float:
        """The number in `cell`.

        Raises:
            ValueError: there is none.
        """
        bare = re.sub(r"[\s'_\u00a0\u202f]", "", cell)
        bare = bare.replace(".", "").replace(",", ".") if self.comma else bare.replace(",", "")
        return float(bare)

    def plain(self, cells: Sequence[str]) -> Floats | None:
        """All numbers of a column at once, where each is one that Python reads; else None."""
        if self.comma:
            return None
        try:
            return np.array([float(cell) for cell in cells])
        except ValueError:
            return None


_GROUPED = re.compile(r"[-+]?[1-9]\d{0,2}([.,]\d{3})+")
"""A number that may have thousands separators but no decimals."""


def _is_decimal_comma(cells: Iterable[str], separator: str) -> bool:
    marks: set[tuple[str, bool]] = set()
    for cell in cells:
        point, comma = cell.rfind("."), cell.rfind(",")
        if comma >= 0 and point >= 0:
            return comma > point
        if max(comma, point) >= 0:
            marks.add((cell[max(comma, point)], bool(_GROUPED.fullmatch(cell.strip()))))
    if (".", False) in marks or (",", False) in marks:
        return (".", False) not in marks
    # Three digits after every mark: thousands or decimals?
    return (",", True) in marks and separator != ","
