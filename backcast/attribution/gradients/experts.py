"""Fused experts, shown as the linear layers that they are made of."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ExpertLinear(nn.Linear):
    """One expert's slice of a fused weight; it is told which tokens of how many its rows are."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)  # shares its memory
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=bias.requires_grad)  # type: ignore[assignment]

    def forward(self, x: Tensor, tokens: Tensor, count: int) -> Tensor:  # type: ignore[override]
        return F.linear(x, self.weight, self.bias)


class OpenExperts(nn.Module):
    """The experts of a mixture, as transformers 5 fuses them, with a module for each expert's two products.

    It shares the original's memory and computes the same function.
    """

    def __init__(self, fused: Any) -> None:
        super().__init__()
        self.up = self._split(fused, "gate_up_proj" if fused.has_gate else "up_proj")
        self.down = self._split(fused, "down_proj")
        # Not a child: its parameters would be listed twice.
        self._gate = (fused._apply_gate if fused.has_gate else fused.act_fn,)

    @staticmethod
    def _split(fused: Any, name: str) -> nn.ModuleList:
        weights = getattr(fused, name)
        biases = getattr(fused, f"{name}_bias") if fused.has_bias else [None] * len(weights)
        return nn.ModuleList(
            ExpertLinear(weight.T if fused.is_transposed else weight, bias)
            for weight, bias in zip(weights, biases, strict=True)
        )

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """(N, H) of tokens (N, H), each a weighted sum over its experts (N, K)."""
        (gate,) = self._gate
        out = torch.zeros_like(hidden_states)
        for expert, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            tokens, choice = torch.where(top_k_index == expert)
            if len(tokens):
                where = (tokens, len(hidden_states))
                x = down(gate(up(hidden_states[tokens], *where)), *where)
                weighted = x * top_k_weights[tokens, choice, None]
                out = out.index_add(0, tokens, weighted.to(out.dtype))
        return out


def is_fused_experts(module: nn.Module) -> TypeGuard[Any]:
    """Whether it has the attributes by which transformers describes its fused experts, and a form known here."""
    described = all(hasattr(module, a) for a in ("has_gate", "has_bias", "is_transposed", "down_proj"))
    return (
        described
        and module.down_proj.dim() == 3  # type: ignore[union-attr, operator]
        and not getattr(module, "has_post_expert_norm", False)
        and not getattr(module, "_is_expert_parallel", False)
    )
