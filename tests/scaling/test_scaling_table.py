"""Tables in: every form of them, and every way that one can be wrong."""

import json
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
