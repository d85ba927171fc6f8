"""A CLIP small enough to train on two cores in seconds, as an open_clip folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from backcast.files import write_atomic, write_json

#: open_clip's own form of a configuration: an image tower of 3 blocks over 4×4 patches, a text tower of one block.
MODEL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 8, "width": 64, "heads": 4, "layers": 1, "hf_tokenizer_name": "words"},
}
PREPROCESS = {
    "size": 32,
    "mean": [0.3, 0.3, 0.3],
    "std": [0.35, 0.35, 0.35],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def write_mini_clip(folder: str | Path, captions: Sequence[str], seed: int = 0) -> Path:
    """Write a freshly initialised model, and a tokenizer of the captions' words, where `load_clip` finds them.

    The same captions and seed give the same weights.
    """
    from open_clip.model import CLIP

    folder = Path(folder)
    tokenizer = _word_tokenizer(captions)
    tokenizer.save_pretrained(folder)
    config = {**MODEL, "text_cfg": {**MODEL["text_cfg"], "vocab_size": len(tokenizer)}}  # type: ignore[dict-item]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIP(**config)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    write_atomic(folder / "open_clip_model.safetensors", save(weights))
    write_json(folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": PREPROCESS})
    return folder


def _word_tokenizer(captions: Sequence[str]) -> PreTrainedTokenizerFast:
    """A token for each word; the end token has the largest id, where open_clip's text tower looks for it."""
    words = sorted({word for caption in captions for word in caption.split()})
    vocabulary = {word: i for i, word in enumerate(["[pad]", "[unk]", "[start]", *words, "[end]"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[start] $A [end]",
        special_tokens=[(token, vocabulary[token]) for token in ("[start]", "[end]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[pad]",
        unk_token="[unk]",
        bos_token="[start]",
        eos_token="[end]",
    )
