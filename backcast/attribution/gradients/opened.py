"""A model whose fused modules are shown as the linear layers that they are made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from backcast.attribution.gradients.attention import OpenAttention, is_fused_attention
from backcast.attribution.gradients.experts import OpenExperts, is_fused_experts


def _opened(module: nn.Module) -> nn.Module | None:
    wrapped = getattr(module, "_orig_mod", None)
    if wrapped is not None:  # by torch.compile: names must not depend on that
        return _opened(wrapped) or wrapped
    if is_fused_attention(module):
        return OpenAttention(module).train(module.training)
    if is_fused_experts(module):
        return OpenExperts(module).train(module.training)
    return None


@contextmanager
def opened(model: nn.Module) -> Iterator[None]:
    """Replace each fused module in ``model`` by its opened form, of the same parameters; restore them on leaving."""
    children = [(parent, *child) for parent in model.modules() for child in parent.named_children()]
    places = [(*place, form) for place in children if (form := _opened(place[2])) is not None]
    try:
        for parent, name, _, form in places:
            setattr(parent, name, form)
        yield
    finally:
        for parent, name, child, _ in places:
            setattr(parent, name, child)
