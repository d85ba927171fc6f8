"""``torch.func.vmap`` over the ops: a mapped dimension joins the batch, so that one launch does it all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.library import CustomOpDef

from backcast.errors import InputError

#: (info, in_dims, *arguments) → (result, its mapped dimension), as ``CustomOpDef.register_vmap`` takes it.
Rule = Callable[..., tuple[Tensor, int]]


def batched(op: CustomOpDef, *axes: int | None, out_axis: int = 0) -> Rule:
    """The vmap rule of an op that treats its examples apart.

    Mapping over an argument that counts no examples, an operator's own matrix, is refused with an `InputError`.

    Args:
        op: the op.
        axes: for each argument its axis of examples, None where it has none (a matrix, a length, a key).
        out_axis: the result's axis of examples.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
        merged = []
        for place, (x, dim, axis) in enumerate(zip(arguments, in_dims, axes, strict=True), 1):
            if axis is not None:
                x = mapped_at(axis, x, dim, info.batch_size).flatten(axis, axis + 1)
            elif isinstance(dim, int):
                raise InputError(
                    f"{op._qualname}: argument {place} belongs to the operator, not to an example, and cannot be "
                    "mapped over; call the op once for each"
                )
            merged.append(x)
        out = op(*merged)
        return out.unflatten(out_axis, (info.batch_size, out.shape[out_axis] // info.batch_size)), out_axis

    return rule


def mapped_at(axis: int, x: Tensor, dim: int | None, n: int) -> Tensor:
    """`x` with its mapped dimension `dim`, of length n, moved to `axis`; one not mapped is expanded."""
    return (
        x.unsqueeze(axis).expand(*x.shape[:axis], n, *x.shape[axis:]) if dim is None else x.movedim(dim, axis)
    )
