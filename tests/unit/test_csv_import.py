"""Tables of other programs: every layout, unit, separator and hole that people have."""

from __future__ import annotations

import gzip
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpeval import analyze
from dpeval.analysis.csv_import import fields, guess, rows, run_keys, text_table
from dpeval.analysis.csv_import import runs as csv_runs
from dpeval.analysis.frame import runs_frame
from dpeval.errors import ConfigError
from dpeval.record.schema import Record


def imported(
    folder: Path, content: str | bytes, columns: str = "", **how: object
) -> csv_runs.Imported:
    path = folder / "t.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    constants = fields.parse_constants(str(how.pop("set", "")))
    time_unit = how.get("time_unit")
    assert time_unit is None or isinstance(time_unit, str)
    parsed = fields.parse(columns, time_unit, constants) if columns else None
    layout = rows.Layout(parsed, constants=constants, **how)  # type: ignore[arg-type]
    return csv_runs.read([path], layout)


def rates(records: Sequence[Record]) -> list[tuple[int, float]]:
    """Devices and throughput of every run, as the frame of runs has them."""
    frame = runs_frame.of_records((run, Path(run.run_id)) for run in records).runs
    return sorted(
        (int(n), round(float(x), 3))
        for n, x in zip(frame["num_devices"], frame["img_per_s"], strict=True)
    )


# --- layouts ------------------------------------------------------------------------------------


def test_a_table_without_ranks_has_a_run_in_every_row(tmp_path: Path) -> None:
    table = (
        "num_nodes,num_replicas,local_bsz,step_time,sync_time\n"
        "1,1,20,0.16,0.001\n1,2,20,0.2,0.03\n1,4,20,0.25,0.08\n2,4,20,0.5,0.3\n"
    )
    found = imported(tmp_path, table)
    assert found.problems == []
    assert rates(found.records) == [(1, 125.0), (2, 200.0), (4, 160.0), (4, 320.0)]
    assert {run.config["scaling"]["kind"] for run in found.records} == {"weak"}
    frame = runs_frame.of_records((run, Path(run.run_id)) for run in found.records).runs
    four = frame[frame["num_devices"] == 4]
    assert four["series"].nunique() == 2, "one node and two are no repetitions of each other"
    assert sorted(frame["comm_exposed_s"]) == pytest.approx([0.001, 0.03, 0.08, 0.3])


def test_placements_tell_devices_and_nodes(tmp_path: Path) -> None:
    table = "placement,local_bsz,step_time,sync_time\n4,8,0.1,0.01\n22,8,0.2,0.1\n13,8,0.4,0.2\n"
    records = imported(tmp_path, table).records
    asked = sorted((r.config["num_devices"], r.config["num_nodes"]) for r in records)
    assert asked == [(4, 1), (4, 2), (4, 2)]
    assert len({run.identity for run in records}) == 3


def test_nodes_and_devices_of_each_tell_the_devices(tmp_path: Path) -> None:
    table = "nodes,gpus_per_node,global_batch_size,samples/s\n1,8,256,1000\n2,8,512,1900\n"
    assert rates(imported(tmp_path, table).records) == [(8, 1000.0), (16, 1900.0)]


def test_words_that_set_rows_apart_and_are_not_read_are_named(tmp_path: Path) -> None:
    table = "Framework,Date,GPUs,bs,Img/sec\n" + "".join(
        f"{name},2022-05-{day},{n},64,{n * 90}\n"
        for day, name in ((17, "DDP"), (18, "Horovod"))
        for n in (1, 2)
    )
    cautions = [note for note in imported(tmp_path, table).notes if "caution" in note]
    assert len(cautions) == 1
    assert "add Framework=variant" in cautions[0]


PUBLIC = {
    # header and rows; throughput of one device count, img/s
    "rank rows": (
        "size,rank,batch_size,loading_time,computation_time\n1,0,32,.1,.9\n2,0,32,.1,.4\n"
        "2,1,32,.1,.5\n",
        "",
        [(1, 32.0), (2, 53.333)],
    ),
    "milliseconds in the name": (
        "\ufeff# GPUs,global batch,iteration time (ms)\n1,16,372.16\n2,16,219.73\n",
        "",
        [(1, 42.992), (2, 72.817)],
    ),
    "samples per second": (
        "Model,SeqLen (T),# GPUs,GPU,MFU,GlobalBatchSize,Throughput (S/s),Throughput (T/s),"
        "Throughput (T/s/GPU)\n"
        "7b,2048,8,h100,50,512,10,20480,2560\n7b,2048,16,h100,50,1024,19,38912,2432\n",
        "",
        [(8, 10.0), (16, 19.0)],
    ),
    "tokens per second and device": (
        "SeqLen,num_gpus,GlobalBatchSize,tokens/s/device\n2048,8,512,2560\n2048,16,512,2432\n",
        "",
        [(8, 10.0), (16, 19.0)],
    ),
    "steps per second": (
        "scale_factor,batch_size,worker_type,steps_per_s\n1,64,v100,2\n2,64,v100,3\n",
        "",
        [(1, 128.0), (2, 192.0)],
    ),
    "throughput per system": (
        "Accelerator,# of Accelerators,Benchmark,Throughput\nH100,8,bert,100\nH100,16,bert,190\n",
        "global_batch=256",
        [(8, 100.0), (16, 190.0)],
    ),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_layouts_are_told_from_their_names(tmp_path: Path, name: str) -> None:
    table, constants, expected = PUBLIC[name]
    found = imported(tmp_path, table, set=constants)
    assert found.problems == []
    assert rates(found.records) == expected
    assert any("reading '" in note for note in found.notes)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("worldSize,batchSize,iterTime", "num_devices batch step_s"),
        ("n_gpus,per_gpu_batch_size,step_ms", "num_devices per_device_batch step_s"),
        ("gpus,bs,images/sec", "num_devices batch samples_per_s"),
        ("gpus,bs,samples_per_second_per_gpu", "num_devices batch samples_per_s_per_device"),
        ("nodes,gpus,batch,img/s", "num_devices num_nodes batch samples_per_s"),
        ("ngpus,gbs,it/s", "num_devices global_batch steps_per_s"),
        ("nprocs,rank,gbs,mean step time [µs]", "num_devices rank global_batch step_s"),
        ("gpus,batch,step,step_time,loss", "num_devices batch iteration step_s"),
    ],
)  # fmt: skip
def test_names_of_columns(names: str, expected: str) -> None:
    assert sorted(one.field for one in guess.columns(names.split(","))) == sorted(expected.split())


def test_rows_of_numbered_steps_are_steps_of_a_run(tmp_path: Path) -> None:
    rows_of_steps = [(run, step, rank) for run in "ab" for step in range(3) for rank in (0, 1)]
    table = "run,step,gpus,rank,batch,step_time\n" + "".join(
        f"{run},{step},2,{rank},32,{1 + step}.{rank}\n" for run, step, rank in rows_of_steps
    )
    for text_of, found in ((table, 6), (table.replace("run,", "name,"), 6)):
        records = imported(tmp_path, text_of).records
        assert len(records) == found
        assert pairs(records) == [[1 + k, 1.1 + k] for k in (0, 0, 1, 1, 2, 2)]


def test_many_rows_of_a_configuration_are_thinned_to_medians(tmp_path: Path) -> None:
    """Fast, and of a drifting, heavy-tailed series the median stays where it is."""
    rng = np.random.default_rng(0)
    count = 60_000
    times = np.exp(rng.normal(0, 0.3, count)) * np.linspace(1, 1.2, count)
    table = "gpus,batch,step_time\n" + "".join(f"1,32,{time:.5f}\n" for time in times)
    found = imported(tmp_path, table + "2,32,0.7\n")
    kept = [run.window.step_s.mean for run in found.records if run.window is not None]
    assert 200 < len(kept) <= run_keys.MOST_RUNS + 1
    assert np.median(kept) == pytest.approx(np.median(times), rel=0.01)
    assert kept[-1] == 0.7, "a configuration with few rows keeps all"
    assert any("60,001 runs" in note for note in found.notes)
    assert len(found.records[0].missing) == len(found.records[-1].missing) + 1


def test_an_ambiguous_name_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'time'.*'duration'.*step_s.*--columns"):
        imported(tmp_path, "gpus,batch,time,duration\n1,8,1,2\n")


def test_what_no_column_tells_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lacks batch.*--set global_batch"):
        imported(tmp_path, "gpus,images/s\n1,8\n")
    with pytest.raises(ConfigError, match="seq_len"):
        imported(tmp_path, "gpus,batch,tokens/s\n1,8,100\n")


# --- units --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "field", "unit", "value"),
    [
        ("t", "step_ms", None, "500"),
        ("t", "step", "ms", "500"),
        ("t (ms)", "step", None, "500"),
        ("t (ms)", "step", "us", "500"),
        ("t_us", "step", None, "500000"),
        ("t", "step_s", None, "0.5"),
        ("t", "step_s", None, "500 ms"),
        ("t", "step", None, "5e-1"),
    ],
)
def test_units_of_time(tmp_path: Path, name: str, field: str, unit: str | None, value: str) -> None:
    table = f"n,b,{name}\n1,32,{value}\n"
    columns = f"n=num_devices,b=batch,{name}={field}"
    assert rates(imported(tmp_path, table, columns, time_unit=unit).records) == [(1, 64.0)]


@pytest.mark.parametrize(("name", "unit"), [("t (ms)", None), ("t", "ms")])
def test_a_unit_that_contradicts_is_refused(name: str, unit: str | None) -> None:
    with pytest.raises(ConfigError, match=r"\bms\b.*--time-unit.*step_s"):
        fields.parse(f"n=num_devices,b=batch,{name}=step_s", unit)


@pytest.mark.parametrize(("step", "is_doubted"), [("372.16", True), ("0.372", False)])
def test_implausible_times_are_doubted(tmp_path: Path, step: str, is_doubted: bool) -> None:
    notes = imported(tmp_path, f"n,b,t\n1,16,{step}\n", "n=num_devices,b=batch,t=step_s").notes
    assert any("--time-unit" in note for note in notes) == is_doubted


def test_a_minimum_is_no_minute() -> None:
    assert fields.unit_in("latency_min") is None
    assert fields.unit_in("time (min)") == "min"


# --- rows that belong together ------------------------------------------------------------------

BY_RANK = "n=num_devices,r=rank,b=batch,t=step_s"


def pairs(records: Sequence[Record]) -> list[list[float]]:
    """The step times of the ranks of every run."""
    return sorted([rank.step_s[0] for rank in run.ranks] for run in records)


def test_a_missing_row_of_a_rank_is_not_paired_with_the_next_repetition(tmp_path: Path) -> None:
    ranks = [(0, 1.0), (1, 1.1), (0, 2.0), (0, 3.0), (1, 3.1)]
    table = "n,r,b,t\n" + "".join(f"2,{rank},32,{step}\n" for rank, step in ranks)
    records = imported(tmp_path, table, BY_RANK).records
    assert pairs(records) == [[1.0, 1.1], [2.0], [3.0, 3.1]]
    assert any("ranks 1: no row" in lack for run in records for lack in run.missing)


def test_the_slowest_of_the_ranks_that_have_a_row_is_named(tmp_path: Path) -> None:
    table = "n,r,b,t\n4,3,32,1.1\n4,2,32,1.5\n4,1,32,1.2\n"
    (found,) = imported(tmp_path, table, BY_RANK).records
    assert [rank.rank for rank in found.ranks] == [1, 2, 3]
    assert found.throughput is not None
    assert found.throughput.slowest_rank == 2
    assert found.slowest is not None
    assert found.slowest.step_s == [1.5]


def test_a_row_without_a_time_keeps_its_place(tmp_path: Path) -> None:
    ranks = [(0, "1.0"), (1, ""), (0, "2.0"), (1, "2.1")]
    table = "n,r,b,t\n" + "".join(f"2,{rank},32,{step}\n" for rank, step in ranks)
    found = imported(tmp_path, table, BY_RANK)
    assert pairs(found.records) == [[1.0], [2.0, 2.1]]
    assert found.problems == [f"{tmp_path}/t.csv, line 3: step_s is '', not a number"]


def test_rows_that_cannot_be_paired_are_left_out_with_the_reason(tmp_path: Path) -> None:
    ranks = [0, 0, 0, 1, 1]
    table = "n,r,b,t\n1,0,32,1\n" + "".join(f"2,{rank},32,1\n" for rank in ranks)
    found = imported(tmp_path, table, BY_RANK)
    assert [run.config["num_devices"] for run in found.records] == [1]
    assert "=run_id" in found.problems[0]


@settings(max_examples=20, deadline=None)
@given(repeats=st.integers(1, 4), devices=st.integers(1, 4), data=st.data())
def test_every_order_of_complete_runs_gives_them_back(
    tmp_path_factory: pytest.TempPathFactory, repeats: int, devices: int, data: st.DataObject
) -> None:
    """Runs one after the other, or each rank's runs together: the k-th of every rank is one run."""
    cells = [(run, rank) for run in range(repeats) for rank in range(devices)]
    if data.draw(st.booleans()):
        cells.sort(key=lambda cell: (cell[1], cell[0]))
    table = "n,r,b,t\n" + "".join(f"{devices},{r},32,{k + 1}.{r}\n" for k, r in cells)
    found = imported(tmp_path_factory.mktemp("t"), table, BY_RANK)
    assert found.problems == []
    assert pairs(found.records) == [
        [float(f"{k + 1}.{r}") for r in range(devices)] for k in range(repeats)
    ]


def test_run_ids_may_restart_for_every_model_and_in_every_file(tmp_path: Path) -> None:
    columns = f"{BY_RANK},id=run_id,m=model"
    table = "n,r,b,t,id,m\n" + "".join(
        f"2,{rank},32,1,{run},{model}\n" for model in "ab" for run in (0, 1) for rank in (0, 1)
    )
    for name in ("x.csv", "y.csv"):
        (tmp_path / name).write_text(table)
    found = csv_runs.read([tmp_path], rows.Layout(fields.parse(columns)))
    assert found.problems == []
    assert len(found.records) == 8
    assert all(len(run.ranks) == 2 for run in found.records)


def test_a_rank_that_occurs_twice_is_told_with_a_way_out(tmp_path: Path) -> None:
    found = imported(tmp_path, "n,r,b,t,id\n1,0,32,1,a\n1,0,32,2,a\n", f"{BY_RANK},id=run_id")
    assert found.records == []
    assert "=variant" in found.problems[0]


def test_variants_are_not_pooled(tmp_path: Path) -> None:
    table = "n,b,t,opt,amp\n1,32,1,sgd,no\n1,32,2,adam,no\n1,32,3,adam,yes\n"
    columns = "n=num_devices,b=batch,t=step,opt=variant,amp=variant"
    records = imported(tmp_path, table, columns).records
    assert len({run.identity for run in records}) == 3
    frame = runs_frame.of_records((run, Path(run.run_id)) for run in records).runs
    assert frame["series"].nunique() == 3


# --- text ---------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    separator=st.sampled_from(sorted(text_table.SEPARATORS)),
    comma=st.booleans(),
    bars=st.booleans(),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"]),
    times=st.lists(st.decimals("0.001", "9.999", places=3), min_size=1, max_size=6),
)
def test_separators_decimal_marks_and_encodings(
    tmp_path_factory: pytest.TempPathFactory,
    separator: str,
    comma: bool,
    bars: bool,
    ending: str,
    encoding: str,
    times: list[object],
) -> None:
    def row(cells: Sequence[str]) -> str:
        quoted = [f'"{cell}"' if separator in cell else cell for cell in cells]
        joined = separator.join(quoted)
        return f"|{joined}|" if separator == "|" and bars else joined

    # Three decimals alone might be thousands: a first time that cannot.
    shown = ["0.5", *map(str, times)]
    cells = [["1", "32", one.replace(".", ",") if comma else one] for one in shown]
    lines = [row(["größe", "b", "t"]), *map(row, cells)]
    found = imported(
        tmp_path_factory.mktemp("t"),
        ending.join(lines).encode(encoding),
        "größe=num_devices,b=batch,t=step_s",
    )
    assert found.problems == []
    measured = [run.window.step_s.mean for run in found.records if run.window is not None]
    assert sorted(measured) == pytest.approx(sorted(map(float, shown)))


@pytest.mark.parametrize(
    ("table", "steps"),
    [
        ("sep=;\nn;b;t\n1;8;0,5\n", [0.5]),
        ("n,b,t,,\n1,8,0.5,,\n1,8,0.6,,\n", [0.5, 0.6]),
        ("n,b,t\n1,8,0.5,\n1,8,0.6,\n", [0.5, 0.6]),
        ("n,b,t\n1,8,0.5\nn,b,t\n1,8,0.6\n\n", [0.5, 0.6]),
        ("Results of Monday\n\nn,b,t\n1,8,0.5\n", [0.5]),
        ("| n | b | t |\n|---|:-:|--:|\n| 1 | 8 | 0.5 |\n", [0.5]),
        ('n,b,t\n1,"1,024","1,234.5"\n', [1234.5]),
        ("n;b;t\n1;1.024;0,5\n", [0.5]),
        ("n;b;t\n1;8;1.234\n", [1.234]),
        (" n , b , t \n 1 , 8 , 0.5 \n", [0.5]),
        ("# by bench.py, on Monday\n# gpu: A100, 8\nn,b,t\n1,8,0.5\n", [0.5]),
        ("x,x,time\nn,b,t\n1,8,0.5\n", [0.5]),
        ("n b t\n1 8  0.5\n", [0.5]),
    ],
)
def test_tables_as_people_have_them(tmp_path: Path, table: str, steps: list[float]) -> None:
    found = imported(tmp_path, table, "n=num_devices,b=batch,t=step_s")
    assert found.problems == []
    measured = [run.window.step_s.mean for run in found.records if run.window is not None]
    assert measured == pytest.approx(steps)


def test_names_after_a_comment_sign_stay_names(tmp_path: Path) -> None:
    found = imported(tmp_path, "# of a run\n# GPUs,batch,step_time\n1,8,0.5\n")
    assert [run.config["num_devices"] for run in found.records] == [1]


def test_a_row_of_units_is_no_run(tmp_path: Path) -> None:
    found = imported(tmp_path, "gpus,batch,step_time\n-,img,ms\n1,8,500\n")
    assert found.problems == []
    assert [run.window.step_s.mean for run in found.records if run.window] == [0.5]


def test_a_name_that_two_columns_have_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'step_time'"):
        imported(tmp_path, "gpus,batch,step_time,step_time\n1,8,1,2\n")


def test_a_cell_that_is_not_a_number_is_shown(tmp_path: Path) -> None:
    found = imported(tmp_path, "gpus,batch,step_time\n1,8,1\n1,8,nan\n")
    assert found.problems == [f"{tmp_path}/t.csv, line 3: step_s is 'nan', not a number"]


def test_a_row_with_surplus_cells_is_left_out_with_its_line(tmp_path: Path) -> None:
    found = imported(tmp_path, "n,b,t\n1,8,0,5\n1,8,1\n", "n=num_devices,b=batch,t=step_s")
    assert len(found.records) == 1
    assert found.problems == [
        f"{tmp_path}/t.csv, line 2: has 4 cells, and there are 3 names (separator: comma)"
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"hello\n", "no separator"),
        (b"PK\x03\x04\0\0", "save the table as CSV"),
        (b"1,2,3\n4,5,6\n", "add a line with column names"),
        (b"n,b,t\n", "contains no run"),
        (b"<!DOCTYPE html>\n<html><head><title>a, b</title></head></html>\n", "is a web page"),
        (b'[{"gpus": 1, "time": 0.5}]\n', "is JSON, not a table"),
        (b"n,b,t\n1,8,x\n", "contains no run: .*step_s is 'x', not a number"),
    ],
)
def test_what_cannot_be_read_ends_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, why: str
) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    columns = "n=num_devices,b=batch,t=step_s"
    assert analyze.main(["--from-csv", str(tmp_path / "t.csv"), "--columns", columns]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(why, line)


def test_folders_and_patterns_stand_for_their_tables(tmp_path: Path) -> None:
    table = "n,b,t\n1,8,1\n"
    (tmp_path / "a.csv").write_text(table)
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(table.encode()))
    (tmp_path / "notes.txt").write_text("nothing\n")
    ours = tmp_path / "analysis"
    (ours / text_table.OUR_RECORDS).mkdir(parents=True)
    (ours / "runs.csv").write_text(table)
    layout = rows.Layout(fields.parse("n=num_devices,b=batch,t=step_s"))
    found = csv_runs.read([tmp_path], layout)
    assert len(found.records) == 2
    assert [problem.split(" is not a table")[0] for problem in found.problems] == [
        str(tmp_path / "notes.txt")
    ]
    assert len(csv_runs.read([tmp_path / "*.csv*"], layout).records) == 2
    for nothing in (ours / text_table.OUR_RECORDS, tmp_path / "*.dat", tmp_path / "gone.csv"):
        with pytest.raises(ConfigError):
            csv_runs.read([nothing], layout)


def test_a_recommendation_rests_on_all_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = "GPUs,local_bsz,step_time\n" + "".join(
        f"{n},20,{0.16 + n / 100}\n" for n, _ in itertools.product((1, 2, 4), range(2))
    )
    (tmp_path / "t.csv").write_text(table)
    assert analyze.main(["--from-csv", str(tmp_path / "t.csv"), "--tables-only"]) == 0
    made = pd.read_csv(tmp_path / "analysis" / "runs.csv")
    assert sorted(made["num_devices"]) == [1, 1, 2, 2, 4, 4]
    assert set(made["hardware"]) == {"gpu"}
    assert "skipped" not in capsys.readouterr().out
