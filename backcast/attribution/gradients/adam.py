"""What Adam would make of each example's gradient, sketched in the gradient's place.

Adam's direction is taken entry by entry and is not linear: of each weight the whole gradient must be formed, by one
use in a backward, before anything is added up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from backcast.attribution.gradients.capture import GradientCapture
from backcast.attribution.gradients.operators import SketchOperators
from backcast.attribution.gradients.parts import Conv1DPart, EmbeddingPart, LinearPart, Part
from backcast.attribution.optimizer_state import adam_state
from backcast.errors import InputError
from backcast.files import sha256
from backcast.kernels import LayerSketch, SketchSpec
from backcast.kernels.kron import KronSketch
from backcast.kernels.layer import MAX_GRADIENTS, FlatSketch, gradients
from backcast.kernels.precision import no_autocast
from backcast.kernels.tile import AdamDirection, TileSketch, tile_adam_sketch
from backcast.tasks.hashes import bytes_hash


@dataclass(frozen=True)
class Preconditioner:
    """Adam's next step at one weight: its direction, given the moments m and v, which lie as the gradient does."""

    m: Tensor
    v: Tensor
    direction: AdamDirection

    def __call__(self, g: Tensor) -> Tensor:
        """Γ(g) of gradients (B, ...)."""
        return self.direction(g, self.m.to(g.dtype), self.v.to(g.dtype))


#: Of a part by its name: what each of its parameters' gradients goes through.
Preconditioners = Mapping[str, Sequence[Preconditioner]]


def preconditioners(path: str | Path, model: nn.Module, parts: Iterable[Part]) -> Preconditioners:
    """For each tracked part the step that Adam would make next, on the model's device.

    Γ(g) = m'/(1 − β1ᵗ) / (√(v'/(1 − β2ᵗ)) + ε) with m' = β1 m + (1 − β1) g, v' = β2 v + (1 − β2) g² and t − 1 the
    steps made: a step on g alone moves the weight by −η Γ(g), besides its decay. (Xia et al. 2024, LESS, arXiv
    2402.04333, section 3.1; Kingma & Ba 2015, algorithm 1.)

    Args:
        path: of the optimizer's state, as `optimizer_state` reads it.
        model: as it is written, not `opened`: the states bear its parameters' names.
        parts: of the opened model or of the model itself.

    Raises:
        InputError: a state that cannot be read, or is missing; an embedding.
    """
    states, parameters = adam_state(path, model), dict(model.named_parameters())

    @cache
    def laid(name: str) -> tuple[Tensor, Tensor]:
        """The moments, in memory as their parameter is."""
        own, state = parameters[name], states[name]
        moments = (state.exp_avg, state.exp_avg_sq)
        return tuple(torch.empty_like(own, dtype=x.dtype).copy_(x) for x in moments)  # type: ignore[return-value]

    def of(weight: Tensor, part: Part) -> Preconditioner:
        name = _owner(weight, parameters)
        if name not in states:
            raise InputError(
                f"{path}: no Adam state of {name}, which is tracked; take the state of the run that trained it, or "
                "leave it out in Task.modules"
            )
        start = weight.storage_offset() - parameters[name].storage_offset()
        views = (x.as_strided(weight.shape, weight.stride(), start) for x in laid(name))
        m, v = (_as_gradient(x, part).contiguous() for x in views)
        state = states[name]
        return Preconditioner(m, v, AdamDirection.adam(*state.betas, state.eps, state.step + 1))

    return {part.name: [of(weight, part) for weight in part.parameters] for part in map(_allowed, parts)}


def preconditioners_hash(found: Preconditioners) -> str:
    """SHA-256 over the moments and the directions, by part."""
    return sha256(
        "\n".join(
            f"{name} {bytes_hash(one.m)} {bytes_hash(one.v)} {astuple(one.direction)}"
            for name, several in sorted(found.items())
            for one in several
        )
    )


def _allowed(part: Part) -> Part:
    if isinstance(part, EmbeddingPart):
        raise InputError(
            f"layer {part.name}: an embedding's Adam direction is as large as its table, as it moves the rows of all "
            "tokens; leave it, and a head that shares its weight, out in Task.modules"
        )
    return part


def _owner(weight: Tensor, parameters: Mapping[str, Tensor]) -> str:
    """The name of the parameter that a weight is, or is a view of: modules that are opened hold views."""
    for name, own in parameters.items():
        start = weight.storage_offset() - own.storage_offset()
        if (
            own.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
            and 0 <= start < own.numel()
        ):
            return name
    raise AssertionError("a tracked weight is none of the model's parameters")


def _as_gradient(moment: Tensor, part: Part) -> Tensor:
    """A moment as the part's gradient lies: (O, I) of a matrix, in a row of a small one."""
    if isinstance(part, Conv1DPart):
        return moment.T
    return moment.flatten(1) if isinstance(part, LinearPart) else moment.flatten()


class AdamCapture(GradientCapture):
    """A `GradientCapture` that sketches Γ of each example's gradient.

    A layer that the batch did not use has a gradient of zero and still moves, by its momentum.

    Args:
        model: the model that holds the modules.
        modules: the modules to track, by name.
        spec: the sketch; with `tile` gradient, direction and sketch are one kernel on a GPU.
        found: the preconditioners of the modules' parts.
        biases: whether the biases of linear layers and convolutions count.

    Raises (while it captures):
        InputError: a weight that is used several times.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        spec: SketchSpec,
        found: Preconditioners,
        biases: bool = False,
    ) -> None:
        self._operators = _AdamOperators(spec, found)
        super().__init__(model, modules, self._operators, biases)

    def expect(self, examples: int) -> None:
        super().expect(examples)
        self._operators.used.clear()

    def take(self) -> Tensor:
        total = super().take()
        for name, idle in self._operators.idle.items():
            if name not in self._operators.used:
                total.add_(idle())
        return total


class _AdamOperators:
    """Operators of the directions, which note what was used in a backward.

    Attributes:
        used: the names of the parts that were.
        idle: of each part the sketch (1, k) of its direction where the gradient is zero.
    """

    def __init__(self, spec: SketchSpec, found: Preconditioners) -> None:
        self.plain, self.found = SketchOperators(spec), found
        self.used: set[str] = set()
        self.idle: dict[str, Callable[[], Tensor]] = {}

    def matrix(self, name: str, outputs: int, inputs: int, device: torch.device) -> LayerSketch:
        (adam,) = self.found[name]
        layer = _AdamLayer(self.plain.matrix(name, outputs, inputs, device), adam, partial(self._use, name))
        X, D = (torch.zeros(1, 1, size, dtype=adam.m.dtype, device=device) for size in (inputs, outputs))
        self.idle[name] = cache(lambda: layer.directions(X, D))
        return layer

    def table(self, name: str, rows: int, width: int, device: torch.device) -> LayerSketch:
        raise NotImplementedError  # embeddings have no preconditioner

    def vector(self, name: str, device: torch.device) -> Callable[[Tensor], Tensor]:
        adam, plain = self.found[name], self.plain.vector(name, device)
        sizes = [one.m.numel() for one in adam]

        def directions(G: Tensor) -> Tensor:
            pieces = zip(adam, G.split(sizes, dim=1), strict=True)
            return plain(torch.cat([one(g) for one, g in pieces], dim=1))

        def used(G: Tensor) -> Tensor:
            self._use(name)
            return directions(G)

        self.idle[name] = cache(
            lambda: directions(torch.zeros(1, sum(sizes), dtype=adam[0].m.dtype, device=device))
        )
        return used

    def _use(self, name: str) -> None:
        if name in self.used:
            raise InputError(
                f"layer {name}: its weight is used several times, and Adam's direction is that of the sum of their "
                "gradients, which is never whole; leave it out in Task.modules"
            )
        self.used.add(name)


class _AdamLayer(LayerSketch):
    """The sketch of a matrix's direction, through the operator that sketches its plain gradient."""

    def __init__(self, plain: LayerSketch, adam: Preconditioner, use: Callable[[], None]) -> None:
        self.plain, self.adam, self.use = plain, adam, use
        self.at_once = max(
            1, MAX_GRADIENTS // (4 * adam.m.numel())
        )  # the direction is made of several as large

    def keep(self, X: Tensor) -> Tensor:
        return X.detach()

    def sketch(self, kept: Tensor, D: Tensor) -> Tensor:
        self.use()
        return self.directions(kept, D)

    def directions(self, X: Tensor, D: Tensor) -> Tensor:
        """(B, k) of X (B, T, I) and D (B, T, O)."""
        if isinstance(self.plain, TileSketch):
            m, v, k, keys = self.adam.m, self.adam.v, self.plain.dim, [self.plain.key]
            return tile_adam_sketch(
                X[None], D[None], m[None], v[None], k, keys, *astuple(self.adam.direction)
            )[0]
        parts = zip(X.split(self.at_once), D.split(self.at_once), strict=True)
        return torch.cat([_project(self.plain, self.adam(gradients(X, D))) for X, D in parts])


def _project(plain: LayerSketch, G: Tensor) -> Tensor:
    """(B, k) sketches of whole gradients (B, O, I)."""
    if isinstance(plain, KronSketch):
        right = plain.keep(G)
        with no_autocast(G):
            return (plain.P_o.T.to(right.dtype) @ right).flatten(1) * plain.scale
    assert isinstance(plain, FlatSketch)
    return plain.project(G.flatten(1))
