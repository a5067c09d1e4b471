"""An installed wheel in an empty folder does what a clone does."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from tests.multiprocess.conftest import CALIBRATED, ROOT


def test_the_wheel_carries_its_configuration(tmp_path: Path, environment: dict[str, str]) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(tmp_path), str(ROOT)],
        check=True, cwd=tmp_path,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("dpeval-*.whl")
    installed, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    done = subprocess.run(
        [sys.executable, "-m", "dpeval.train", *CALIBRATED],
        cwd=empty, env={**environment, "PYTHONPATH": str(installed)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(empty.glob("outputs/*/*/metrics.json"))
    assert (installed / "dpeval" / "metrics.schema.json").exists()
