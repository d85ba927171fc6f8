"""Preference pairs: direct preference optimisation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backcast.data import Example
from backcast.errors import InputError
from backcast.tasks.causal_lm import CausalLMTask
from backcast.tasks.hashes import weights_hash
from backcast.tasks.still import still
from backcast.tasks.task import Batch, Task, batches, on_device

SIDES = ("chosen", "rejected")

Messages = Sequence[Mapping[str, str]]


class PreferenceTask(Task):
    """A pair of answers of which the first is preferred, under the DPO loss

        ℓ = −log σ(m),  m = β [log π(y_c|x)/π_ref(y_c|x) − log π(y_r|x)/π_ref(y_r|x)].

    Fields ``prompt``, ``chosen`` (y_c) and ``rejected`` (y_r): texts, encoded as `CausalLMTask` encodes a prompt and
    its response, or lists of messages, where an answer that does not begin with the assistant is the whole
    conversation. log π(y|x) is the sum over the answer's tokens.

    Args:
        tokenizer: a Hugging Face tokenizer.
        reference: the model that π_ref stands for, which nothing trains; None for the model itself with its adapters
            switched off (peft).
        beta: β.
        max_length: tokens kept of a prompt with one answer.

    The reference is asked once for each example, without dropout, and its answers are kept.

    Source: Rafailov et al. 2023, Direct preference optimization, equation 7.
    """

    metric = "accuracy"
    higher_is_better = True

    def __init__(
        self,
        tokenizer: Any,
        reference: nn.Module | None = None,
        beta: float = 0.1,
        max_length: int = 1024,
    ) -> None:
        self.reference = reference
        self.beta = beta
        self._answers = CausalLMTask(tokenizer, "sum", max_length)
        self._known: dict[str, list[float]] = {}  # the reference's losses of each example's two answers

    def settings(self) -> dict[str, Any]:
        reference = "adapters off" if self.reference is None else weights_hash(self.reference)
        return {"beta": self.beta, "max_length": self._answers.max_length, "reference": reference}

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """Every Linear but the output head, whose gradient is as large as the vocabulary."""
        return self._answers.modules(model)

    def length(self, example: Example) -> int:
        return sum(self._answers.length(_answer(example, side)) for side in SIDES)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """``ids``: B strings; for each side what `CausalLMTask` gives, e.g. ``chosen_input_ids`` (B, T)."""
        batch: dict[str, Any] = {"ids": [example.id for example in examples]}
        for side in SIDES:
            answers = self._answers.collate([_answer(example, side) for example in examples])
            batch |= {f"{side}_{name}": value for name, value in answers.items()}
        return batch

    def prepare(self, model: nn.Module) -> None:
        if self.reference is None:
            self._known.clear()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.softplus(-self.output(model, batch))

    def output(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,) m, which is log p/(1 − p) of the probability p = σ(m) that the model gives the preference."""
        chosen, rejected = self._losses(model, batch)
        chosen_before, rejected_before = self._reference_losses(model, batch).to(chosen).T
        return self.beta * ((chosen_before - chosen) - (rejected_before - rejected))

    def errors(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,) √2 (1 − p): the length of (p, 1 − p) − (1, 0)."""
        return 2**0.5 * torch.sigmoid(-self.output(model, batch))

    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, 2H) `CausalLMTask`'s of the two answers, each with its prompt."""
        return torch.cat([self._answers.features(model, _side(batch, side)) for side in SIDES], 1)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, examples: Sequence[Example]) -> float:
        """The share of examples with m > 0."""
        self.prepare(model)
        right = 0
        for part in batches(examples, 64):
            right += int((self.output(model, on_device(self.collate(part), model)) > 0).sum())
        return right / len(examples)

    def _losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B,) −log π of the two answers; each in a forward of its own, whose rows belong to one example each."""
        chosen, rejected = (self._answers.loss(model, _side(batch, side)) for side in SIDES)
        return chosen, rejected

    def _reference_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, 2) −log π_ref of the two answers."""
        if any(identity not in self._known for identity in batch["ids"]):
            with torch.no_grad(), self._referring(model) as reference:
                losses = torch.stack(self._losses(reference, on_device(batch, reference)), 1)
            self._known |= zip(batch["ids"], losses.tolist(), strict=True)
        return torch.tensor([self._known[identity] for identity in batch["ids"]], dtype=torch.float64)

    @contextmanager
    def _referring(self, model: Any) -> Iterator[nn.Module]:
        if self.reference is not None:
            with still(self.reference):
                yield self.reference
        elif hasattr(model, "disable_adapter"):
            with still(model), model.disable_adapter():
                yield model
        else:
            raise InputError(
                f"{type(model).__name__} has no adapters to switch off; give PreferenceTask reference=, the model that "
                "preference tuning started from"
            )


def _side(batch: Batch, side: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{side}_"): value for name, value in batch.items() if name.startswith(side)}


def _answer(example: Example, side: str) -> Example:
    """The example as one of its answers alone."""
    prompt, answer = (example.fields.get(name) for name in ("prompt", side))
    if prompt is None or answer is None:
        raise InputError(
            f"row {example.row} of {example.source}: no pair to compare ({', '.join(sorted(example.fields))}); "
            "a preference needs prompt, chosen and rejected"
        )
    if isinstance(prompt, str) and isinstance(answer, str):
        fields: dict[str, Any] = {"prompt": prompt, "response": answer}
    else:
        fields = {"messages": _conversation(prompt, answer)}
    return Example(fields, example.row, example.source, f"{example.id}/{side}")


def _conversation(prompt: str | Messages, answer: str | Messages) -> Messages:
    turns = _turns(answer, "assistant")
    return [*_turns(prompt, "user"), *turns] if turns[0]["role"] == "assistant" else turns


def _turns(said: str | Messages, role: str) -> Messages:
    return [{"role": role, "content": said}] if isinstance(said, str) else said
