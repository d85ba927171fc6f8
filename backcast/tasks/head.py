"""Next-token losses of a causal language model, without its logits where its output head is frozen.

The gradient of a cross-entropy by the hidden state is (softmax(Wh) − onehot(y))ᵀ W. Where W has no gradient of its own
nothing else is needed of the logits, so both are taken a block of tokens at a time in the forward (the idea of Liger's
fused linear cross-entropy, arXiv 2410.10989): the logits, by far the largest tensor of a small model, are never whole
in memory, nor read again, and tokens without a label cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from backcast.kernels.precision import wide, wide_dtype

IGNORE = -100

#: Logits in a block: what stays in a cache; and the least tokens of one, below which a product is slow.
BLOCK, LEAST = 2**21, 256

#: Whether losses may be fused with a frozen head.
_fused = True

#: Whether a model's logits are its head's output as it is.
_bare_heads: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def token_losses(model: Any, inputs: Mapping[str, Any], labels: Tensor) -> Tensor:
    """(B, T) cross-entropies of each position's next token.

    Args:
        model: called with ``inputs``, it gives an object whose ``logits`` are (B, T, V).
        inputs: of the model.
        labels: (B, T) the token that follows each position, `IGNORE` where it does not count; losses are zero there.
    """
    head = _frozen_head(model)
    if head is not None and _bare_heads.get(model, True):
        hidden, _bare_heads[model] = _hidden_states(model, head, inputs)
        if _bare_heads[model]:
            counted = labels != IGNORE
            losses = _FrozenHead.apply(hidden[counted], head.weight, head.bias, labels[counted])
            return losses.new_zeros(labels.shape).masked_scatter(counted, losses)
    logits = wide(model(**inputs).logits.flatten(0, 1))
    return F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE, reduction="none").view_as(labels)


def token_values(
    model: Any, inputs: Mapping[str, Any], labels: Tensor, formula: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """(B, T) ``formula(logits (n, V), labels (n,)) -> (n,)`` of the labelled positions, zeros elsewhere.

    It sees a block of tokens at a time, whose logits are taken again in the backward; other arguments as for
    `token_losses`.
    """
    counted = labels != IGNORE
    head = _frozen_head(model)
    hidden: Tensor | None = None
    if head is not None and _bare_heads.get(model, True):
        hidden, _bare_heads[model] = _hidden_states(model, head, inputs)
    if head is not None and hidden is not None and _bare_heads[model]:
        rows, width = hidden[counted], head.out_features
    else:
        head, rows = None, model(**inputs).logits[counted]
        width = rows.shape[1]

    def block(x: Tensor, label: Tensor) -> Tensor:
        return formula(wide(x if head is None else F.linear(x, head.weight, head.bias)), label)

    size = max(LEAST, BLOCK // width)
    parts = zip(rows.split(size), labels[counted].split(size), strict=True)
    values = torch.cat([checkpoint(block, x, label, use_reentrant=False) for x, label in parts])
    return values.new_zeros(labels.shape).masked_scatter(counted, values)


def last_hidden_states(model: Any, inputs: Mapping[str, Any]) -> Tensor | None:
    """(B, T, H): what the output head is given; None where the model names no linear one."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return _hidden_states(model, head, inputs)[0] if isinstance(head, nn.Linear) else None


@contextmanager
def whole_logits() -> Iterator[None]:
    """Take the logits as the model returns them: the fused loss of a frozen head is differentiable once only."""
    global _fused
    before, _fused = _fused, False
    try:
        yield
    finally:
        _fused = before


def _frozen_head(model: Any) -> nn.Linear | None:
    """The output head, if it needs no gradient, nothing else watches it, and hooks on it are called."""
    if not _fused or hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        return None
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if type(head) is not nn.Linear or head._forward_hooks or head._forward_pre_hooks:
        return None
    trained = torch.is_grad_enabled() and any(p.requires_grad for p in head.parameters())
    return None if trained else head


def _hidden_states(model: Any, head: nn.Linear, inputs: Mapping[str, Any]) -> tuple[Tensor, bool]:
    """The head's input (B, T, H), and whether the model returns the head's output unchanged.

    Some families scale or cap their logits. The head's output is replaced by a ramp: the model must return just that.
    """
    seen: list[Tensor] = []
    ramp = torch.linspace(-100, 100, head.out_features, device=head.weight.device, dtype=head.weight.dtype)

    def before(module: nn.Module, arguments: tuple[Tensor, ...]) -> Tensor:
        seen.append(arguments[0])
        return arguments[0][:, :1]

    def after(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return ramp.expand_as(output)

    handles = head.register_forward_pre_hook(before), head.register_forward_hook(after)
    try:
        logits = model(**inputs).logits
    finally:
        for handle in handles:
            handle.remove()
    return seen[0], bool((logits == ramp).all())


class _FrozenHead(torch.autograd.Function):
    """(n,) losses of hidden states (n, H) with labels (n,); their gradient (n, H) is taken along."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        losses = hidden.new_empty(len(hidden), dtype=wide_dtype(hidden))
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        size = max(LEAST, BLOCK // len(weight))
        for start in range(0, len(hidden), size):
            block = slice(start, start + size)
            logs = F.log_softmax(F.linear(hidden[block], weight, bias), 1, dtype=losses.dtype)
            label = labels[block, None]
            own = logs.gather(1, label)
            losses[block] = -own[:, 0]
            if gradient is not None:
                by_logits = logs.exp_().scatter_add_(1, label, torch.full_like(own, -1))
                gradient[block] = by_logits.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * by_loss[:, None]).to(gradient.dtype), None, None, None
