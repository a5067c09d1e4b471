"""Records that this project made on real machines, and what the analysis makes of them.

After a change that is meant to alter the frame: ``python -m tests.unit.test_golden``, and read the
difference before committing it.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from dpeval.analysis.frame import runs_frame
from dpeval.analysis.frame.columns import LISTS
from dpeval.analysis.scaling.findings import find

GOLDEN = Path(__file__).parent / "golden"


def frames() -> dict[str, pd.DataFrame]:
    """The tidy frame of the golden records, and the table of configurations."""
    loaded = runs_frame.load([GOLDEN])
    assert loaded.problems == []
    runs = loaded.runs.drop(columns=LISTS).assign(
        path=[Path(path).name for path in loaded.runs["path"]]
    )
    summary = find(loaded).summary
    assert set(runs["unit"]) == {"img"}
    # What is told of the place of a run is long, and compared through the series it makes.
    return {
        "runs": runs.drop(columns=["task", "configuration", "place", "unit"]),
        "summary": summary.drop(columns=["unit"]),
    }


def as_written(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """`table` as it comes back from a CSV file."""
    table.to_csv(path, index=False)
    return pd.read_csv(path)


def test_the_frames_of_real_records_are_what_they_were(tmp_path: Path) -> None:
    for name, table in frames().items():
        golden = pd.read_csv(GOLDEN / f"{name}.csv")
        pd.testing.assert_frame_equal(as_written(table, tmp_path / "now.csv"), golden, rtol=1e-9)


def test_the_golden_records_hold_every_kind_of_row() -> None:
    runs = frames()["runs"]
    assert set(runs["status"]) == {"ok", "skipped", "failed"}
    assert set(runs["num_devices"]) == {1, 2, 3}
    assert runs["repetition"].max() >= 1
    assert runs["no_sync_s"].notna().any()


def regenerate() -> None:
    """Write what the analysis says now as what it should say."""
    for name, table in frames().items():
        table.to_csv(GOLDEN / f"{name}.csv", index=False)


if __name__ == "__main__":
    regenerate()
