"""How a module's parameters become per-example gradients: from its input, and from the gradient of its output.

A `Part` is one tracked parameter of one module, or all the parameters of a small module together. A new type of
module is one part here, and a line in `parts_of`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from backcast.attribution.gradients.experts import ExpertLinear
from backcast.attribution.gradients.operators import Operators
from backcast.errors import InputError
from backcast.kernels import LayerSketch
from backcast.kernels.precision import no_autocast, wide, wide_dtype
from backcast.tasks import is_conv1d
from backcast.tasks.owners import Owners

M = TypeVar("M", bound=nn.Module)

#: The most numbers of a module of its own kind whose per-example gradients are formed whole.
SMALL = 2**18


class Part(ABC):
    """What the calls of a module add to each example's sketch through some of its parameters.

    Args:
        name: what the sketch's random signs depend on; `GradientCapture` gives parts of one parameter one name.
        parameters: the parameters whose gradient this is.
    """

    def __init__(self, name: str, parameters: Sequence[Tensor]) -> None:
        self.name = name
        self.parameters = list(parameters)

    @property
    def shape(self) -> list[int]:
        """Of the gradient: the parameter's, or the length of several small ones in a row."""
        if len(self.parameters) == 1:
            return list(self.parameters[0].shape)
        return [sum(p.numel() for p in self.parameters)]

    @abstractmethod
    def bind(self, operators: Operators, device: torch.device) -> None:
        """Make the operator."""

    @abstractmethod
    def keep(self, *arguments: Any) -> tuple[Tensor, ...]:
        """What the backward will need of the module's arguments."""

    @abstractmethod
    def sketch(self, kept: tuple[Tensor, ...], D: Tensor, B: int, owners: Owners | None = None) -> Tensor:
        """(B, k) sketches, from what `keep` gave and the gradient D of the module's output.

        ``owners`` say whose the module's rows are, where row b is not example b's.
        """


class LinearPart(Part):
    """A weight that multiplies rows: G_b = D_bᵀ X_b with X (B, T, I) and D (B, T, O)."""

    layer: LayerSketch

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__(name, [module.get_parameter("weight")])

    def sizes(self) -> tuple[int, int]:
        """(O, I)"""
        return self.shape[0], torch.Size(self.shape[1:]).numel()

    def bind(self, operators: Operators, device: torch.device) -> None:
        self.layer = operators.matrix(self.name, *self.sizes(), device)

    def keep(self, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
        return (self.layer.keep(_rows(x.detach())),)

    def sketch(self, kept: tuple[Tensor, ...], D: Tensor, B: int, owners: Owners | None = None) -> Tensor:
        X, D = (_by_example(rows, B, self.name, owners) for rows in (kept[0], _rows(D)))
        return self.layer.sketch(X, D)


class Conv1DPart(LinearPart):
    """GPT-2's Conv1D: a linear layer whose weight lies transposed, (I, O)."""

    def sizes(self) -> tuple[int, int]:
        return self.shape[1], self.shape[0]


class Conv2dPart(LinearPart):
    """A convolution multiplies the rows of its unfolded image."""

    def __init__(self, name: str, module: nn.Conv2d) -> None:
        super().__init__(name, module)
        self.module = module

    def keep(self, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
        conv, x = self.module, x.detach()
        if isinstance(conv.padding, str):
            x = F.pad(x, conv._reversed_padding_repeated_twice)
        padding = 0 if isinstance(conv.padding, str) else conv.padding
        return (self.layer.keep(F.unfold(x, conv.kernel_size, conv.dilation, padding, conv.stride).mT),)

    def sketch(self, kept: tuple[Tensor, ...], D: Tensor, B: int, owners: Owners | None = None) -> Tensor:
        return super().sketch(kept, D.flatten(2).mT, B, owners)


class ExpertPart(LinearPart):
    """One expert's weight, with the rows of the tokens that were sent to it."""

    def keep(self, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
        tokens, count = others
        return self.layer.keep(x.detach()[None]), tokens, torch.tensor(count)

    def sketch(self, kept: tuple[Tensor, ...], D: Tensor, B: int, owners: Owners | None = None) -> Tensor:
        rows, tokens, count = kept
        X, D = (_by_token(x, tokens, int(count), B, self.name, owners) for x in (rows[0], D))
        return self.layer.sketch(X, D)


class EmbeddingPart(Part):
    """A table of which an example uses a few rows.

    Where the table is also the weight of a tracked linear layer, that layer's operator must be used, or the two
    gradients would not add up: the rows used are then a product with one-hot vectors.
    """

    layer: LayerSketch

    def __init__(self, name: str, module: nn.Embedding, tied: bool) -> None:
        super().__init__(name, [module.weight])
        self.tied, self.padding = tied, module.padding_idx

    def bind(self, operators: Operators, device: torch.device) -> None:
        make = operators.matrix if self.tied else operators.table
        rows, width = self.shape
        self.layer = make(self.name, rows, width, device)

    def keep(self, ids: Tensor, *others: Any) -> tuple[Tensor, ...]:
        return (ids,)

    def sketch(self, kept: tuple[Tensor, ...], D: Tensor, B: int, owners: Owners | None = None) -> Tensor:
        ids = _by_example(kept[0].reshape(len(kept[0]), -1, 1), B, self.name, owners)[..., 0]
        D = _by_example(_rows(D), B, self.name, owners)
        if self.padding is not None:  # its row is never learnt
            D = D.masked_fill((ids == self.padding)[..., None], 0)
        if self.tied:
            return self.layer.sketch(self.layer.keep(D), F.one_hot(ids, self.shape[0]).to(D.dtype))
        return self.layer.sketch(ids, D)


class VectorPart(Part):
    """Small gradients, formed whole."""

    def bind(self, operators: Operators, device: torch.device) -> None:
        self.project = operators.vector(self.name, device)

    def sketch(self, kept: tuple[Tensor, ...], D: Tensor, B: int, owners: Owners | None = None) -> Tensor:
        return self.project(self.gradients(kept, D, B, owners))

    @abstractmethod
    def gradients(self, kept: tuple[Tensor, ...], D: Tensor, B: int, owners: Owners | None) -> Tensor:
        """(B, n) exact per-example gradients."""


class BiasPart(VectorPart):
    """The bias of a linear layer or a convolution: the sum of D over the positions."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__(f"{name}.bias", [module.get_parameter("bias")])
        self.channels_first = isinstance(module, nn.Conv2d)

    def keep(self, *arguments: Any) -> tuple[Tensor, ...]:
        return ()

    def gradients(self, kept: tuple[Tensor, ...], D: Tensor, B: int, owners: Owners | None) -> Tensor:
        D = D.flatten(2).mT if self.channels_first else _rows(D)
        return _by_example(D, B, self.name, owners).sum(1, dtype=wide_dtype(D))


class ExpertBiasPart(BiasPart):
    """The bias of one expert."""

    def keep(self, *arguments: Any) -> tuple[Tensor, ...]:
        _, tokens, count = arguments
        return tokens, torch.tensor(count)

    def gradients(self, kept: tuple[Tensor, ...], D: Tensor, B: int, owners: Owners | None) -> Tensor:
        tokens, count = kept
        return wide(_by_token(D, tokens, int(count), B, self.name, owners)).sum(1)


class SmallPart(VectorPart):
    """A module of its own kind with few parameters, such as a norm: differentiated again, an example at a time.

    That is done in float32 (float64) throughout, whatever the precision of the forward.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.module = module
        super().__init__(name, list(module.parameters()))

    def keep(self, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
        if others:
            raise InputError(
                f"layer {self.name}: a {type(self.module).__name__} of several inputs cannot be tracked; "
                "leave it out in Task.modules"
            )
        return (x.detach(),)

    def gradients(self, kept: tuple[Tensor, ...], D: Tensor, B: int, owners: Owners | None) -> Tensor:
        (x,) = kept
        if owners is not None:
            x, D = (_gathered(v, owners, B, self.name) for v in (x, D))
        else:
            x, D = (v.unflatten(0, (B, len(v) // B)) if len(v) % B == 0 else v for v in (x, D))
            _check_rows(x, B, self.name)
        buffers = {name: _wide(value) for name, value in self.module.named_buffers()}
        owned = {name: _wide(value) for name, value in self.module.named_parameters()}

        def one(x: Tensor, D: Tensor) -> Tensor:
            pull: Any = vjp(lambda p: functional_call(self.module, buffers | p, (x,)), owned)[1]
            return torch.cat([g.flatten() for g in pull(D)[0].values()])

        with no_autocast(D):
            return vmap(one)(_wide(x), _wide(D))


def parts_of(name: str, module: nn.Module, biases: bool, tied: bool) -> list[Part]:
    """The parts of a module; none where its per-example gradients cannot be formed.

    Args:
        name: the module's.
        module: any.
        biases: whether the biases of matrix layers count.
        tied: whether the module's weight is that of another type of module too.
    """
    matrix = _matrix_part(module)
    if matrix is not None:
        weight: Part = matrix(name, module)
        has_bias = biases and isinstance(getattr(module, "bias", None), nn.Parameter)
        bias = ExpertBiasPart if matrix is ExpertPart else BiasPart
        return [weight, bias(name, module)] if has_bias else [weight]
    if _is_plain(module, nn.Embedding):
        return [] if module.scale_grad_by_freq else [EmbeddingPart(name, module, tied)]
    own = list(module.parameters())
    if own and not list(module.children()) and sum(p.numel() for p in own) <= SMALL:
        return [SmallPart(name, module)]
    return []


def _matrix_part(module: nn.Module) -> type[LinearPart] | None:
    if isinstance(module, ExpertLinear):
        return ExpertPart
    if _is_plain(module, nn.Linear):
        return LinearPart
    if _is_plain(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros":
        return Conv2dPart
    return Conv1DPart if is_conv1d(module) else None


def _is_plain(module: nn.Module, kind: type[M]) -> TypeGuard[M]:
    """Whether it computes what PyTorch's `kind` does: a subclass may scale, a parametrized weight is no parameter."""
    return (
        isinstance(module, kind)
        and type(module).forward is kind.forward
        and isinstance(module.weight, nn.Parameter)
    )


def _wide(x: Tensor) -> Tensor:
    return wide(x) if x.is_floating_point() else x


def _rows(x: Tensor) -> Tensor:
    """(B, T, C) of x (B, ..., C), with T = 1 for x (B, C)."""
    return x.flatten(1, -2) if x.dim() > 2 else x.unsqueeze(1)


def _by_example(rows: Tensor, B: int, name: str, owners: Owners | None) -> Tensor:
    """Rows (B, T, C); (B T, 1, C) too, what a model makes that puts all its tokens into one axis, in order.

    With owners, of rows (R, T, C) each example's, one after the other, and zeros after its last.
    """
    if owners is not None:
        return _gathered(rows, owners, B, name).flatten(1, 2)
    if rows.shape[1] == 1 and len(rows) % B == 0:
        rows = rows.view(B, -1, rows.shape[2])
    _check_rows(rows, B, name)
    return rows


def _gathered(rows: Tensor, owners: Owners, B: int, name: str) -> Tensor:
    if owners.examples != B:
        raise InputError(
            f"layer {name}: whose its {len(rows)} rows are was not said for this batch of {B} examples; take the "
            "losses from the task, or leave it out in Task.modules"
        )
    try:
        return owners.gather(rows)
    except ValueError:
        raise _mixed_rows(len(rows), B, name) from None


def _by_token(rows: Tensor, tokens: Tensor, count: int, B: int, name: str, owners: Owners | None) -> Tensor:
    """(B, T, C) of the rows (n, C) of some of a batch's tokens, zeros where an example has fewer than T."""
    if count % B or owners is not None:
        raise _mixed_rows(count, B, name)
    example = tokens // (count // B)  # in order, so an example's tokens are a run
    first = torch.searchsorted(example, torch.arange(B, device=rows.device))
    place = torch.arange(len(tokens), device=rows.device) - first[example]
    return rows.new_zeros(B, int(place.max()) + 1, rows.shape[1]).index_put_((example, place), rows)


def _check_rows(rows: Tensor, B: int, name: str) -> None:
    if len(rows) != B:
        raise _mixed_rows(len(rows), B, name)


def _mixed_rows(count: int, B: int, name: str) -> InputError:
    return InputError(
        f"layer {name} sees {count} rows for {B} examples, so their gradients cannot be told apart; "
        "leave it out in Task.modules"
    )
