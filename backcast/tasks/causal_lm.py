"""Causal language models: the loss of a response given its prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal
from weakref import WeakSet

import torch
import torch.nn.functional as F
from jinja2 import TemplateError
from torch import Tensor, nn

from backcast.data import Example
from backcast.errors import InputError
from backcast.tasks.encoded import Encoded
from backcast.tasks.head import IGNORE, last_hidden_states, token_losses, token_values
from backcast.tasks.loading import load_pretrained
from backcast.tasks.logits import drawn, error_norms, margins
from backcast.tasks.still import still
from backcast.tasks.task import Batch, Task

#: Models that were seen to keep packed examples apart.
_separating: WeakSet[nn.Module] = WeakSet()


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
        packed: whether several short examples share a row as long as the batch's longest, each with its own positions
            and seeing itself alone. Losses are those of padded rows; for training and evaluation only, as sketches
            need rows that belong to one example each.
    """

    def __init__(
        self,
        tokenizer: Any,
        reduction: Literal["mean", "sum"] = "mean",
        max_length: int = 1024,
        packed: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.writer = tokenizer  # which has the chat template
        self.reduction = reduction
        self.max_length = max_length
        self.packed = packed
        self._encode: Encoded[Any] = Encoded(self._tokens_of)

    def settings(self) -> dict[str, Any]:
        return {"reduction": self.reduction, "max_length": self.max_length}

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """Every Linear but the output head, whose gradient is as large as the vocabulary."""
        if self.packed:
            raise InputError(
                "packed rows hold several examples, whose gradients cannot be told apart; "
                "sketch with CausalLMTask(packed=False)"
            )
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
        return {name: module for name, module in super().modules(model).items() if module is not head}

    def length(self, example: Example) -> int:
        return len(self._encode(example)[0])

    def collate(self, examples: Sequence[Example]) -> Batch:
        """(B, T) int64, padded on the right: ``input_ids``, ``attention_mask`` and ``labels``.

        Packed, (R, T) of R ≤ B rows: ``input_ids``, ``position_ids``, ``labels``, and ``owner``, the example that a
        token belongs to, −1 for padding; and ``lengths`` (B,).
        """
        encoded = [self._encode(example) for example in examples]
        lengths = [len(ids) for ids, _ in encoded]
        rows = packed_rows(lengths) if self.packed else [[b] for b in range(len(encoded))]
        shape = (len(rows), max(lengths))
        batch = {
            "input_ids": torch.full(shape, self.tokenizer.pad_token_id or 0),
            "labels": torch.full(shape, IGNORE),
            "owner": torch.full(shape, -1),
            # A padding token is an example by itself: no row of the attention is empty.
            "position_ids": torch.zeros(shape, dtype=torch.long),
        }
        for r, members in enumerate(rows):
            first = 0
            for b in members:
                place = r, slice(first, first + lengths[b])
                batch["input_ids"][place], batch["labels"][place] = map(torch.tensor, encoded[b])
                batch["labels"][r, first] = IGNORE  # nothing before it tells of it
                batch["owner"][place] = b
                batch["position_ids"][place] = torch.arange(lengths[b])
                first += lengths[b]
        if self.packed:
            return batch | {"lengths": torch.tensor(lengths)}
        attention_mask = (batch["owner"] >= 0).long()
        return {"input_ids": batch["input_ids"], "attention_mask": attention_mask, "labels": batch["labels"]}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._over_tokens(token_losses, model, batch, self.reduction)

    def output(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,) the mean or the sum, as for the loss, of each response token's log p/(1 − p).

        Source: Park et al. 2023, TRAK, which takes a language model for a sequence of classifications.
        """
        return self._over_tokens(partial(token_values, formula=margins), model, batch, self.reduction)

    def errors(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,) the mean of ‖p − y‖₂ over the response tokens."""
        return self._over_tokens(partial(token_values, formula=error_norms), model, batch, "mean")

    def perplexity(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._over_tokens(token_losses, model, batch, "mean").exp()

    @torch.no_grad()
    def sampled(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        """Each response token is drawn given the real ones before it."""
        learnt = batch["labels"][:, 1:] != IGNORE
        labels = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE)
        draw = partial(token_values, formula=lambda logits, _: drawn(logits, generator))
        tokens = draw(model, self._inputs(model, batch), labels)[:, :-1]
        return {**batch, "labels": F.pad(tokens.masked_fill(~learnt, IGNORE), (1, 0), value=IGNORE)}

    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, H) the mean over the example's tokens, prompt and response, of what the output head is given."""
        hidden = last_hidden_states(model, self._inputs(model, batch))
        if hidden is None:
            raise self._lacks("features", "no representation of a model without a linear output head")
        attended = batch["owner"] >= 0 if "owner" in batch else batch["attention_mask"].bool()
        kept = _by_example(hidden * attended[..., None], batch)
        return kept.sum(1) / _by_example(attended, batch).sum(1, keepdim=True)

    def _over_tokens(
        self, values: Callable[..., Tensor], model: nn.Module, batch: Batch, reduction: str
    ) -> Tensor:
        """(B,) the mean or the sum of ``values(model, inputs, labels)`` over each example's response tokens."""
        labels = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE)
        totals = _by_example(values(model, self._inputs(model, batch), labels), batch).sum(1)
        counts = _by_example(labels != IGNORE, batch).sum(1)
        return totals if reduction == "sum" else totals / counts.clamp(min=1)

    def _inputs(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """What the model is called with.

        transformers makes the mask of packed rows of positions that start again, where there is no other mask.
        """
        if "owner" in batch and model not in _separating:
            self._check_separate(model, batch)
        names = ("input_ids", "position_ids" if "owner" in batch else "attention_mask")
        return {name: batch[name] for name in names} | {"use_cache": False}

    @torch.no_grad()
    def _check_separate(self, model: nn.Module, batch: Batch) -> None:
        """Raise `InputError` where an example's loss changes with the tokens of one that stands before it."""
        shared = (batch["owner"].amax(1) > batch["owner"][:, 0]).nonzero()
        if len(shared) == 0:
            return
        row = shared[:1, 0]
        ids, labels, owner = (batch[name][row] for name in ("input_ids", "labels", "owner"))
        first = owner == owner[:, :1]
        others = F.pad(labels.masked_fill(first, IGNORE)[:, 1:], (0, 1), value=IGNORE)
        changed = torch.where(first, (ids + 1) % (ids.max() + 1), ids)
        rest = {"position_ids": batch["position_ids"][row], "use_cache": False}
        with still(model):
            before, after = (token_losses(model, rest | {"input_ids": x}, others) for x in (ids, changed))
        if not torch.equal(before, after):
            raise InputError(
                f"{type(model).__name__} lets an example see those before it in a packed row; "
                "use CausalLMTask(packed=False)"
            )
        _separating.add(model)

    def _tokens_of(self, example: Example) -> tuple[list[int], list[int]]:
        fields = example.fields
        if "images" in fields or {"image", "response"} <= fields.keys():
            raise InputError(
                f"row {example.row} of {example.source}: is about an image, which a language model does not see; "
                "use a vision-language model"
            )
        if "messages" in fields:
            ids, learnt = self._encode_messages(example, fields["messages"])
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
        return self._labelled(example, ids, learnt)

    def _labelled(self, example: Example, ids: list[int], learnt: list[bool]) -> tuple[list[int], list[int]]:
        """The tokens that are kept of an example, and their labels."""
        ids, learnt = ids[: self.max_length], learnt[: self.max_length]
        if not any(learnt[1:]):
            raise InputError(
                f"row {example.row} of {example.source}: no response token is left within {self.max_length} tokens; "
                "shorten its prompt or raise the maximal length"
            )
        return ids, [token if learn else IGNORE for token, learn in zip(ids, learnt, strict=True)]

    def _encode_messages(
        self, example: Example, messages: Sequence[dict[str, Any]]
    ) -> tuple[list[int], list[bool]]:
        """What the assistant writes is learnt: from where the template asks for its turn to where that turn ends."""
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
        text = self._written(example, messages, **options)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _written(self, example: Example, messages: Sequence[dict[str, Any]], **options: bool) -> str:
        """The messages as the chat template writes them."""
        if not self.writer.chat_template:
            raise InputError(
                f"tokenizer {self.tokenizer.name_or_path!r} has no chat template for rows of messages; "
                "set one, or give the rows as prompt and response"
            )
        try:
            return self.writer.apply_chat_template(messages, tokenize=False, **options)
        except TemplateError as error:
            raise InputError(
                f"row {example.row} of {example.source}: the chat template refuses its messages ({error})"
            ) from None


def packed_rows(lengths: Sequence[int]) -> list[list[int]]:
    """Which examples share a row: first-fit decreasing into rows as long as the longest.

    Rows are in the order of their first examples: where each has a row of its own, in the examples' order.
    """
    most = max(lengths)
    rows: list[list[int]] = []
    room: list[int] = []
    for b in sorted(range(len(lengths)), key=lambda b: -lengths[b]):
        r = next((r for r, free in enumerate(room) if free >= lengths[b]), len(rows))
        if r == len(rows):
            rows.append([])
            room.append(most)
        rows[r].append(b)
        room[r] -= lengths[b]
    return sorted(sorted(row) for row in rows)


def _by_example(values: Tensor, batch: Batch) -> Tensor:
    """Values (R, T, ...) of packed tokens as (B, T, ...), a row an example, zeros after its end; others as they are."""
    if "owner" not in batch:
        return values
    kept = batch["owner"] >= 0
    by_example = values.new_zeros(len(batch["lengths"]), *values.shape[1:])
    return by_example.index_put((batch["owner"][kept], batch["position_ids"][kept]), values[kept])


def load_causal_lm(path: str, trust_remote_code: bool = False) -> tuple[nn.Module, Any]:
    """A causal LM and its tokenizer from a folder or a hub id, in float32.

    Raises `InputError` when the model or its tokenizer cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return load_pretrained(
        path, AutoModelForCausalLM, AutoTokenizer, "causal language model", "a tokenizer", trust_remote_code
    )
