"""The benchmarks' models, as both sides build them: from a kind and a configuration, with weights set afterwards.

It imports nothing of the project's, so that the peers' environment can use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn


def logistic(inputs: int, classes: int) -> nn.Module:
    """Multinomial logistic regression; a constant among the inputs is its bias."""
    return nn.Sequential(nn.Linear(inputs, classes, bias=False))


def cnn(channels: tuple[int, int, int], groups: int, classes: int) -> nn.Module:
    """Three convolutions with group norms on images (3, 32, 32), and a linear layer."""
    first, second, third = channels
    return nn.Sequential(
        nn.Conv2d(3, first, 5, stride=2, padding=2, bias=False),
        nn.GroupNorm(groups, first),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1, bias=False),
        nn.GroupNorm(groups, second),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(second, third, 3, padding=1, bias=False),
        nn.GroupNorm(groups, third),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(third * 4 * 4, classes, bias=False),
    )


def llama(**config: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**config))


def llama_lora(llama_config: Mapping[str, Any], rank: int, alpha: int) -> nn.Module:
    """`with_lora` of a `llama`."""
    return with_lora(llama(**llama_config), rank, alpha)


def with_lora(model: Any, rank: int, alpha: int) -> nn.Module:
    """LoRA adapters on every linear layer but the output head; all else is frozen."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)  # type: ignore[return-value]


def clip(**config: Any) -> nn.Module:
    from open_clip.model import CLIP

    return CLIP(**config)


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    builder.__name__: builder for builder in (logistic, cnn, llama, llama_lora, clip)
}


def build(kind: str, config: Mapping[str, Any]) -> nn.Module:
    """A freshly initialised model, from torch's global random state."""
    return BUILDERS[kind](**config)
