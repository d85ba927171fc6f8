"""Fused attention, shown as the Linear layers that it is made of."""

from __future__ import annotations

from typing import TypeGuard

import torch.nn.functional as F
from torch import Tensor, nn

from backcast.errors import InputError


class OpenAttention(nn.Module):
    """An `nn.MultiheadAttention` whose two projections are modules, so that hooks see their inputs and outputs.

    It shares the original's parameters and computes the same function, without attention weights as output.
    """

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = fused.num_heads
        self.batch_first = fused.batch_first
        self.dropout = fused.dropout
        self.in_proj = _linear(fused.in_proj_weight, fused.in_proj_bias)
        self.in_proj_bias = None  # keeps nn.TransformerEncoderLayer off its fast path, which calls no module
        self.out_proj = _linear(fused.out_proj.weight, fused.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Self-attention of (B, T, E), or (T, B, E) where the original is not batch-first."""
        if need_weights or not (query is key is value):
            raise InputError(
                "an nn.MultiheadAttention is called across two sequences, or for its weights; "
                "only self-attention without weights can be tracked"
            )
        x = query if self.batch_first else query.transpose(0, 1)
        B, T, _ = x.shape
        q, k, v = self.in_proj(x).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mask = None if attn_mask is None else F._canonical_mask(attn_mask, "attn_mask", None, "", q.dtype)
        if mask is not None and mask.dim() == 3:
            mask = mask.view(B, self.heads, *mask.shape[1:])
        if key_padding_mask is not None:
            padding = F._canonical_mask(key_padding_mask, "key_padding_mask", None, "", q.dtype)
            padding = padding[:, None, None]  # type: ignore[index]
            mask = padding if mask is None else mask + padding
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = self.out_proj(out.transpose(1, 2).reshape(B, T, -1))
        return (out if self.batch_first else out.transpose(0, 1)), None


def _linear(weight: Tensor | None, bias: Tensor | None) -> nn.Linear:
    assert weight is not None  # see is_fused_attention
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight, linear.bias = weight, bias  # type: ignore[assignment]
    return linear


def is_fused_attention(module: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    return (
        type(module) is nn.MultiheadAttention
        and module.in_proj_weight is not None
        and module.bias_k is None
        and not module.add_zero_attn
    )
