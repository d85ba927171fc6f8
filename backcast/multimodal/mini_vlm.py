"""A vision-language causal LM small enough to train on two cores in minutes, as a transformers folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<image>", "<|system|>", "<|user|>", "<|assistant|>"]

#: Each turn between its role's token and the end token, its parts in their order.
CHAT = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_mini_vlm(
    folder: str | Path,
    texts: Iterable[str],
    seed: int = 0,
    *,
    width: int = 64,
    vision_layers: int = 2,
    text_layers: int = 2,
    image_size: int = 64,
    patch_size: int = 8,
) -> Path:
    """Write a freshly initialised LLaVA, and a processor with a token for each word, where
    `load_vision_language` finds them.

    The same texts, sizes and seed give the same weights.

    Args:
        folder: where to write.
        texts: what it will read and answer; a punctuation mark is a word.
        seed: of the weights.
        width: of both towers, a multiple of 16.
        vision_layers: blocks of the CLIP vision tower.
        text_layers: blocks of the Llama.
        image_size: pixels that images are brought to, in height and width.
        patch_size: pixels of a patch, in height and width; each is a token of the Llama.
    """
    folder = Path(folder)
    tokenizer = word_tokenizer(texts, SPECIAL)
    size = {"height": image_size, "width": image_size}
    images = CLIPImageProcessor(size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        chat_template=CHAT,
        num_additional_image_tokens=1,
    )
    patches = (image_size // patch_size) ** 2
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": width // 16,
    }
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            num_hidden_layers=vision_layers,
            image_size=image_size,
            patch_size=patch_size,
            projection_dim=width,
            **sizes,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            num_hidden_layers=text_layers,
            max_position_embeddings=8 * patches + 512,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **sizes,
        ),
        image_token_index=SPECIAL.index("<image>"),
        image_seq_length=patches,
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def word_tokenizer(texts: Iterable[str], special: list[str]) -> PreTrainedTokenizerFast:
    """A token for each word and punctuation mark of ``texts``, after ``special``, the first four of which pad, stand
    for unknown words, begin and end."""
    split = pre_tokenizers.Whitespace()
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)} - set(special))
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    pad, unknown, begin, end = special[:4]
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = split
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token=unknown,
        bos_token=begin,
        eos_token=end,
        additional_special_tokens=special[4:],
    )
