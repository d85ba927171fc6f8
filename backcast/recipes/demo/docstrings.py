"""The demo's text setting: the docstrings of the installed packages."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from backcast.data import Example, Examples
from backcast.data.corpora import Corpus, docstrings_corpus
from backcast.finetune import FinetuneConfig
from backcast.kernels import SketchSpec
from backcast.recipes.demo.setting import Plan

TARGET = "scipy"
END = "<|end|>"


class Docstrings:
    """Signatures and first sentences of docstrings under a small Llama; held-out loss on one package's."""

    name = "docstrings"
    title = f"Docstrings of the installed packages, wanted: {TARGET}'s"
    metric = f"loss on {TARGET}'s docstrings (nats a token)"
    higher_is_better = False
    bounds = (0.0, 12.0)

    def plan(self, quick: bool) -> Plan:
        budgets = ("5%", "10%", "20%", "40%") if quick else ("5%", "10%", "20%", "40%", "80%")
        return Plan(
            warmup=FinetuneConfig(steps=200, batch_size=16, learning_rate=3e-3),
            scoring=FinetuneConfig(steps=150, batch_size=16, learning_rate=2e-3),
            runs=FinetuneConfig(steps=80 if quick else 200, batch_size=16, learning_rate=2e-3),
            spec=SketchSpec(kind="kron", dim=1024),
            budgets=budgets,
            fitted=("5%", "10%", "20%"),
            seeds=1 if quick else 2,
        )

    def corpus(self, seed: int, quick: bool) -> Corpus:
        return docstrings_corpus(target=TARGET, seed=seed, pool_size=2000 if quick else 8000)

    def write(self, folder: Path, seed: int, quick: bool) -> None:
        corpus = self.corpus(seed, quick)
        corpus.write(folder)
        texts = [f"{e.fields['prompt']}{e.fields['response']}" for e in corpus.pool]
        _write_mini_llama(folder / "model", texts, seed)

    def groups(self, target: Examples) -> list[str]:
        return [example.source for example in target]

    def truth(self, folder: Path) -> None:
        return None

    def text(self, example: Example) -> str:
        return f"{example.fields['prompt'].strip()} → {example.fields['response'].strip()}"


def _write_mini_llama(folder: Path, texts: list[str], seed: int) -> None:
    """A freshly initialised 2-layer Llama and a byte-level BPE tokenizer trained on ``texts``."""
    logging.disable_progress_bar()
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=1024, special_tokens=[END], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=END, pad_token=END)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
