"""Small tokenizers and language models for the tests of this folder."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["a", "b", "c", "d", "e", "f", "g", "good", "bad", "cat", "dog", "sat", "on", "the", "mat"]
WORDS += ["red", "green", "blue"]
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
#: A Llama with 23 words; two layers of width 16.
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}


def word_tokenizer(**special: Any) -> PreTrainedTokenizerFast:
    """A token for each word; 0 pads, 1 ends."""
    names = ["<pad>", "</s>", "<user>", "<assistant>", "<end>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "</s>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT, **special)


def llama(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(word_tokenizer()), initializer_range=0.3, **SIZES))
    return model.eval()


def gpt2(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(word_tokenizer()),
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=128,
        initializer_range=0.3,
    )
    return GPT2LMHeadModel(config).eval()
