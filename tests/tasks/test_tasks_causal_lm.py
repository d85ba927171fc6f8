"""Causal language models: what is learnt of a row, and that padding changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from backcast.attribution import Checkpoint, collect
from backcast.data import Example, Examples
from backcast.errors import InputError
from backcast.finetune.train import FinetuneConfig, finetune
from backcast.kernels import SketchSpec
from backcast.tasks import Batch, CausalLMTask, load_causal_lm
from backcast.tasks.causal_lm import IGNORE
from backcast.tasks.hashes import weights_hash

CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SENTENCES = [
    "return the mean of an array along an axis",
    "compute the discrete Fourier transform of a signal",
    "sort a list in place and return nothing",
    "open a file and read every line of it",
    "the cat sat on the mat and the dog lay on the log",
]
SPEC = SketchSpec("sjlt", 256)


def trained_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE learnt from the sentences above; a begin token before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=CHAT
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small Llama and its tokenizer, as `save_pretrained` leaves them."""
    path = tmp_path_factory.mktemp("llama")
    tokenizer = trained_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def loaded(folder):
    model, tokenizer = load_causal_lm(str(folder))
    return model.eval(), tokenizer


def pairs(*rows: tuple[str, str]) -> Examples:
    return Examples.from_fields([{"prompt": p, "response": r} for p, r in rows], "pool.jsonl")


ROWS = pairs(*[(s, t) for s, t in zip(SENTENCES, [*SENTENCES[1:], "a"], strict=True)])


def learnt(task: CausalLMTask, rows: Examples, b: int = 0) -> str:
    """The text of the tokens that count."""
    labels = task.collate(rows)["labels"][b]
    return task.tokenizer.decode(labels[labels != IGNORE])


def test_a_saved_model_loads_in_float32(loaded, folder):
    model, tokenizer = loaded
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert weights_hash(model) == weights_hash(LlamaForCausalLM.from_pretrained(folder))
    assert tokenizer("the cat")["input_ids"] == trained_tokenizer()("the cat")["input_ids"]


def test_only_the_response_and_its_end_count(loaded):
    task = CausalLMTask(loaded[1])
    batch = task.collate(ROWS[:2])
    for b, row in enumerate(ROWS[:2]):
        assert learnt(task, ROWS[:2], b) == row.fields["response"] + "</s>"
        prompt = task.tokenizer(row.fields["prompt"])["input_ids"]
        assert batch["input_ids"][b, : len(prompt)].tolist() == prompt
        assert prompt[0] == task.tokenizer.bos_token_id
        counted = batch["labels"][b] != IGNORE
        assert torch.equal(batch["labels"][b][counted], batch["input_ids"][b][counted])
        assert not counted[: len(prompt)].any()
    assert batch["attention_mask"].sum(1).tolist() == [
        len(task.tokenizer(r.fields["prompt"] + r.fields["response"])["input_ids"]) + 1 for r in ROWS[:2]
    ]


def test_a_text_counts_from_its_second_token_on(loaded):
    model, tokenizer = loaded
    task = CausalLMTask(tokenizer)
    batch = task.collate(Examples.from_fields([{"text": "the cat sat"}]))
    ids = torch.tensor([tokenizer("the cat sat")["input_ids"]])
    logprobs = model(ids).logits.log_softmax(-1)[0, :-1]
    expected = -logprobs[torch.arange(ids.shape[1] - 1), ids[0, 1:]].mean()
    torch.testing.assert_close(task.loss(model, batch)[0], expected)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_is_the_cross_entropy_of_the_response(reduction, loaded):
    model, tokenizer = loaded
    task = CausalLMTask(tokenizer, reduction)
    losses = task.loss(model, task.collate(ROWS))
    for b, row in enumerate(ROWS):
        prompt = tokenizer(row.fields["prompt"])["input_ids"]
        response = [
            *tokenizer(row.fields["response"], add_special_tokens=False)["input_ids"],
            tokenizer.eos_token_id,
        ]
        logprobs = model(torch.tensor([prompt + response])).logits[0].double().log_softmax(-1)
        each = [-logprobs[len(prompt) + t - 1, token] for t, token in enumerate(response)]
        expected = sum(each) if reduction == "sum" else sum(each) / len(each)
        assert losses[b].item() == pytest.approx(expected.item(), rel=1e-5)


def test_padding_changes_neither_losses_nor_gradients(loaded, tmp_path):
    """Alone a row has no padding; beside the longest it has much."""
    model, tokenizer = loaded
    task = CausalLMTask(tokenizer)
    long = pairs(
        *[(e.fields["prompt"], e.fields["response"]) for e in ROWS], (" ".join(SENTENCES), "a " * 30)
    )
    together = task.loss(model, task.collate(long))
    alone = torch.cat([task.loss(model, task.collate(long[b : b + 1])) for b in range(len(long))])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    padding = (task.collate(long)["attention_mask"] == 0).float().mean()
    assert padding > 0.3

    one = collect(model, task, long, tmp_path / "one", spec=SPEC, batch_size=1).sketches()
    many = collect(model, task, long, tmp_path / "many", spec=SPEC, batch_size=len(long)).sketches()
    assert np.linalg.norm(one - many, axis=1).max() <= 1e-5 * np.linalg.norm(one, axis=1).min()


def test_every_linear_but_the_head_is_tracked(loaded, tmp_path):
    model, tokenizer = loaded
    store = collect(model, CausalLMTask(tokenizer), ROWS, tmp_path / "s", spec=SPEC)
    kinds = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    mlp = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert set(store.header.layers) == {f"model.layers.{i}.{k}" for i in range(2) for k in kinds + mlp}


def test_settings_enter_the_store(loaded, tmp_path):
    model, tokenizer = loaded
    collect(model, CausalLMTask(tokenizer), ROWS, tmp_path / "s", spec=SPEC)
    for task in (CausalLMTask(tokenizer, "sum"), CausalLMTask(tokenizer, max_length=64)):
        with pytest.raises(InputError, match="choose another folder"):
            collect(model, task, ROWS, tmp_path / "s", spec=SPEC)


CONVERSATION = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "sort a list"},
    {"role": "assistant", "content": "return the mean"},
    {"role": "user", "content": "open a file"},
    {"role": "assistant", "content": "read every line"},
]


def talk(messages: list[dict[str, str]]) -> Examples:
    return Examples.from_fields([{"messages": messages}], "chat.jsonl")


def test_what_the_assistant_writes_counts_and_nothing_else(loaded):
    task = CausalLMTask(loaded[1])
    assert learnt(task, talk(CONVERSATION)) == "return the mean<|end|>\nread every line<|end|>\n"
    ids = task.collate(talk(CONVERSATION))["input_ids"][0]
    expected = "<s>" + "".join(f"<|{m['role']}|>\n{m['content']}<|end|>\n" for m in CONVERSATION)
    assert task.tokenizer.decode(ids) == expected
    assert (ids == task.tokenizer.bos_token_id).sum() == 1


def test_a_conversation_may_begin_with_the_assistant_and_end_with_the_user(loaded):
    task = CausalLMTask(loaded[1])
    assert learnt(task, talk(CONVERSATION[2:4])).endswith("return the mean<|end|>\n")
    with pytest.raises(InputError, match=r"row 0 of chat\.jsonl: no response token"):
        task.collate(talk(CONVERSATION[:2]))


def with_template(template: str | None) -> CausalLMTask:
    tokenizer = trained_tokenizer()
    tokenizer.chat_template = template
    return CausalLMTask(tokenizer)


def test_templates_that_cannot_be_followed_are_refused():
    with pytest.raises(InputError, match="has no chat template for rows of messages"):
        with_template(None).collate(talk(CONVERSATION))
    forgets = "{% for m in messages %}{{ m['content'] if loop.last or m.role == 'user' }}\n{% endfor %}"
    with pytest.raises(InputError, match=r"row 0 of chat\.jsonl: the chat template rewrites earlier turns"):
        with_template(forgets).collate(talk(CONVERSATION))
    strict = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT
    )
    with pytest.raises(InputError, match=r"the chat template refuses its messages \(no system role\)"):
        with_template(strict).collate(talk(CONVERSATION))
    assert learnt(with_template(strict), talk(CONVERSATION[1:3])) == "return the mean<|end|>\n"


def test_a_row_without_a_response_within_reach_is_told(loaded):
    task = CausalLMTask(loaded[1], max_length=12)
    with pytest.raises(InputError, match=r"row 4 of pool\.jsonl: no response token is left within 12 tokens"):
        task.collate(ROWS[4:])
    assert task.collate(pairs(("the cat", " ".join(SENTENCES))))["input_ids"].shape == (1, 12)


def test_a_row_of_another_kind_is_told(loaded):
    rows = Examples.from_fields([{"image": b"...", "caption": "a cat"}], "pool.jsonl")
    with pytest.raises(InputError, match=r"row 0 of pool\.jsonl: nothing to learn from \(caption, image\)"):
        CausalLMTask(loaded[1]).collate(rows)


def test_evaluation_is_the_mean_loss(loaded):
    model, tokenizer = loaded
    task = CausalLMTask(tokenizer)
    expected = task.loss(model, task.collate(ROWS)).mean().item()
    assert task.evaluate(model, ROWS) == pytest.approx(expected, rel=1e-6)
    assert (task.metric, task.higher_is_better) == ("loss", False)


def test_a_fine_tune_lowers_the_loss_and_leaves_checkpoints_that_load(loaded, folder, tmp_path):
    model, tokenizer = load_causal_lm(str(folder))
    task = CausalLMTask(tokenizer)
    before = task.evaluate(model, ROWS)
    config = FinetuneConfig(steps=12, batch_size=4, learning_rate=5e-3, warmup_steps=2)
    points = finetune(
        model, task, ROWS, config, 0, {6: tmp_path / "6.safetensors", 12: tmp_path / "12.safetensors"}
    )
    assert task.evaluate(model, ROWS) < 0.85 * before
    assert [p.learning_rate for p in points] == [config.rate(5), config.rate(11)]
    store = collect(loaded[0], task, ROWS, tmp_path / "s", checkpoints=points, spec=SPEC)
    assert store.checkpoints[1]["sha256"] == weights_hash(model)
    assert weights_hash(loaded[0]) == weights_hash(load_causal_lm(str(folder))[0])


def test_tied_weights_are_saved_once_and_read_back(tmp_path):
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    assert model.lm_head.weight is model.model.embed_tokens.weight

    class Plain(CausalLMTask):
        def length(self, example: Example) -> int:
            return 10

        def collate(self, examples: Sequence[Example]) -> Batch:
            ids = torch.arange(10).expand(len(examples), 10) + 3
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    task, rows = Plain(None), pairs(("a", "b"), ("c", "d"))
    config = FinetuneConfig(steps=2, batch_size=2)
    (point,) = finetune(model, task, rows, config, 0, {2: tmp_path / "tied.safetensors"})
    saved = Checkpoint(point.path).weights()
    assert "lm_head.weight" not in saved
    store = collect(
        LlamaForCausalLM(model.config), task, rows, tmp_path / "s", checkpoints=[point], spec=SPEC
    )
    assert store.checkpoints[0]["sha256"] == weights_hash(model)
    assert "lm_head" not in store.header.layers


def without(folder: Path, copy: Path, *names: str) -> Path:
    shutil.copytree(folder, copy)
    for name in names:
        (copy / name).unlink()
    return copy


def test_folders_without_a_model_are_refused_in_one_line(folder, tmp_path):
    weightless = without(folder, tmp_path / "weightless", "model.safetensors")
    bare = without(folder, tmp_path / "bare", "config.json")
    mute = without(folder, tmp_path / "mute", "tokenizer.json", "tokenizer_config.json")
    cut = without(folder, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    garbled = without(folder, tmp_path / "garbled")
    (garbled / "config.json").write_text("{")
    narrow = without(folder, tmp_path / "narrow")
    config = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps({**config, "hidden_size": 48}))
    (tmp_path / "empty").mkdir()
    for path in (weightless, bare, mute, cut, garbled, narrow, tmp_path / "empty"):
        with pytest.raises(
            InputError, match=rf"{path.name}: no causal language model in this folder"
        ) as told:
            load_causal_lm(str(path))
        assert "\n" not in str(told.value)


def test_a_model_of_which_a_part_is_missing_is_refused(folder, tmp_path):
    """transformers warns, and draws the missing weights at random."""
    part = without(folder, tmp_path / "part")
    weights = load_file(part / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, part / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        InputError, match=r"part: 1 of the model's weights are missing, model\.layers\.1\.mlp\.up"
    ):
        load_causal_lm(str(part))


def test_a_name_that_is_nowhere_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="nowhere: no causal language model in this folder or hub id"):
        load_causal_lm(str(tmp_path / "nowhere"))


def test_padding_falls_back_to_zero_where_there_is_no_pad_token(loaded):
    task = CausalLMTask(loaded[1])
    assert task.tokenizer.pad_token_id is None
    batch = task.collate(pairs(("a", "b"), ("the cat sat on the mat", "b")))
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORE).all()
