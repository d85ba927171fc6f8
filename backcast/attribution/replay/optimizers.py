"""Optimizer steps as pure functions of flat vectors, as torch.optim computes them, and their transposed derivatives.

A step maps (θ, slots, g) to (θ', slots'), all of N numbers. Its pullback takes adjoints λ = ∂L/∂(θ', slots'), each
(m, N) for m functions L at once, to those of (θ, slots), with a = ∂L/∂g (m, N) beside them. Every map is diagonal, so
that a pullback is a few products of the adjoints with vectors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from backcast.errors import InputError


class Rule(ABC):
    """One parameter group's rule, with its settings.

    ``t`` is the number of the step, from 1.
    """

    #: The optimizer's names of its slots.
    slots: ClassVar[tuple[str, ...]]

    @abstractmethod
    def step(
        self, theta: Tensor, slots: tuple[Tensor, ...], g: Tensor, rate: float, t: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(θ', slots')"""

    @abstractmethod
    def pullback(
        self,
        adjoint: Tensor,
        adjoint_slots: tuple[Tensor, ...],
        theta: Tensor,
        slots: tuple[Tensor, ...],
        g: Tensor,
        rate: float,
        t: int,
    ) -> Tensor:
        """a (m, N); the adjoints of (θ', slots') are overwritten with those of (θ, slots), without what a adds to θ
        through g."""


class Adam(Rule):
    """Kingma & Ba 2015, and with decoupled weight decay Loshchilov & Hutter 2019 (AdamW).

    m' = β₁ m + (1 − β₁) g,  v' = β₂ v + (1 − β₂) g²,  θ' = (1 − η w) θ − η m̂ / (√v̂ + ε) with m̂ = m'/(1 − β₁ᵗ) and
    v̂ = v'/(1 − β₂ᵗ). Without decoupling g is g + w θ instead. Where v' is zero the parameter has had no gradient yet,
    and the derivative of its square root, which would be infinite, is taken as zero.
    """

    slots = ("exp_avg", "exp_avg_sq")

    def __init__(self, settings: Mapping[str, Any], decoupled: bool) -> None:
        self.beta1, self.beta2 = settings["betas"]
        self.eps, self.decay, self.decoupled = settings["eps"], settings["weight_decay"], decoupled

    def step(
        self, theta: Tensor, slots: tuple[Tensor, ...], g: Tensor, rate: float, t: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        m, v = self._moments(theta, slots, g)
        kept = 1 - rate * self.decay if self.decoupled else 1.0
        theta = (theta * kept).addcdiv_(m, self._root(v, t).add_(self.eps), value=-rate / (1 - self.beta1**t))
        return theta, (m, v)

    def pullback(
        self,
        adjoint: Tensor,
        adjoint_slots: tuple[Tensor, ...],
        theta: Tensor,
        slots: tuple[Tensor, ...],
        g: Tensor,
        rate: float,
        t: int,
    ) -> Tensor:
        m, v = self._moments(theta, slots, g)
        root = self._root(v, t)
        by_m = (-rate / (1 - self.beta1**t)) / (root + self.eps)
        by_root = -by_m * m / (root + self.eps)
        by_v = torch.where(v > 0, by_root / (2 * root * (1 - self.beta2**t)), 0)
        of_m, of_v = adjoint_slots
        of_m.addcmul_(adjoint, by_m)
        of_v.addcmul_(adjoint, by_v)
        a = (of_v * (2 * (1 - self.beta2) * self._whole(theta, g))).add_(of_m, alpha=1 - self.beta1)
        of_m.mul_(self.beta1)
        of_v.mul_(self.beta2)
        if self.decoupled:
            adjoint.mul_(1 - rate * self.decay)
        else:
            adjoint.add_(a, alpha=self.decay)
        return a

    def _whole(self, theta: Tensor, g: Tensor) -> Tensor:
        return g if self.decoupled or not self.decay else g + self.decay * theta

    def _moments(self, theta: Tensor, slots: tuple[Tensor, ...], g: Tensor) -> tuple[Tensor, Tensor]:
        g = self._whole(theta, g)
        m, v = slots
        return torch.lerp(m, g, 1 - self.beta1), (v * self.beta2).addcmul_(g, g, value=1 - self.beta2)

    def _root(self, v: Tensor, t: int) -> Tensor:
        return v.sqrt().div_((1 - self.beta2**t) ** 0.5)


class SGD(Rule):
    """g' = g + w θ,  b' = μ b + (1 − τ) g' (b' = g' in the first step),  θ' = θ − η b'; with Nesterov − η (g' + μ b').

    Sources: Polyak 1964; Sutskever et al. 2013; the form is torch.optim.SGD's.
    """

    slots = ("momentum_buffer",)

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.momentum, self.decay = settings["momentum"], settings["weight_decay"]
        self.dampening, self.nesterov = settings["dampening"], settings["nesterov"]

    def step(
        self, theta: Tensor, slots: tuple[Tensor, ...], g: Tensor, rate: float, t: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        g = g + self.decay * theta if self.decay else g
        b = self.momentum * slots[0] + self._fresh(t) * g
        direction = g + self.momentum * b if self.nesterov else b
        return theta - rate * direction, (b,)

    def pullback(
        self,
        adjoint: Tensor,
        adjoint_slots: tuple[Tensor, ...],
        theta: Tensor,
        slots: tuple[Tensor, ...],
        g: Tensor,
        rate: float,
        t: int,
    ) -> Tensor:
        (of_b,) = adjoint_slots
        of_b.add_(adjoint, alpha=-rate * (self.momentum if self.nesterov else 1))
        a = self._fresh(t) * of_b
        if self.nesterov:
            a.add_(adjoint, alpha=-rate)
        of_b.mul_(self.momentum)
        adjoint.add_(a, alpha=self.decay)
        return a

    def _fresh(self, t: int) -> float:
        return 1.0 if t == 1 else 1 - self.dampening


def rule(kind: str, settings: Mapping[str, Any]) -> Rule:
    """The rule of a parameter group; raises `InputError` for an optimizer that cannot be replayed."""
    if kind == "sgd":
        return SGD(settings)
    if kind in ("adam", "adamw"):
        return Adam(settings, decoupled=kind == "adamw")
    raise InputError(f"optimizer {kind!r} cannot be replayed; train with SGD, Adam or AdamW")


def clip(g: Tensor, most: float) -> Tensor:
    """g scaled down to the norm ``most``, as torch.nn.utils.clip_grad_norm_ does."""
    return g * min(1.0, most / (float(g.norm()) + 1e-6))


def clip_pullback(a: Tensor, g: Tensor, most: float) -> Tensor:
    """a (m, N) by the unclipped g: c a + (dc/d‖g‖) ⟨a, g⟩ g/‖g‖ with c = most/(‖g‖ + 1e-6), where that is below 1."""
    norm = float(g.norm())
    c = most / (norm + 1e-6)
    if c >= 1:
        return a
    along = (a @ g) * (-most / (norm + 1e-6) ** 2 / norm)
    return torch.addcmul(c * a, along[:, None], g)
