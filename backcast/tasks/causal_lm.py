"""Causal language models: the loss of a response given its prompt."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jinja2 import TemplateError
from safetensors import SafetensorError
from torch import Tensor, nn

from backcast.data import Example
from backcast.errors import InputError
from backcast.tasks.head import IGNORE, token_losses
from backcast.tasks.task import Batch, Task

#: Encoded examples that a task keeps.
CACHE = 2**12


class CausalLMTask(Task):
    """Next-token cross-entropy over an example's response.

    ``prompt`` and ``response`` are joined as they are, an end-of-sequence token closing them; ``messages`` go
    through the tokenizer's chat template and what the assistant writes counts; ``text`` counts from its second token
    on.

    Args:
        tokenizer: a Hugging Face tokenizer.
        reduction: an example's loss is the ``mean`` or the ``sum`` over its response tokens. The sum makes long
            responses weigh more (Xia et al. 2024, LESS, section 3.2, on why the mean of gradients favours short ones).
        max_length: tokens kept of an example.
    """

    def __init__(
        self, tokenizer: Any, reduction: Literal["mean", "sum"] = "mean", max_length: int = 1024
    ) -> None:
        self.tokenizer = tokenizer
        self.reduction = reduction
        self.max_length = max_length
        self._encoded: dict[str, tuple[list[int], list[int]]] = {}

    def settings(self) -> dict[str, Any]:
        return {"reduction": self.reduction, "max_length": self.max_length}

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """Every Linear but the output head, whose gradient is as large as the vocabulary."""
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
        return {name: module for name, module in super().modules(model).items() if module is not head}

    def length(self, example: Example) -> int:
        return len(self._encode(example)[0])

    def collate(self, examples: Sequence[Example]) -> Batch:
        """``input_ids``, ``attention_mask``, ``labels``: (B, T) int64, padded on the right."""
        encoded = [self._encode(example) for example in examples]
        length = max(len(ids) for ids, _ in encoded)
        pad = self.tokenizer.pad_token_id or 0
        shape = (len(encoded), length)
        input_ids = torch.full(shape, pad)
        labels = torch.full(shape, IGNORE)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        for b, (ids, targets) in enumerate(encoded):
            input_ids[b, : len(ids)] = torch.tensor(ids)
            labels[b, : len(ids)] = torch.tensor(targets)
            attention_mask[b, : len(ids)] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        labels = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        tokens = token_losses(model, inputs | {"use_cache": False}, labels).sum(1)
        return tokens if self.reduction == "sum" else tokens / (labels != IGNORE).sum(1).clamp(min=1)

    def _encode(self, example: Example) -> tuple[list[int], list[int]]:
        """Token ids and labels, `IGNORE` wherever a token is not to be learnt; the last examples' are kept."""
        if example.id not in self._encoded:
            if len(self._encoded) == CACHE:
                self._encoded.clear()
            self._encoded[example.id] = self._tokens_of(example)
        return self._encoded[example.id]

    def _tokens_of(self, example: Example) -> tuple[list[int], list[int]]:
        fields = example.fields
        if "messages" in fields:
            ids, learnt = self._encode_messages(example)
        elif "text" in fields:
            ids = self.tokenizer(fields["text"])["input_ids"]
            learnt = [True] * len(ids)
        elif "response" in fields:
            prompt = self.tokenizer(fields["prompt"])["input_ids"]
            response = self.tokenizer(fields["response"], add_special_tokens=False)["input_ids"]
            end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
            ids = prompt + response + end
            learnt = [False] * len(prompt) + [True] * (len(ids) - len(prompt))
        else:
            raise InputError(
                f"row {example.row} of {example.source}: nothing to learn from ({', '.join(sorted(fields))}); "
                "a language model needs text, messages, or prompt and response"
            )
        ids, learnt = ids[: self.max_length], learnt[: self.max_length]
        if not any(learnt[1:]):
            raise InputError(
                f"row {example.row} of {example.source}: no response token is left within {self.max_length} tokens; "
                "shorten its prompt or raise the maximal length"
            )
        return ids, [token if learn else IGNORE for token, learn in zip(ids, learnt, strict=True)]

    def _encode_messages(self, example: Example) -> tuple[list[int], list[bool]]:
        """What the assistant writes is learnt: from where the template asks for its turn to where that turn ends."""
        messages = example.fields["messages"]
        ids = self._chat(example, messages)
        learnt = [False] * len(ids)
        for turn, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self._chat(example, messages[:turn], add_generation_prompt=True) if turn else []
                after = self._chat(example, messages[: turn + 1])
                if ids[: len(before)] != before or ids[: len(after)] != after:
                    raise InputError(
                        f"row {example.row} of {example.source}: the chat template rewrites earlier turns, so the "
                        f"tokens of turn {turn + 1} cannot be told; split it into one row for each answer"
                    )
                learnt[len(before) : len(after)] = [True] * (len(after) - len(before))
        return ids, learnt

    def _chat(self, example: Example, messages: Sequence[dict[str, Any]], **options: bool) -> list[int]:
        if not self.tokenizer.chat_template:
            raise InputError(
                f"tokenizer {self.tokenizer.name_or_path!r} has no chat template for rows of messages; "
                "set one, or give the rows as prompt and response"
            )
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except TemplateError as error:
            raise InputError(
                f"row {example.row} of {example.source}: the chat template refuses its messages ({error})"
            ) from None
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def load_causal_lm(path: str, trust_remote_code: bool = False) -> tuple[nn.Module, Any]:
    """A causal LM and its tokenizer from a folder or a hub id, in float32.

    Raises `InputError` when the model or its tokenizer cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        where = "folder" if Path(path).is_dir() else "folder or hub id"
        raise InputError(
            f"{path}: no causal language model in this {where} ({reason}); "
            "it needs config.json, weights (model.safetensors) and a tokenizer"
        ) from None
    model, found = loaded
    missing = found["missing_keys"]  # drawn at random by transformers
    if missing:
        raise InputError(
            f"{path}: {len(missing)} of the model's weights are missing, {min(missing)} for one; "
            "save the whole model there"
        )
    return model, tokenizer
