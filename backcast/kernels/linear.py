"""What ops share that are linear in their arguments.

The flat ones: the shape of their result, each other as derivative, and their vmap rule. Those of a layer's X and D: the
check that these are of the same rows, and what their backward needs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef

from backcast.kernels.precision import wide_dtype
from backcast.kernels.vmap import batched


def register_linear(forward: CustomOpDef, adjoint: CustomOpDef) -> None:
    """Register fakes, gradients and vmap rules of two ops (x (B, n), k, key) → (B, k), each the other's adjoint."""
    for op, transpose in ((forward, adjoint), (adjoint, forward)):
        op.register_fake(_fake)
        op.register_autograd(_backward(transpose), setup_context=_remember)
        op.register_vmap(batched(op, 0, None, None))


def check_rows(X: Tensor, D: Tensor) -> None:
    """Raise `RuntimeError` unless X (B, T, ·) and D (B, T, ·) have the same examples and positions."""
    torch._check(
        X.shape[:2] == D.shape[:2], lambda: f"{tuple(X.shape)} and {tuple(D.shape)} differ in B or T"
    )


def save_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """The setup of a backward that needs every argument, as a product's does."""
    ctx.save_for_backward(*inputs)


def _fake(x: Tensor, length: int, key: int) -> Tensor:
    return x.new_empty(x.shape[0], length, dtype=wide_dtype(x))


def _remember(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
    x, _, ctx.key = inputs
    ctx.dtype, ctx.length = x.dtype, x.shape[1]


def _backward(transpose: CustomOpDef) -> Any:
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return transpose(grad, ctx.length, ctx.key).to(ctx.dtype), None, None

    return backward
