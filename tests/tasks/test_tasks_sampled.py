"""Answers drawn from the model: their frequencies are its probabilities, and nothing else of the batch changes."""

from __future__ import annotations

import torch
from tasks_cases import llama, word_tokenizer
from torch import Tensor, nn

from backcast.data import Example, Examples
from backcast.tasks import CausalLMTask
from backcast.tasks.classification import ClassificationTask
from backcast.tasks.head import IGNORE

DRAWS = 4000


def frequencies(drawn: Tensor, classes: int) -> Tensor:
    return torch.bincount(drawn, minlength=classes) / len(drawn)


def assert_are_frequencies_of(drawn: Tensor, p: Tensor) -> None:
    """Within four standard deviations of a share, for every answer."""
    assert ((frequencies(drawn, len(p)) - p).abs() <= 4 * (p * (1 - p) / len(drawn)).sqrt() + 1e-4).all()


class Vectors(ClassificationTask):
    def inputs(self, examples: list[Example]) -> dict[str, Tensor]:
        return {"x": torch.stack([e.fields["x"] for e in examples])}

    def logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(batch["x"])


def test_a_classifiers_answers():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 4), torch.randn(3)
    rows = Examples.from_fields([{"text": f"{i}", "x": x, "label": 0} for i in range(DRAWS)])
    batch = Vectors().collate(rows)
    drawn = Vectors().sampled(model, batch, torch.Generator().manual_seed(0))
    assert_are_frequencies_of(drawn["labels"], model(x).softmax(0).detach())
    assert drawn["x"] is batch["x"]
    assert (batch["labels"] == 0).all()


def test_a_language_models_answers():
    tokenizer = word_tokenizer()
    model, task = llama().eval(), CausalLMTask(tokenizer)
    words = list(tokenizer.get_vocab())[-3:]
    row = {"prompt": words[0], "response": f" {words[1]} {words[2]}"}
    batch = task.collate(Examples.from_fields([row] * DRAWS))
    drawn = task.sampled(model, batch, torch.Generator().manual_seed(0))["labels"]
    assert torch.equal(drawn == IGNORE, batch["labels"] == IGNORE)
    with torch.no_grad():
        p = model(batch["input_ids"][:1]).logits[0].softmax(-1)
    learnt = (batch["labels"][0] != IGNORE).nonzero()[:, 0].tolist()
    assert len(learnt) >= 2
    for place in learnt:
        assert_are_frequencies_of(drawn[:, place], p[place - 1])
