"""The baselines, each against its definition; BM25 against its formula by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from attribution_cases import Classify, examples, llama, mlp, store_of
from torch import Tensor, nn

from backcast.attribution import Scores, attribute
from backcast.data import Example, Examples
from backcast.errors import InputError
from backcast.tasks import Batch, CausalLMTask

draw = np.random.default_rng(0)
GROUPS = ["left", "right", "left"]


class Words(CausalLMTask):
    """A language model's task whose tokens are given."""

    def __init__(self, **options: Any) -> None:
        super().__init__(None, **options)

    def length(self, example: Example) -> int:
        return len(example.fields["ids"])

    def collate(self, examples: Sequence[Example]) -> Batch:
        longest = max(self.length(e) for e in examples)
        ids = torch.zeros(len(examples), longest, dtype=torch.long)
        labels = torch.full_like(ids, -100)
        mask = torch.zeros_like(ids)
        for b, example in enumerate(examples):
            own = torch.tensor(example.fields["ids"])
            ids[b, : len(own)], mask[b, : len(own)] = own, 1
            labels[b, 2 : len(own)] = own[2:]
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def sentences(n: int) -> Examples:
    return Examples.from_fields(
        [{"text": f"{n}/{i}", "ids": draw.integers(1, 40, draw.integers(3, 15)).tolist()} for i in range(n)]
    )


TRAIN, TARGET = sentences(23), sentences(3)


@pytest.fixture(scope="module")
def language_model() -> nn.Module:
    """In training mode, with dropout that would show."""
    model = llama(40)
    model.model.layers[0].mlp.down_proj = nn.Sequential(model.model.layers[0].mlp.down_proj, nn.Dropout(0.5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    return model.train()


def probabilities(model: nn.Module, example: Example) -> tuple[Tensor, Tensor]:
    """(t, V) float64 of the learnt tokens, and which they were; alone, without dropout."""
    ids = torch.tensor([example.fields["ids"]])
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0].double()
    model.train()
    return logits[1:-1].softmax(1), ids[0, 2:]


def alike(scores: Scores, columns: int) -> np.ndarray:
    """The one column that all targets share."""
    assert scores.values.shape[1] == columns
    assert (scores.values == scores.values[:, :1]).all()
    return scores.values[:, 0]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_and_perplexity(language_model, reduction):
    task = Words(reduction=reduction)
    found = [probabilities(language_model, e) for e in TRAIN]
    tokens = [-p.gather(1, y[:, None]).log()[:, 0] for p, y in found]
    losses, perplexities = (
        alike(attribute(TRAIN, TARGET, method, model=language_model, task=task), 3)
        for method in ("loss", "perplexity")
    )
    expected = [(t.mean() if reduction == "mean" else t.sum()).item() for t in tokens]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    np.testing.assert_allclose(perplexities, [math.exp(t.mean().item()) for t in tokens], rtol=1e-3)
    assert len(set(losses)) == len(TRAIN)
    assert all(module.training for module in language_model.modules())


def test_el2n_of_tokens_is_their_mean(language_model):
    expected = []
    for example in TRAIN:
        p, y = probabilities(language_model, example)
        expected.append((p - torch.eye(p.shape[1], dtype=p.dtype)[y]).norm(dim=1).mean().item())
    scores = attribute(TRAIN, TARGET, "el2n", model=language_model, task=Words(), groups=GROUPS)
    np.testing.assert_allclose(alike(scores, 2), expected, rtol=1e-4)
    assert scores.targets == ("left", "right")


def test_perplexity_without_tokens_is_the_exponential_of_the_loss():
    model, rows = mlp(), examples(7)
    losses, perplexities = (
        alike(attribute(rows, rows[:2], method, model=model, task=Classify()), 2)
        for method in ("loss", "perplexity")
    )
    np.testing.assert_allclose(perplexities, np.exp(losses), rtol=1e-5)


class Hidden(Classify):
    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        return model[:2](batch["x"])  # type: ignore[index]


def test_embedding_is_the_cosine_with_the_mean_of_the_group():
    model, train, target = mlp(), examples(9), examples(3, seed=1)

    def features(rows: Examples) -> np.ndarray:
        batch = Classify().collate(rows)
        with torch.no_grad():
            return model[1](model[0](batch["x"])).double().numpy()

    def cosine(x: np.ndarray, z: np.ndarray) -> float:
        return x @ z / math.sqrt(x @ x) / math.sqrt(z @ z)

    each = attribute(train, target, "embedding", model=model, task=Hidden())
    grouped = attribute(train, target, "embedding", model=model, task=Hidden(), groups=GROUPS)
    X, Z = features(train), features(target)
    np.testing.assert_allclose(each.values, [[cosine(x, z) for z in Z] for x in X], atol=1e-6)
    np.testing.assert_allclose(
        grouped.values, [[cosine(x, (Z[0] + Z[2]) / 2), cosine(x, Z[1])] for x in X], atol=1e-6
    )


def test_a_blocks_border_leaves_the_order_alone(monkeypatch, language_model):
    whole = attribute(TRAIN, TARGET, "loss", model=language_model, task=Words()).values
    monkeypatch.setattr("backcast.attribution.estimators.passes.BLOCK", 5)
    monkeypatch.setattr("backcast.attribution.estimators.passes.BATCH", 2)
    parts = attribute(TRAIN, TARGET, "loss", model=language_model, task=Words()).values
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_grad_norm_is_the_length_at_the_last_checkpoint(tmp_path):
    sketches = [draw.normal(size=(6, 8)).astype(np.float32) for _ in range(2)]
    train = store_of(tmp_path / "train", sketches)
    target = store_of(tmp_path / "target", [s[:3] for s in sketches], name="target")
    scores = attribute(train, target, "grad_norm", groups=GROUPS)
    np.testing.assert_allclose(
        alike(scores, 2), np.sqrt((sketches[1].astype(np.float64) ** 2).sum(1)), rtol=1e-6
    )


# ------------------------------------------------------------------ random


def test_random_scores_belong_to_the_pair_and_the_seed():
    rows, wanted = examples(400), examples(5, seed=1)
    scores = attribute(rows, wanted, "random").values
    order = draw.permutation(400)
    assert np.array_equal(attribute(rows[order], wanted, "random").values, scores[order])
    assert np.array_equal(attribute(rows[:9], wanted[[3, 1]], "random").values, scores[:9][:, [3, 1]])
    other = attribute(rows, wanted, "random", seed=1).values
    assert (other != scores).mean() > 0.999
    assert np.array_equal(attribute(rows, wanted, "random", seed=1).values, other)


def test_random_scores_are_uniform_and_those_of_two_targets_unrelated():
    scores = attribute(examples(4000), examples(2, seed=1), "random").values.astype(np.float64)
    assert scores.min() >= 0
    assert scores.max() < 1
    ranks = np.sort(scores, axis=0)
    uniform = (np.arange(4000) + 0.5)[:, None] / 4000
    assert np.abs(ranks - uniform).max() < 1.63 / math.sqrt(4000)  # Kolmogorov-Smirnov at 1 %
    assert abs(np.corrcoef(scores.T)[0, 1]) < 4 / math.sqrt(4000)


# ------------------------------------------------------------------ bm25

CORPUS = Examples.from_fields(
    [
        {"prompt": "How to sort a list", "response": "Call sort on the list, or sorted."},
        {
            "messages": [
                {"role": "user", "content": "open a file"},
                {"role": "assistant", "content": "open(x)"},
            ]
        },
        {"text": "The mean of an array"},
        {"image": b"...", "caption": "a red CAT, a cat"},
        {"prompt": "pick", "chosen": "the array", "rejected": "nothing"},
        {"image": b"..."},
    ]
)
SAID = [
    "how to sort a list call sort on the list or sorted",
    "open a file open x",
    "the mean of an array",
    "a red cat a cat",
    "pick the array nothing",
    "",
]
WORDS = [said.split() for said in SAID]
QUERIES = Examples.from_fields(
    [{"text": "sort the array, sort!"}, {"text": "a cat"}, {"text": "unheard words"}, {"image": b"..."}]
)


def by_hand(x: list[str], query: list[str]) -> float:
    n, average = len(WORDS), sum(map(len, WORDS)) / len(WORDS)
    score = 0.0
    for word in query:
        holding = sum(word in words for words in WORDS)
        idf = math.log(1 + (n - holding + 0.5) / (holding + 0.5))
        tf = x.count(word)
        score += idf * tf / (tf + 1.5 * (0.25 + 0.75 * len(x) / average))
    return score


def test_bm25_is_its_formula():
    pytest.importorskip("bm25s")
    scores = attribute(CORPUS, QUERIES, "bm25")
    queries = [["sort", "the", "array", "sort"], ["a", "cat"], ["unheard", "words"], []]
    expected = np.array([[by_hand(x, query) for query in queries] for x in WORDS])
    np.testing.assert_allclose(scores.values, expected, rtol=1e-5)
    assert (expected[:, :2].argmax(0) == [0, 3]).all()
    grouped = attribute(CORPUS, QUERIES[:3], "bm25", groups=GROUPS)
    np.testing.assert_allclose(
        grouped.values, np.stack([(expected[:, 0] + expected[:, 2]) / 2, expected[:, 1]], 1), rtol=1e-5
    )
    assert np.array_equal(attribute(CORPUS, QUERIES, "bm25").values, scores.values)


def test_bm25_of_no_words_is_told():
    pytest.importorskip("bm25s")
    with pytest.raises(InputError, match="compares words, and no training example holds any"):
        attribute(CORPUS[5:], QUERIES, "bm25")


# ------------------------------------------------------------------ what they need


@pytest.mark.parametrize("method", ["loss", "el2n", "perplexity", "embedding"])
def test_methods_that_run_the_model_say_so(method, tmp_path):
    rows = examples(3)
    with pytest.raises(InputError, match=f"method '{method}' runs the model: give model= and task="):
        attribute(rows, rows, method)
    store = store_of(tmp_path / "s", [np.ones((3, 4), np.float32)])
    with pytest.raises(InputError, match="reads the examples themselves"):
        attribute(store, store, method, model=mlp(), task=Classify())


@pytest.mark.parametrize("method", ["loss", "perplexity", "embedding", "ekfac"])
def test_a_model_of_no_numbers_is_told(method, language_model):
    broken, rows = copy.deepcopy(language_model), sentences(3)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match="look for a loss that overflows"):
        attribute(rows, rows, method, model=broken, task=Words())


def test_a_task_without_errors_or_features_says_so():
    rows = examples(3)
    for method, lacks in (
        ("el2n", r"no error vectors; override errors\(\)"),
        ("embedding", "no representation"),
    ):
        with pytest.raises(InputError, match=f"Classify defines {lacks}"):
            attribute(rows, rows, method, model=mlp(), task=Classify())
