"""A run as a file: what it may hold, where its places are, and what a manifest tells of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from backcast.errors import InputError
from backcast.recipes.selection.run_config import RunConfig

WHOLE: dict[str, Any] = {
    "model": "llama",
    "pool": ["a.jsonl", "b/*.jsonl"],
    "target": {"math": {"data": "math.jsonl", "weight": 2}, "code": "owner/code:test"},
    "budget": "5% tokens",
    "method": "dedup | top_k",
    "params": {"dedup": {"threshold": 0.9}},
    "weights": {"code": 3},
    "at_least": {"web": "10%"},
    "at_most": {"web": 30},
    "score": {"method": "grad_dot"},
    "sketch": {"dim": 64},
    "trial": {"test": "./test.jsonl", "steps": 5},
    "out": "subset.jsonl",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model and some data."""
    for name in ("llama/config.json", "a.jsonl", "b/1.jsonl", "math.jsonl", "scores"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    return tmp_path


def written(path: Path, value: object) -> Path:
    path.write_text(yaml.safe_dump(value) if not isinstance(value, str) else value)
    return path


def test_places_are_those_beside_the_file(folder):
    """What lies there or begins with a dot; hub ids stay. A weight beside a target is one of the weights."""
    config = RunConfig.read(written(folder / "run.yaml", WHOLE))
    assert config.model == str(folder / "llama")
    assert config.pool == f"{folder}/a.jsonl,{folder}/b/*.jsonl"
    assert config.target == {"math": f"{folder}/math.jsonl", "code": "owner/code:test"}
    assert config.weights == {"math": 2, "code": 3}
    assert config.trial
    assert config.trial.test == str(folder / "test.jsonl")
    assert config.out == str(folder / "subset.jsonl")
    assert config.score.params == {}
    assert RunConfig().score.params == {"cosine": True}


def test_options_go_before_the_files_keys(folder):
    config = RunConfig.read(written(folder / "run.yaml", WHOLE))
    changed = config.changed({"budget": "7", "at_least": {"books": "1"}, "seed": None})
    assert (changed.budget, changed.at_least, changed.seed) == ("7", {"books": "1"}, 0)
    assert changed.model_copy(update={"budget": "5% tokens", "at_least": {"web": "10%"}}) == config


def test_what_a_manifest_tells_is_the_run_from_anywhere(folder, tmp_path_factory):
    """Defaults and all, with no absolute path of what lies beside the manifest."""
    config = RunConfig.read(written(folder / "run.yaml", {**WHOLE, "pool": "a.jsonl", "trial": None}))
    told = config.embedded(folder)
    assert told["model"] == "./llama"
    assert told["target"] == {"math": "./math.jsonl", "code": "owner/code:test"}
    assert told["sketch"] == {"dim": 64, "dtype": "float32"}
    assert (told["seed"], told["batch_size"]) == (0, 32)
    assert "out" not in told
    assert str(folder) not in json.dumps(told)

    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("a.jsonl", "math.jsonl"):
        (elsewhere / name).write_text("")
    (elsewhere / "subset.meta.json").write_text(json.dumps({"run": told}))
    again = RunConfig.read(elsewhere / "subset.meta.json")
    assert again.pool == str(elsewhere / "a.jsonl")
    assert again.embedded(elsewhere) == told
    assert again.out == "subset.jsonl"


def test_a_run_from_scores_tells_of_nothing_else(folder):
    config = RunConfig.of({"scores": str(folder / "scores"), "budget": 7, "signals": {"p": "gone"}})
    assert config.embedded(folder) == {
        "scores": "./scores",
        "signals": {"p": "gone"},
        "budget": 7,
        "method": "round_robin",
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"bugdet": 5}, ": bugdet: no such key; it has model, pool,"),
        ({"sketch": {"dims": 5}}, ": sketch.dims: no such key; it has dim, kind, dtype"),
        ({"budget": 0.05}, ": budget 0.05: give a count"),
        ({"at_least": {"web": "most"}}, ": at_least: budget 'most': give a count"),
        ({"at_most": 5}, ": at_most: Input should be a valid dictionary"),
        ({"seed": -1}, ": seed: Input should be greater than or equal to 0"),
        ({"target": ["a", "b"]}, ": target: give a data set, or a name"),
        ({"target": {"a": {"weight": 2}}}, ": target 'a': give a data set, or its data and weight"),
        ({"group_by": "label"}, ": group_by: targets are grouped by 'source'"),
        ({"trial": {"steps": 5}}, ": trial.test: Field required"),
        ("- 1\n", ": not a mapping of keys; it has model, pool,"),
        ("a: 1\nb: [\n", ":3: not valid YAML (expected the node content"),
        ("\tbudget: 5\n", ":1: not valid YAML (found character"),
    ],
)
def test_a_fault_is_one_line_with_its_file_and_key(content, message, tmp_path):
    path = written(tmp_path / "run.yaml", content)
    with pytest.raises(InputError) as raised:
        RunConfig.read(path)
    assert str(raised.value).startswith(f"{path}{message}")
    assert "\n" not in str(raised.value)


def test_files_that_are_no_run(tmp_path):
    with pytest.raises(InputError, match=r"gone\.yaml: No such file or directory; give a run\.yaml"):
        RunConfig.read(tmp_path / "gone.yaml")
    meta = tmp_path / "subset.meta.json"
    meta.write_text("{}")
    with pytest.raises(InputError, match="tells of no run"):
        RunConfig.read(meta)


def test_keys_that_do_not_go_together():
    shot = {"model": "m", "pool": "p", "target": "t"}
    RunConfig.of(shot).check()
    RunConfig.of({"scores": "s", "store": "s", "parts": "p", "weights": {"a": 2}}).check()
    RunConfig.of({"scores": "s", "model": "m", "budget": "5% tokens"}).check()
    bad: list[tuple[dict[str, Any], str]] = [
        ({}, "give either --scores"),
        ({"model": "m", "pool": "p"}, "give either --scores"),
        ({**shot, "scores": "s"}, "give either --scores"),
        ({**shot, "store": "s"}, "give either --scores"),
        ({"scores": "s", "sketch": {"dim": 64}}, "give either --scores"),
        ({"scores": "s", "model": "m"}, "counts tokens; the budget is in examples"),
        ({**shot, "target": {"a": "t"}, "group_by": "source"}, "targets with names are groups already"),
    ]
    for keys, message in bad:
        with pytest.raises(InputError, match=message):
            RunConfig.of(keys).check()
