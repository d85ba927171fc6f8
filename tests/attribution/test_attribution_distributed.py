"""Several processes write the store that one does; a model that is spread over them is collected as if it were not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from attribution_cases import Classify, contents, examples, mlp

from backcast.attribution import SketchStore, collect
from backcast.errors import InputError

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def seen(folder):
    program = [sys.executable, str(HERE / "distributed_collect.py"), str(folder)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "log": done.stderr}


@pytest.mark.parametrize("name", ["two", "parallel"])
def test_two_processes_write_the_bytes_of_one(name, seen):
    assert seen["alone"] == [0]
    assert seen[name]["codes"] == [0, 0]
    assert name in seen["same"]


def test_after_one_was_killed_the_next_run_resumes(seen):
    first, second = seen["killed"]["ended"]
    assert second == -9
    assert first not in (0, -9)  # the other noticed, instead of waiting
    assert 2 <= seen["killed"]["left"] < 6
    assert seen["killed"]["codes"] == [0, 0]
    assert "killed" in seen["same"]


def test_damaged_shards_are_found_by_whoever_looks_at_them_and_collected_again(seen):
    assert seen["damaged"]["codes"] == [0, 0]
    assert "damaged" in seen["same"]
    for number in (0, 1, 2, 3, 4, 5):
        assert (f"shard-{number:05d}.safetensors: damaged shard" in seen["log"]) == (number in (1, 4))


def test_bad_input_of_one_process_is_told_by_both(seen):
    assert seen["bad"]["codes"] == [2, 2]
    assert seen["bad"]["said"][0] == seen["bad"]["said"][1]
    assert "is not finite" in seen["bad"]["said"][0]


def test_processes_with_different_models_are_refused(seen):
    assert seen["unlike"]["codes"] == [2, 2]
    assert all("the processes differ in model" in said for said in seen["unlike"]["said"])
    assert seen["there"] == []


@pytest.mark.parametrize("points", ["own", "points"])
def test_a_fully_sharded_model_gives_the_store_of_the_plain_one(points, folder, seen):
    """The same names, layers and weights' sums: the headers are equal, and the numbers to rounding."""
    assert seen["lm"] == [0]
    assert seen["sharded"]["codes"] == [0, 0]
    plain, sharded = (SketchStore.open(folder / name / points) for name in ("lm", "sharded"))
    assert sharded.fingerprint == plain.fingerprint
    assert sharded.header.origin["model"] == "LlamaForCausalLM"
    for c in range(len(plain.checkpoints)):
        expected = plain.sketches(c)
        np.testing.assert_allclose(
            sharded.sketches(c), expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max()
        )


def test_a_fully_sharded_model_is_left_as_it_was(seen):
    for said in seen["sharded"]["said"]:
        assert said == {"same": True, "type": "FSDPLlamaForCausalLM", "sharded": True, "gradients": True}


def test_what_torchrun_starts_writes_the_bytes_of_one_process(folder, seen, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    program = [str(HERE / "distributed_collect.py"), "rank", str(tmp_path / "out")]
    done = subprocess.run(
        launcher + program, capture_output=True, text=True, timeout=300, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(folder / "one")


def test_processes_of_torchrun_that_do_not_know_of_each_other_are_told_so(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"call torch\.distributed\.init_process_group\(\) first"):
        collect(mlp(), Classify(), examples(3), tmp_path / "s")
    assert not (tmp_path / "s").exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert len(collect(mlp(), Classify(), examples(3), tmp_path / "s")) == 3
