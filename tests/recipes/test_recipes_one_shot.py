"""From a run to a manifest in one call: groups, costs, bounds, trials; the same as the library's own steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from cli_cases import Files, pairs, text_files, write_jsonl
from torch import Tensor, nn
from transformers import AutoTokenizer

from backcast.attribution import Scores, SketchStore
from backcast.data import Example, Examples, read_examples
from backcast.errors import InputError
from backcast.finetune import FinetuneConfig, finetune
from backcast.manifests import Manifest, check
from backcast.recipes.selection.from_scores import select_from_scores
from backcast.recipes.selection.one_shot import select_subset
from backcast.recipes.selection.run_config import RunConfig, TrialConfig
from backcast.recipes.selection.trial import Trial
from backcast.selectors import select
from backcast.tasks import Task


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Files:
    """The usual files, the pool of two sources."""
    files = text_files(tmp_path_factory.mktemp("text"))
    write_jsonl(
        files.pool, [{**row, "source": "web" if i % 4 else "books"} for i, row in enumerate(pairs(40, 0))]
    )
    return files


@pytest.fixture
def run(text, tmp_path) -> Any:
    """``run(budget=5)``: the keys of a small run, with some of them changed."""

    def keys(**changed: Any) -> RunConfig:
        own = {
            "model": text.model,
            "pool": text.pool,
            "target": text.target,
            "out": tmp_path / "subset.jsonl",
        }
        return RunConfig.of({k: str(v) for k, v in own.items()} | {"sketch": {"dim": 64}} | changed)

    return keys


def test_named_targets_are_groups_with_weights(run, text, tmp_path):
    """Of any sizes, in the order of their names; what is chosen is what the library chooses of the same scores."""
    target = {"wanted": {"data": str(text.target), "weight": 2}, "test": str(text.test)}
    manifest = select_subset(run(target=target, budget=9))
    assert manifest.meta["groups"] == {"wanted": 6, "test": 8}
    assert manifest.meta["weights"] == {"wanted": 2.0}
    scores = Scores.load(tmp_path / "subset.sketches" / "scores.safetensors")
    assert scores.targets == tuple(read_examples(f"{text.test},{text.target}").index.ids)
    assert scores.origin["target"]["dataset"] == f"{text.test},{text.target}"
    groups = ["test"] * 8 + ["wanted"] * 6
    own = select(scores, 9, "round_robin", groups=groups, weights={"wanted": 2})
    assert manifest.ids == own.rows.ids


def test_the_sources_of_a_target_are_its_groups(run, text, tmp_path):
    rows = [{**row, "source": "ab"[i % 2]} for i, row in enumerate(pairs(5, 1))]
    target = write_jsonl(tmp_path / "wanted.jsonl", rows)
    manifest = select_subset(run(target=str(target), group_by="source", weights={"b": 3}))
    assert manifest.meta["groups"] == {"a": 3, "b": 2}
    assert manifest.meta["run"]["target"] == "./wanted.jsonl"


def test_a_budget_in_tokens_is_of_the_models_own(run, text, tmp_path):
    """In one shot and from scores: a row costs what its texts have tokens, and the budget is not overspent."""
    manifest = select_subset(run(budget="200 tokens", method="top_k"))
    pool, tokenizer = read_examples(text.pool), AutoTokenizer.from_pretrained(text.model)

    def tokens(row: int) -> int:
        texts = (pool[row].fields[name] for name in ("prompt", "response"))
        return sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)

    told = [line["cost"] for line in manifest.lines]
    assert told == [tokens(row) for row in manifest.rows]
    assert 200 - max(map(tokens, range(40))) < sum(told) <= 200
    assert manifest.meta["budget"]["spent"] == sum(told)

    scores = str(tmp_path / "subset.sketches" / "scores.safetensors")
    steps = {
        "scores": scores,
        "budget": "200 tokens",
        "method": "top_k",
        "out": str(tmp_path / "steps.jsonl"),
    }
    with pytest.raises(
        InputError, match="a budget in tokens needs a column 'tokens' in the pool, or --model"
    ):
        select_from_scores(RunConfig.of(steps))
    select_from_scores(RunConfig.of({**steps, "model": str(text.model)}))
    assert (tmp_path / "steps.jsonl").read_bytes() == manifest.path.read_bytes()


def test_bounds_by_source(run):
    manifest = select_subset(run(budget=10, at_least={"books": "40%"}, at_most={"web": 5}))
    sources = [line["source"] for line in manifest.lines]
    assert sources.count("books") == 5  # all that web leaves room for
    assert manifest.meta["constraints"] == {"at_least": {"books": "40%"}, "at_most": {"web": 5}}


def test_features_are_read_from_the_store(run, tmp_path):
    """The method's own parameters included."""
    method = {"method": "dedup | facility_location", "params": {"dedup": {"threshold": 0.9}}, "budget": 5}
    manifest = select_subset(run(**method))
    folder = tmp_path / "subset.sketches"
    scores, store = Scores.load(folder / "scores.safetensors"), SketchStore.open(folder / "pool")
    own = select(
        scores, 5, "dedup(threshold=0.9) | facility_location", features=store.sketches().astype(np.float32)
    )
    assert manifest.ids == own.rows.ids
    assert check(manifest.path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"at_least": {"films": 5}}, "the pool has no source 'films'; it has books, web"),
        ({"at_least": {"web": "100%", "books": "100%"}}, "at_least asks for"),
        ({"weights": {"math": 2}}, "weights: 'math' is no group of targets"),
        ({"score": {"method": "bm25"}}, "score: method 'bm25' is none that one shot makes"),
        ({"score": {"params": {"cosin": True}}}, "score: tracin has no parameter 'cosin'; it has cosine"),
        ({"params": {"treshold": 1}}, "round_robin: no parameter 'treshold'"),
        ({"method": "policy"}, "policy: learns from training; give --test"),
        ({"budget": "5 dollars"}, "no column 'dollars' to take costs from"),
        ({"signals": {"loss": "gone"}}, "gone: no such scores file"),
    ],
)
def test_what_is_refused_before_anything_is_made(keys, message, run, tmp_path):
    with pytest.raises(InputError, match=message) as raised:
        select_subset(run(**keys))
    assert "\n" not in str(raised.value)
    assert not any(tmp_path.iterdir())


# ------------------------------------------------------------------ trials


class Line(Task):
    """A line through the label: the squared error, or its negative as a metric of which more is better."""

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        numbers = [[float(e.fields["label"]), float(e.fields["x"])] for e in examples]
        return {"y": torch.tensor(numbers)[:, 0], "x": torch.tensor(numbers)[:, 1:]}

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return (model(batch["x"])[:, 0] - batch["y"]).square()


class Score(Line):
    metric, higher_is_better = "score", True


def line(n: int, seed: int) -> Examples:
    xs = np.random.default_rng(seed).normal(size=n)
    return Examples.from_fields([{"text": f"{x}", "x": x, "label": 2 * x} for x in xs.tolist()])


def test_a_trial_is_a_fine_tune_and_its_metric(tmp_path):
    """Mean over seeds, a loss negated, the same in any order; the model is left as it was."""
    torch.manual_seed(0)
    model, pool, test = nn.Linear(1, 1), line(20, 0), line(7, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = TrialConfig(test="", steps=3, batch_size=2, learning_rate=0.1, seeds=2)
    chosen = sorted([3, 9, 4, 12], key=pool.index.ids.__getitem__)
    expected = []
    for seed in (0, 1):
        copy = nn.Linear(1, 1)
        copy.load_state_dict(before)
        finetune(copy, Line(), pool[chosen], FinetuneConfig(steps=3, batch_size=2, learning_rate=0.1), seed)
        expected.append(Line().evaluate(copy, test))
    assert len(set(expected)) == 2

    for task, sign in ((Line(), -1), (Score(), 1)):
        trial = Trial(model, task, pool, test, config, tmp_path / task.metric)
        assert trial(np.array([3, 9, 4, 12])) == pytest.approx(sign * np.mean(expected), rel=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_trial_that_was_made_is_not_made_again(tmp_path):
    """In a later run; in the same one a subset that is tried again gets further seeds."""
    torch.manual_seed(0)
    model, pool, test = nn.Linear(1, 1), line(20, 0), line(7, 1)
    config = TrialConfig(test="", steps=2, batch_size=2, learning_rate=0.1)
    first, again = (Trial(model, Line(), pool, test, config, tmp_path) for _ in range(2))
    values = [first(np.array(some)) for some in ([1, 2, 3, 4], [4, 3, 2, 1], [5, 6])]
    assert len(set(values)) == 3
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(files) == 3
    assert [again(np.array(some)) for some in ([4, 3, 2, 1], [1, 2, 3, 4], [6, 5])] == values
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files

    other = config.model_copy(update={"learning_rate": 0.2})
    assert Trial(model, Line(), pool, test, other, tmp_path)(np.array([5, 6])) != values[2]


def test_a_trial_that_diverges_is_refused(tmp_path):
    config = TrialConfig(test="", steps=3, batch_size=2, learning_rate=1e30)
    with pytest.raises(InputError, match="lower"):
        Trial(nn.Linear(1, 1), Line(), line(9, 0), line(5, 1), config, tmp_path)(np.array([1, 2]))
    assert not any(tmp_path.iterdir())


def test_a_method_that_learns_resumes_from_its_trials(run, text, tmp_path):
    keys = run(
        method="policy(rounds=1, samples=2)",
        budget=4,
        trial={"test": str(text.test), "steps": 1, "batch_size": 4},
    )
    manifest = select_subset(keys)
    first = manifest.path.read_bytes()
    trials = {path: path.stat().st_mtime_ns for path in (tmp_path / "subset.sketches" / "trials").iterdir()}
    assert len(trials) == 2
    select_subset(keys)
    assert manifest.path.read_bytes() == first
    assert {path: path.stat().st_mtime_ns for path in trials} == trials
    assert json.loads(json.dumps(manifest.meta["run"]))["trial"]["steps"] == 1
    assert Manifest.load(manifest.path).ids == manifest.ids
