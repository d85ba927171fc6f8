"""Small vision-language models of three families, each with its processor, for the tests of this folder."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from backcast.data import Examples
from backcast.multimodal.mini_vlm import word_tokenizer, write_mini_vlm
from backcast.multimodal.vision_language import load_vision_language

TEXTS = [
    "you are brief . what color is this ? which shape is the big one , and where ?",
    "red blue green circle square triangle left right yes no it is a",
    "User : Assistant System user assistant system Answer",
]

#: As Qwen2-VL's: a line for the role, and marks around an image.
QWEN_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: As SmolVLM's: capital roles, a colon, and contents that are stripped.
SMOL_CHAT = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %} {{ part['text'] | trim }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
QWEN_TOKENS = ["<pad>", "<unk>", "<s>", "<|im_end|>", "<|im_start|>"]
QWEN_TOKENS += ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
SMOL_TOKENS = ["<pad>", "<unk>", "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>"]
SMOL_TOKENS += ["<global-img>", *(f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4))]

TEXT_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}

FAMILIES = ["llava", "qwen", "smol", "smol split"]


@cache
def folder_of(family: str) -> Path:
    """A saved model and its processor, written once."""
    folder = Path(mkdtemp())
    if family == "llava":
        return write_mini_vlm(folder, TEXTS, width=32, image_size=32)
    model, processor = _qwen() if family == "qwen" else _smol(splitting=family.endswith("split"))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@cache
def loaded(family: str) -> tuple[nn.Module, Any]:
    """Shared by tests that leave it as it is."""
    return fresh(family)


def fresh(family: str) -> tuple[nn.Module, Any]:
    model, processor = load_vision_language(str(folder_of(family)))
    return model.eval(), processor


def _qwen() -> tuple[nn.Module, Any]:
    tokenizer = word_tokenizer(TEXTS, QWEN_TOKENS)
    size = {"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
    images = Qwen2VLImageProcessor(patch_size=8, merge_size=2, size=size)
    processor = Qwen2VLProcessor(
        images, tokenizer, Qwen2VLVideoProcessor(patch_size=8), chat_template=QWEN_CHAT
    )
    ids = {
        name: tokenizer.convert_tokens_to_ids(token)
        for name, token in (
            ("image_token_id", "<|image_pad|>"),
            ("video_token_id", "<|video_pad|>"),
            ("vision_start_token_id", "<|vision_start|>"),
            ("vision_end_token_id", "<|vision_end|>"),
        )
    }
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "rope_parameters": rope, "pad_token_id": 0, "bos_token_id": 2,
            "eos_token_id": 3, **TEXT_SIZES,
        },
        vision_config={
            "depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 8, "mlp_ratio": 2,
            "initializer_range": 0.2,
        },
        **ids,
    )  # fmt: skip
    torch.manual_seed(0)
    return Qwen2VLForConditionalGeneration(config), processor


def _smol(splitting: bool) -> tuple[nn.Module, Any]:
    """Idefics3, of which SmolVLM is a copy; its processor needs no package besides."""
    tokenizer = word_tokenizer(TEXTS, SMOL_TOKENS)
    images = Idefics3ImageProcessor(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, do_image_splitting=splitting
    )
    processor = Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=SMOL_CHAT)
    config = Idefics3Config(
        text_config={
            "model_type": "llama", "vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 2,
            "eos_token_id": 3, **TEXT_SIZES,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8, "initializer_range": 0.2,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return Idefics3ForConditionalGeneration(config), processor


def picture(seed: int, size: tuple[int, int] = (40, 40)) -> bytes:
    """A PNG of noise, as wide and as high as ``size`` says."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def said(role: str, *parts: str) -> dict[str, Any]:
    """A turn; "<image>" as a part shows the next image."""
    content = [{"type": "image"} if p == "<image>" else {"type": "text", "text": p} for p in parts]
    return {"role": role, "content": content}


def mixed() -> Examples:
    """Rows with two images of different sizes, one, none, and two turns of the assistant; of different lengths."""
    return Examples.from_fields(
        [
            {
                "messages": [
                    said("user", "<image>", "which shape is the big one ?", "<image>", "and where ?"),
                    said("assistant", "the square , left"),
                ],
                "images": [picture(1, (40, 40)), picture(2, (40, 16))],
            },
            {"image": picture(3, (16, 40)), "prompt": "what color is this ?", "response": "it is red"},
            {"messages": [said("user", "is a square red ?"), said("assistant", "no")]},
            {
                "messages": [
                    {"role": "system", "content": "you are brief ."},
                    said("user", "<image>", "what is this ?"),
                    said("assistant", "a circle"),
                    said("user", "and what color ?"),
                    said("assistant", "it is blue ."),
                ],
                "images": [picture(4, (33, 24))],
            },
        ],
        "pool.jsonl",
    )
