"""Commands start and print wherever they are started: closed streams, few letters, odd folders."""

from __future__ import annotations

import ast
import errno
import fcntl
import io
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from dpeval.commands.hydra_app import compose
from dpeval.commands.main import explain, run_main
from dpeval.errors import ConfigError
from dpeval.run import forkserver
from dpeval.system.faults import ADVICE
from dpeval.util import entry
from dpeval.util.display import output
from dpeval.util.importing import locate

CLONE = str(Path(entry.__file__).parents[2])


def python(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": CLONE, **environment},
        text=True,
        capture_output=True,
        check=False,
    )


PRINT = "from dpeval.util.display import output; output.protect(); "


def test_letters_that_a_terminal_lacks_are_approximated(tmp_path: Path) -> None:
    shown = python(PRINT + "print('12 ± 3 … 4 × 5 µs ♥')", tmp_path, PYTHONIOENCODING="ascii")
    assert shown.stdout == "12 +- 3 ... 4 x 5 us ?\n"


TABLE = PRINT + (
    "from dpeval.util.display.tables import make_console, make_table; "
    "table = make_table('t', {'run': 'left', 'img/s ±': 'right'}); "
    "table.add_row('a model with quite a long name', '12345.67'); make_console().print(table)"
)


@pytest.mark.parametrize(
    ("columns", "environment", "is_framed"),
    [
        (40, {"TERM": "xterm"}, False),
        (120, {"TERM": "dumb"}, False),
        (120, {"TERM": "xterm", "NO_COLOR": "1"}, True),
        (120, {"TERM": "xterm", "PYTHONIOENCODING": "ascii"}, True),
    ],
)
def test_no_terminal_cuts_a_cell(
    tmp_path: Path, columns: int, environment: dict[str, str], is_framed: bool
) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, "-c", TABLE],
        cwd=tmp_path,
        env={**inherited, "PYTHONPATH": CLONE, **environment},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        check=False,
    )
    os.close(theirs)
    shown = os.read(ours, 65_536).decode()
    os.close(ours)
    assert done.returncode == 0, shown
    row = next(line for line in shown.splitlines() if "a model with quite a long name" in line)
    assert "12345.67" in row
    assert (not row.startswith(" ")) == is_framed
    assert shown.isascii() == (environment.get("PYTHONIOENCODING") == "ascii")


def test_closed_streams_are_replaced_before_files_take_their_numbers(tmp_path: Path) -> None:
    code = PRINT + (
        "import os, sys; file = open('f', 'w'); print('lost'); sys.stdout.flush(); "
        "os.write(1, b'lost'); file.write(f'{file.fileno() > 2} {sys.stdout.isatty()}')"
    )
    closed = f'exec 0<&- 1>&- 2>&-; exec "{sys.executable}" -c "$0"'
    done = subprocess.run(
        ["bash", "-c", closed, code], cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": CLONE},
    )  # fmt: skip
    assert done.returncode == 0
    assert (tmp_path / "f").read_text() == "True False"


def test_a_reader_that_leaves_ends_nothing(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    code = PRINT + "print('a' * 100_000); print('b'); open('done', 'w').close()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=write,
        stderr=subprocess.PIPE, check=False,
        env={**os.environ, "PYTHONPATH": CLONE},
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr, (tmp_path / "done").exists()) == (0, b"", True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_output_that_is_full_is_told_once(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PRINT + "[print('a' * 10_000) for _ in range(9)]"], cwd=tmp_path,
            stdout=full, stderr=subprocess.PIPE, check=False, text=True,
            env={**os.environ, "PYTHONPATH": CLONE},
        )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr.count("No space left on device") == 1


def test_a_file_named_as_a_module_of_python_shadows_nothing(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("raise RuntimeError('mine')")
    (tmp_path / "models.py").write_text("kind = 'mine'")
    code = (
        "from dpeval.util import entry; entry.find_own_parts(); import random, models; "
        "print(random.randint(1, 1), models.kind)"
    )
    assert python(code, tmp_path).stdout == "1 mine\n"


def test_files_named_as_modules_that_python_loads_late_shadow_nothing(tmp_path: Path) -> None:
    for name in ("re", "enum", "typing", "pathlib", "time"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('mine')")
    done = subprocess.run(
        [sys.executable, "-m", "dpeval", "--version"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": CLONE},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_job_starts_beside_a_file_that_would_keep_python_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "types.py").write_text("")
    (tmp_path / "models.py").write_text("kind = 'mine'")
    monkeypatch.chdir(tmp_path)
    code = (
        "from dpeval.util import entry; entry.find_own_parts(in_job=True); import types, models; "
        "print(types.ModuleType.__name__, models.kind)"
    )
    done = subprocess.run(
        [sys.executable, *entry.safe_options(), "-c", code],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": CLONE},
    )  # fmt: skip
    assert done.stdout == "module mine\n", done.stderr


def test_a_plugin_of_hydra_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    plugin = tmp_path / "hydra_plugins" / "old_launcher" / "__init__.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text("raise ValueError('mutable default')")
    done = subprocess.run(
        [sys.executable, "-m", "dpeval.train", "batch=8"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{CLONE}:{tmp_path}"},
    )  # fmt: skip
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert "the plug-in 'old_launcher' of Hydra cannot be imported" in line
    assert "(ValueError: mutable default); upgrade or uninstall it" in line


def test_a_file_named_as_a_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("")
    code = (
        "from dpeval.util import entry\ndef load():\n    from yaml import safe_load\n"
        "raise SystemExit(entry.start(load))"
    )
    done = python(code, tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"dpeval: {tmp_path / 'yaml.py'} is imported in place of")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("raised", [KeyboardInterrupt, AttributeError])
def test_ctrl_c_while_a_command_is_imported_is_one_line(
    capsys: pytest.CaptureFixture[str], raised: type[BaseException]
) -> None:
    def load() -> Callable[[], int]:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise raised from None
        raise AssertionError

    assert entry.start(load) == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert capsys.readouterr().err == "dpeval: interrupted\n"


@pytest.mark.parametrize("number", ADVICE)
def test_faults_of_the_system_are_one_line_with_advice(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise OSError(number, os.strerror(number), "some/folder")

    assert run_main(fails) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"dpeval: some/folder: {os.strerror(number)}; {ADVICE[number]}"


def test_a_name_that_is_too_long_is_shown_in_part() -> None:
    told = explain(OSError(errno.ENAMETOOLONG, "File name too long", "p" * 5_000))
    assert len(str(told)) < 400


@pytest.mark.parametrize("bug", [OSError(errno.ENOENT, "x", "y"), OSError("odd"), KeyError("x")])
def test_a_bug_stays_a_traceback(bug: Exception) -> None:
    assert explain(bug) is None

    def fails() -> None:
        raise bug

    with pytest.raises(type(bug)):
        run_main(fails)


def test_a_long_temporary_folder_is_not_used_for_sockets(tmp_path: Path) -> None:
    long = tmp_path / ("job-scratch-folder/" * 5)
    long.mkdir(parents=True)
    code = (
        "from dpeval.run import forkserver; from multiprocessing import util; "
        "forkserver.shorten_temporary_folder(); print(len(util.get_temp_dir()))"
    )
    done = python(code, tmp_path, TMPDIR=str(long))
    assert int(done.stdout) <= forkserver.MOST_TEMPORARY


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("def Net(:", "SyntaxError: invalid syntax"),
        ("x = 1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_users_module_that_fails_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, words: str
) -> None:
    (tmp_path / "broken_parts.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("broken_parts", None)
    with pytest.raises(ConfigError) as caught:
        locate("broken_parts.Net", key="model._target_")
    assert f"importing broken_parts fails with {words} (broken_parts.py, line 1)" in str(
        caught.value
    )


@pytest.mark.parametrize("name", ["calendar", "time"])
def test_a_users_module_that_has_the_name_of_pythons_own_is_named(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / f"{name}.py").write_text("def build(): pass\n")
    for path in (f"{name}.build", f"{name}.part.build"):
        with pytest.raises(ConfigError) as caught:
            locate(path, key="model._target_")
        assert str(caught.value).endswith(f"not {tmp_path / name}.py; rename the latter")


def test_a_users_module_that_ends_the_program_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parses_arguments.py").write_text("raise SystemExit(2)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="below if __name__ == '__main__'"):
        locate("parses_arguments.build", key="model._target_")


ENTRIES = sorted(
    path
    for path in (Path(CLONE) / "dpeval").rglob("*.py")
    if "\nif __name__ ==" in path.read_text()
    and path.name not in ("run_job.py", "start_job.py")  # jobs start there
)


@pytest.mark.parametrize("path", ENTRIES, ids=lambda path: str(path.relative_to(CLONE)))
def test_every_command_guards_itself_before_it_imports_what_a_folder_may_shadow(path: Path) -> None:
    tree = ast.parse(path.read_text())
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    own = {"__future__", "dpeval.util", "sys", "time"}
    assert imported <= own | {"collections.abc", "importlib", "pathlib", "typing"}
    assert "return entry.start(" in path.read_text()


@pytest.mark.parametrize("module", ["dpeval", "dpeval.data", "dpeval.status"])
def test_commands_start_beside_files_named_as_modules(tmp_path: Path, module: str) -> None:
    for name in ("random", "argparse", "copy", "tempfile"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('mine')")
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=tmp_path, text=True,
        env={**os.environ, "PYTHONPATH": CLONE, "PYTHONIOENCODING": "ascii"},
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_streams_that_a_test_or_notebook_has_replaced_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = io.StringIO()
    monkeypatch.setattr(sys, "stdout", mine)
    output.protect()
    assert sys.stdout is mine


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("batch=4,8,", "remove the comma at its end: batch=4,8"),
        ("batch=range(1,3", "a bracket is not closed"),
        ("batch:4", "write batch=4"),
        ("größe=4", "keys only contain the letters a to z"),
        ("study=a=b", "\"study='a=b'\""),
        ("batch=”32”", 'type its quotes and dashes on the keyboard: batch="32"'),
        ("batch =32", "write batch=32"),
        ("batch==32", "write batch=32"),
        ("num_devices=1 batch=32", "own: num_devices=1 batch=32, without quotes"),
    ],
)
def test_an_override_that_hydra_cannot_parse_has_a_hint(override: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([override])
    assert str(caught.value).startswith(f"'{override}' is not of the form key=value; ")
    assert str(caught.value).endswith(hint)
