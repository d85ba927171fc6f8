"""Tables in: every form of them, and every way that one can be wrong."""

import csv
import gzip
import json
import logging
from pathlib import Path

import pandas as pd
import pytest

from backcast.errors import InputError
from backcast.scaling import Observation, fit_law, read_results
from backcast.scaling.table import observations

ROWS = [
    {"selector": "random", "budget": "5%", "n": 60, "seed": 0, "metric": 0.41, "cost": 2.5},
    {"selector": "random", "budget": "5%", "n": 60, "seed": 1, "metric": 0.43, "cost": None},
    {"selector": "top_k", "budget": "10%", "n": 120, "seed": 0, "metric": 0.52, "cost": 5},
]
RUNS = [
    Observation(60, 0.41, "0", None, "random", 2.5),
    Observation(60, 0.43, "1", None, "random", None),
    Observation(120, 0.52, "0", None, "top_k", 5.0),
]


def test_a_sweeps_results_read_back(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    assert read_results(path) == RUNS


def test_csv_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    pd.DataFrame(ROWS).to_csv(path, index=False)
    assert read_results(path) == RUNS


@pytest.mark.parametrize("name", ["r.tsv", "r.csv.gz", "r.TSV.gz", "r.jsonl.gz", "r.parquet"])
def test_other_formats_read_the_same(name: str, tmp_path: Path) -> None:
    path, frame = tmp_path / name, pd.DataFrame(ROWS)
    if name == "r.parquet":
        frame.to_parquet(path)
    elif "json" in name:
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="\t" if "tsv" in name.lower() else ",")
    assert read_results(path) == RUNS
    assert observations(path, group="selector") == RUNS


def test_a_sweeps_folder_is_its_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^{tmp_path}: no such file, nor a sweep's folder"):
        read_results(tmp_path)
    (tmp_path / "results.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    assert read_results(tmp_path) == RUNS
    (tmp_path / "results.jsonl").write_text(json.dumps({**ROWS[0], "n": 0}))
    with pytest.raises(InputError, match=r"results\.jsonl:1: n is 0"):
        read_results(tmp_path)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    cut = gzip.compress(b"n,value\n1,2\n" * 999)[:-20]
    cases = {
        "a.parquet": (b"no", "not a Parquet file"),
        "b.csv.gz": (b"n,value", "not a whole gzip file"),
        "c.csv.gz": (cut, "not a whole gzip file"),
        "d.csv": (b"\xff\xfe\x00", "not a text file"),
        "e.csv": (b"n,value\n1,2\n3," + b"4" * (csv.field_size_limit() + 1), "e.csv:3: not valid CSV"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            read_results(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_a_modality_tells_curves_apart_where_no_selector_does(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("n,value,selector,modality\n10,0.5,,image\n20,0.6,,text\n")
    assert [run.group for run in read_results(path)] == ["image", "text"]
    path.write_text("n,value,selector,modality\n10,0.5,top_k,image\n20,0.6,random,text\n")
    assert [run.group for run in read_results(path)] == ["top_k", "random"]
    path.write_text("n,value\n10,0.5\n20,0.6\n")
    assert [run.group for run in read_results(path)] == ["", ""]


# ------------------------------------------------------------------ as Weights & Biases exports them

#: The table of runs: a run each, its own columns first, then those of its config and its summary.
RUNS_TABLE = """"Name","State","Notes","User","Tags","Created","Runtime","Sweep","seed","train_size","eval/accuracy"
"brave-fox-1","finished","two
lines","me","","2026-03-01T10:00:00.000Z","61","","0","100","0.61"
"calm-sea-2","crashed","-","me","","2026-03-01T10:01:00.000Z","12","","1","100",""
"dark-sky-3","finished","-","me","a, b","2026-03-01T10:02:00.000Z","63","","0","200","0.7"
"early-sun-4","running","-","me","","2026-03-01T10:03:00.000Z","5","","1","200","0.2"
"""


def test_of_a_table_of_runs_the_finished_ones_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "wandb_export.csv"
    path.write_text(RUNS_TABLE)
    expected = [Observation(100, 0.61, "0"), Observation(200, 0.7, "0")]
    with caplog.at_level(logging.WARNING, "backcast"):
        assert observations(path, n="train_size", value="eval/accuracy") == expected
        assert read_results(path, n="train_size", value="eval/accuracy") == expected
    assert caplog.messages == 2 * [
        f"{path}: runs that did not finish are left out: calm-sea-2 (crashed), early-sun-4 (running)"
    ]
    path.write_text(RUNS_TABLE.replace('"0.7"', '"NaN"'))
    with pytest.raises(InputError, match=rf"{path}:5: eval/accuracy is 'NaN', which is not finite"):
        observations(path, n="train_size", value="eval/accuracy")


def test_a_column_state_of_other_words_is_the_users_own(caplog: pytest.LogCaptureFixture) -> None:
    table = {"n": [1, 2, 3], "value": [3, 2, 1], "state": ["Ohio", "failed", "Utah"]}
    assert len(observations(table)) == 3
    assert not caplog.messages
    table["state"] = ["finished", "failed", ""]
    assert [run.n for run in observations(table)] == [1, 3]
    assert caplog.messages == ["table: runs that did not finish are left out: row 1 (failed)"]


CHART = """"Step","a - b - eval/loss","a - b - eval/loss__MIN","a - b - eval/loss__MAX","c - eval/loss","c - eval/loss__MIN","c - eval/loss__MAX"
"0","9","9","9","8","8","8"
"100","2.5","2.4","2.6","","",""
"200","2.0","1.9","2.1","1.5","1.5","1.5"
"""  # noqa: E501


def test_a_chart_is_a_curve_for_each_run(tmp_path: Path) -> None:
    path = tmp_path / "wandb_export.csv"
    path.write_text(CHART)
    expected = [
        Observation(100, 2.5, group="a - b"),
        Observation(200, 2.0, group="a - b"),
        Observation(200, 1.5, group="c"),
    ]
    assert read_results(path) == expected
    assert observations(path, n="Step", value="eval/loss", group="run") == expected
    assert observations(pd.read_csv(path), group="run") == expected
    path.write_text(CHART.replace('"200"', '"many"'))
    with pytest.raises(InputError, match=rf"{path}:4: n is 'many'"):
        read_results(path)


def test_of_a_chart_of_several_metrics_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "chart.csv"
    names = [f"a - {m}{end}" for m in ("acc", "f1", "_step") for end in ("", "__MIN", "__MAX")]
    path.write_text(",".join(["examples", *names]) + "\n50" + ",0.5" * 3 + ",0.4" * 3 + ",7" * 3 + "\n")
    assert observations(path, n="examples", value="f1") == [Observation(50, 0.4)]
    with pytest.raises(InputError, match=r"no column 'value' among \['acc', 'examples', 'f1', 'n', 'run'\]"):
        read_results(path)


def test_dotted_names_reach_into_nested_objects(tmp_path: Path) -> None:
    rows = [
        {
            "name": f"run-{n}",
            "state": "finished",
            "config": {"data": {"n": n}, "seed": 3},
            "summary": {"eval": {"acc": n / 1000, "best": None}, "eval/f1": 0.5},
        }
        for n in (100, 200)
    ]
    names = {"n": "config.data.n", "value": "summary.eval.acc", "seed": "config.seed"}
    expected = [Observation(100, 0.1, "3"), Observation(200, 0.2, "3")]
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pd.DataFrame(rows).to_csv(tmp_path / "runs.csv")  # nested cells as Python prints them
    pd.DataFrame(rows).to_parquet(tmp_path / "runs.parquet")
    pd.DataFrame([{**row, "config": json.dumps(row["config"])} for row in rows]).to_csv(tmp_path / "json.csv")
    for file in ("runs.jsonl", "runs.csv", "runs.parquet", "json.csv"):
        assert observations(tmp_path / file, **names) == expected, file
    assert observations(pd.DataFrame(rows), **names) == expected
    assert observations(rows, **{**names, "value": "summary.eval/f1"})[0].value == 0.5
    with pytest.raises(InputError, match=r"no column 'config.n' among \['config.data.n', 'config.seed'"):
        observations(rows, n="config.n")


def test_a_table_of_many_columns_names_some() -> None:
    with pytest.raises(InputError, match=r"no column 'n' among \['c10', .*, 'c29'\] and 30 more; name"):
        observations([{f"c{i}": i for i in range(10, 60)}])


def test_tables_in_memory_read_the_same() -> None:
    frame = pd.DataFrame(ROWS)
    for table in (ROWS, {name: list(frame[name]) for name in frame}, frame, RUNS):
        assert observations(table, group="selector") == RUNS


def test_own_column_names_and_empty_cells() -> None:
    table = {"size": [1, 2], "acc": ["0.5", "0.6"], "run": ["", "x"], "sem": ["0.01", ""]}
    assert observations(table, n="size", value="acc", seed="run", se="sem") == [
        Observation(1, 0.5, "", 0.01),
        Observation(2, 0.6, "x", None),
    ]


def test_every_bad_row_is_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("n,value,se\n10,0.5,\n0,0.5,\n20,good,\n30,,\n40,nan,-1\n50,inf,\n60,0.5,-1\n")
    with pytest.raises(InputError) as caught:
        read_results(path)
    message = str(caught.value)
    assert "\n" not in message
    for line, why in [(3, "n is '0'"), (4, "'good'"), (5, "empty"), (6, "'nan'"), (7, "'inf'")]:
        assert f"{path}:{line}: " in message
        assert why in message
    assert message.endswith("and 1 more")


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"n": 1, "value": 2}\n{"n": 1,\n')
    with pytest.raises(InputError, match=rf"{path}:2: not valid JSON"):
        read_results(path)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "no rows"),
        ("missing.csv", "no such file"),
        ([{"n": 1, "score": 2}], "no column 'value' among"),
        ([{"size": 1, "value": 2}], "no column 'n' among"),
        ([{"n": 1, "value": 2}, 7], "row 1: 7 is not a row"),
        ({"n": [1, 2], "value": [1]}, "different lengths"),
        (3, "cannot read a int"),
        ([{"n": 5, "value": 1, "seed": 0}] * 2, "row 1: n 5 with seed 0 is already at row 0"),
        ([{"n": 5, "value": 1}] * 3, "all at n = 5; a law needs at least two"),
    ],
)
def test_tables_that_cannot_be_used(table: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        fit_law(table)
    assert "\n" not in str(caught.value)


def test_a_group_column_must_be_there() -> None:
    with pytest.raises(InputError, match="no column 'selector'"):
        fit_law([{"n": 1, "value": 2}], group="selector")


def test_curves_that_were_mixed_up_are_noticed() -> None:
    mixed = [{"n": n, "value": 1.0 / n, "seed": 0, "selector": s} for n in (1, 2) for s in "ab"]
    with pytest.raises(InputError, match="name the column that tells the curves apart"):
        fit_law(mixed)


def test_arguments_that_contradict_the_table() -> None:
    table = [{"n": n, "value": v} for n, v in [(10, 60.0), (20, 70.0)]]
    with pytest.raises(InputError, match="outside the bounds 0 to 1"):
        fit_law(table, bounds=(0, 1))
    with pytest.raises(InputError, match="not a range"):
        fit_law(table, bounds=(100, 0))
    with pytest.raises(InputError, match="unknown laws"):
        fit_law(table, laws=["cubic"])
