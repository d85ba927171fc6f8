"""What collection, fine-tuning and evaluation ask of a model family."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backcast.data import Example
from backcast.errors import InputError

Batch = Mapping[str, Any]


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is GPT-2's linear layer with a transposed weight; told by name, to import no transformers."""
    return (type(module).__module__, type(module).__name__) == ("transformers.pytorch_utils", "Conv1D")


class Task(ABC):
    """Binds a model family: what a batch is, what one example's loss is, and what a run is measured by.

    Only `collate` and `loss` are obligatory. A loss must be a function of the example alone: two batches that share
    an example give it the same loss.
    """

    #: Whether the biases of the tracked linear layers and convolutions count.
    biases: bool = False
    #: What `evaluate` returns, and whether more of it is better.
    metric: str = "loss"
    higher_is_better: bool = False

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """A batch of B examples: a mapping whose tensors lie on the CPU."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,) per-example losses, differentiable."""

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """The modules whose weights' gradients are sketched, by name; unless overridden every Linear and Conv2d.

        GPT-2's Conv1D counts as Linear, and so does each expert of a mixture. Embeddings, norms and any other module
        of few parameters can be tracked too, where a task names them.
        """
        return {
            n: m for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)) or is_conv1d(m)
        }

    def length(self, example: Example) -> int:
        """What an example's cost is proportional to, e.g. its tokens: batches are made of examples of like length."""
        return 1

    def settings(self) -> Mapping[str, Any]:
        """What the loss depends on beside model and example, as JSON; a store of other settings is not resumed."""
        return {}

    def prepare(self, model: nn.Module) -> None:
        """Compute what the loss holds constant at the model's present weights. Called whenever they have changed."""
        return

    def output(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,) the model-output function f that a linear model of the training data explains best, differentiable.

        The logit of the right answer's probability, log p/(1 − p), where the loss is −log p. (Park et al. 2023, TRAK,
        section 3.)
        """
        raise self._lacks("output", "no model-output function")

    def errors(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,) ‖p − y‖₂ of the predicted probabilities and the one-hot answer. (Paul et al. 2021, EL2N.)"""
        raise self._lacks("errors", "no error vectors")

    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, d) the model's own representation of each example, for similarities."""
        raise self._lacks("features", "no representation")

    def perplexity(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,) e^ℓ; of a language model with the mean loss of a token, whatever `loss` reduces to."""
        return self.loss(model, batch).exp()

    def sampled(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with its answers drawn from the model's own predictions: whose losses' gradients have the true
        Fisher matrix as their second moment (Kunstner et al. 2019)."""
        raise self._lacks("sampled", "no predictions to draw from")

    def _lacks(self, method: str, what: str) -> InputError:
        return InputError(
            f"{type(self).__name__} defines {what}; override {method}() in it, or choose another method"
        )

    def training_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,) the losses whose mean fine-tuning minimises; those of `loss` unless overridden.

        Unlike `loss` they may depend on the batch's other examples: each is what an example's weight multiplies.
        """
        return self.loss(model, batch)

    def objective(self, model: nn.Module, batch: Batch) -> Tensor:
        """The scalar that fine-tuning minimises: the mean of `training_losses`."""
        return self.training_losses(model, batch).mean()

    @torch.no_grad()
    def evaluate(self, model: nn.Module, examples: Sequence[Example]) -> float:
        """The metric of the model on ``examples``; the mean loss unless overridden."""
        self.prepare(model)
        losses = [self.loss(model, on_device(self.collate(b), model)) for b in batches(examples, 64)]
        return torch.cat(losses).double().mean().item()


def batches(examples: Sequence[Example], size: int) -> list[Sequence[Example]]:
    """Consecutive slices of at most ``size`` examples."""
    return [examples[start : start + size] for start in range(0, len(examples), size)]


def packed(lengths: Sequence[int], size: int, most: int | None = None) -> list[list[int]]:
    """Batches of examples of like length, the longest first: the places of each batch's examples.

    A batch is as large as ``size`` examples of the greatest length, and at most ``most`` long in all or one example;
    of shorter ones it holds more.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    most = min(size * max(lengths, default=1), most or sys.maxsize)
    packs: list[list[int]] = []
    while order:
        count = max(1, most // max(lengths[order[0]], 1))
        packs.append(order[:count])
        order = order[count:]
    return packs


def on_device(batch: Batch, model: nn.Module) -> Batch:
    """The batch with its tensors on the model's device."""
    device = next(model.parameters()).device
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
