"""Preference pairs: the DPO loss against its formula, token by token."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from tasks_cases import llama, word_tokenizer
from torch import Tensor, nn

from backcast.attribution import collect
from backcast.attribution.gradients.capture import GradientCapture
from backcast.data import Examples, content_id, read_examples
from backcast.errors import InputError
from backcast.finetune.train import FinetuneConfig, finetune
from backcast.kernels import SketchSpec, sketcher
from backcast.multimodal import load_task
from backcast.tasks import PreferenceTask

SPEC = SketchSpec("sjlt", 256)
PAIRS = Examples.from_fields(
    [
        {"prompt": "a b", "chosen": "good cat", "rejected": "bad dog sat on the mat"},
        {"prompt": "the red cat sat", "chosen": "on the mat", "rejected": "blue"},
        {"prompt": "c d e f g", "chosen": "good", "rejected": "bad"},
        {"prompt": "green", "chosen": "the dog sat on the red mat", "rejected": "a a a"},
    ],
    "pairs.jsonl",
)


def likelihood(model: nn.Module, prompt: str, answer: str) -> Tensor:
    """log π(answer and its end | prompt): one sequence, one token after the other."""
    tokenizer = word_tokenizer()
    ids = tokenizer(prompt)["input_ids"]
    total: Any = 0.0
    for token in [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]:
        logs = model(input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(0)
        total, ids = total + logs[token], [*ids, token]
    return total


def margin(model: nn.Module, reference: nn.Module, beta: float, fields: Any) -> Tensor:
    with torch.no_grad():
        before = [likelihood(reference, fields["prompt"], fields[side]) for side in ("chosen", "rejected")]
    chosen, rejected = (likelihood(model, fields["prompt"], fields[side]) for side in ("chosen", "rejected"))
    return beta * ((chosen - before[0]) - (rejected - before[1]))


@pytest.fixture(scope="module")
def models() -> tuple[nn.Module, nn.Module]:
    """A model, and the reference that it may have started from."""
    return llama(seed=1), llama(seed=0)


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_the_loss_is_dpos(models, beta):
    model, reference = models
    task = PreferenceTask(word_tokenizer(), reference, beta)
    batch = task.collate(PAIRS)
    losses, outputs, errors = (f(model, batch) for f in (task.loss, task.output, task.errors))
    margins = [margin(model, reference, beta, e.fields).item() for e in PAIRS]
    for b, m in enumerate(margins):
        p = 1 / (1 + math.exp(-m))
        assert outputs[b].item() == pytest.approx(m, rel=1e-4, abs=1e-4)
        assert losses[b].item() == pytest.approx(-math.log(p), rel=1e-4)
        assert errors[b].item() == pytest.approx(math.hypot(p - 1, 1 - p), rel=1e-4)
    assert 0 < sum(m > 0 for m in margins) < len(margins)
    assert task.evaluate(model, PAIRS) == np.mean([m > 0 for m in margins])


def test_a_model_that_is_its_reference_has_no_preference(models):
    model, _ = models
    task = PreferenceTask(word_tokenizer(), copy.deepcopy(model))
    batch = task.collate(PAIRS)
    torch.testing.assert_close(task.loss(model, batch), torch.full((4,), math.log(2)))
    assert task.loss(model, batch).requires_grad


def test_a_loss_does_not_depend_on_the_batch(models, tmp_path):
    model, reference = models
    alone = torch.cat(
        [
            task.loss(model, task.collate(PAIRS[b : b + 1]))
            for b in range(4)
            for task in [PreferenceTask(word_tokenizer(), reference)]
        ]
    )
    task = PreferenceTask(word_tokenizer(), reference)
    torch.testing.assert_close(task.loss(model, task.collate(PAIRS)), alone, rtol=1e-5, atol=1e-5)
    one, many = (
        collect(model, task, PAIRS, tmp_path / str(size), spec=SPEC, batch_size=size).sketches()
        for size in (1, 4)
    )
    assert np.linalg.norm(many - one, axis=1).max() <= 1e-5 * np.linalg.norm(one, axis=1).min()


def test_sketches_are_those_of_the_formulas_gradients(models):
    model, reference = models
    task = PreferenceTask(word_tokenizer(), reference)
    modules = task.modules(model)
    assert model.lm_head not in modules.values()
    with GradientCapture(model, modules, SPEC) as capture:
        got = capture.sketches(task.loss(model, task.collate(PAIRS)))
    for b, example in enumerate(PAIRS):
        loss = -torch.nn.functional.logsigmoid(margin(model, reference, 0.1, example.fields))
        gradients = torch.autograd.grad(loss, [m.weight for m in modules.values()])
        expected = torch.zeros(SPEC.dim)
        for name, G in zip(modules, gradients, strict=True):
            layer = sketcher(SPEC, name, *G.shape)
            expected += layer.sketch(layer.keep(G[None]), torch.eye(len(G))[None])[0]
        assert (got[b] - expected).norm() <= 1e-4 * expected.norm()


def test_the_reference_is_asked_once_and_without_dropout(models):
    model, reference = models[0], copy.deepcopy(models[1])
    calls = []
    reference.register_forward_hook(lambda module, *_: calls.append(module.training))
    reference.train()
    task = PreferenceTask(word_tokenizer(), reference)
    for _ in range(3):
        task.loss(model, task.collate(PAIRS))
    assert calls == [False, False]  # of the chosen and of the rejected answers
    assert reference.training
    assert all(p.grad is None for p in reference.parameters())


def test_adapters_off_are_the_reference(models):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = llama()
    for layer in base.model.layers:
        layer.self_attn.attention_dropout = 0.5
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False, lora_dropout=0.5
    )
    model = peft.get_peft_model(copy.deepcopy(base), config).eval()
    expected, got = (
        task.loss(model, task.collate(PAIRS))
        for task in (PreferenceTask(word_tokenizer(), base), PreferenceTask(word_tokenizer()))
    )
    assert (expected - math.log(2)).abs().min() > 1e-3
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    # In training the model drops attention, as a reference it does not.
    task = PreferenceTask(word_tokenizer())
    task.loss(model.train(), task.collate(PAIRS))
    torch.testing.assert_close(task.loss(model.eval(), task.collate(PAIRS)), expected, rtol=1e-5, atol=1e-5)


def test_adapters_are_sketched_and_the_base_is_not(tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(llama(), config)
    store = collect(model, PreferenceTask(word_tokenizer()), PAIRS, tmp_path / "s", spec=SPEC)
    assert len(store.header.layers) == 4
    assert all(".lora_" in name for name in store.header.layers)
    assert (np.linalg.norm(store.sketches(), axis=1) > 0).all()


def test_a_model_without_reference_is_told(models):
    task = PreferenceTask(word_tokenizer())
    with pytest.raises(InputError, match=r"has no adapters to switch off; give PreferenceTask reference="):
        task.loss(models[0], task.collate(PAIRS))


def test_tuning_raises_the_margins(models):
    model = copy.deepcopy(models[1])
    task = PreferenceTask(word_tokenizer(), models[1], beta=0.5)
    finetune(model, task, PAIRS, FinetuneConfig(steps=15, batch_size=4, learning_rate=5e-3), seed=0)
    assert task.evaluate(model, PAIRS) == 1.0


def test_beta_length_and_reference_are_settings(models):
    model, reference = models
    tasks = [
        PreferenceTask(word_tokenizer(), reference),
        PreferenceTask(word_tokenizer(), reference, beta=0.2),
        PreferenceTask(word_tokenizer(), model),
        PreferenceTask(word_tokenizer()),
        PreferenceTask(word_tokenizer(), reference, max_length=9),
    ]
    settings = [json.dumps(task.settings()) for task in tasks]
    assert len(set(settings)) == len(settings)
    assert json.dumps(PreferenceTask(word_tokenizer(), copy.deepcopy(reference)).settings()) == settings[0]


# ------------------------------------------------------------------ data


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_conversations_may_be_written_in_several_ways(models):
    model, reference = models
    before = [user("a b"), assistant("c"), user("d")]
    ways = [
        {"prompt": before, "chosen": "good cat", "rejected": "bad"},
        {"prompt": before, "chosen": [assistant("good cat")], "rejected": [assistant("bad")]},
        {"prompt": "d", "chosen": [*before, assistant("good cat")], "rejected": [*before, assistant("bad")]},
    ]
    task = PreferenceTask(word_tokenizer(), reference)
    batch = task.collate(Examples.from_fields(ways))
    text = "<user> a b <end> <assistant> c <end> <user> d <end> <assistant> good cat <end>"
    assert batch["chosen_input_ids"].tolist() == [word_tokenizer()(text)["input_ids"]] * 3
    losses = task.loss(model, batch)
    # The first answer of the assistant counts on both sides alike.
    shared, good, bad = (
        word_tokenizer()(said)["input_ids"]
        for said in (text.removesuffix(" good cat <end>"), "good cat <end>", "bad <end>")
    )
    m = 0.0
    for sign, answer in ((1, good), (-1, bad)):
        for network, of in ((model, 1), (reference, -1)):
            logs = network(input_ids=torch.tensor([shared + answer])).logits[0].double().log_softmax(1)
            m += 0.1 * sign * of * sum(logs[len(shared) - 1 + i, t].item() for i, t in enumerate(answer))
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-m))] * 3, rel=1e-4)


def test_rows_without_a_pair_are_told():
    task = PreferenceTask(word_tokenizer())
    rows = Examples.from_fields([{"prompt": "a", "response": "b"}], "pool.jsonl")
    with pytest.raises(InputError, match=r"row 0 of pool\.jsonl: no pair to compare \(prompt, response\)"):
        task.collate(rows)


def test_files_of_pairs_are_read(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(dict(e.fields) | {"score": 3}) + "\n" for e in PAIRS))
    rows = read_examples(path)
    assert rows.columns == {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    assert rows.index.ids == PAIRS.index.ids
    turns = {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]}
    path.write_text(json.dumps(turns))
    assert read_examples(path)[0].fields == turns
    path.write_text(json.dumps(turns | {"chosen": [{"role": "assistant"}]}))
    with pytest.raises(InputError, match=r"'chosen\[0\]' must have a role and a content"):
        read_examples(path)
    path.write_text(json.dumps({"prompt": [user("a")], "response": "b"}))
    with pytest.raises(InputError, match="'prompt' must be text, not list"):
        read_examples(path)
    with pytest.raises(InputError, match=r"preference pairs need the model that tuning started from"):
        load_task("nowhere", rows)


def test_which_answer_is_chosen_enters_the_id_and_other_ids_stay():
    fields = dict(PAIRS[0].fields)
    swapped = fields | {"chosen": fields["rejected"], "rejected": fields["chosen"]}
    assert len({content_id(f) for f in (fields, swapped, {"prompt": fields["prompt"]})}) == 3
    # SHA-256 of {"prompt":"a","response":"b"} and of {"text":"a"}, as they always were.
    assert content_id({"prompt": "a", "response": "b", "other": 1}).startswith("3997216372854edb")
    assert content_id({"text": "a"}).startswith("6193c97585a0f731")
