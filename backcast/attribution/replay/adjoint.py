"""The derivative of a run's end by its examples' weights, exactly, by going back through the run.

With θ_{t+1}, s_{t+1} = U(θ_t, s_t, g_t) and g_t = Σ_i scale Σ_r w_r ∇ℓ_r(θ_t), the adjoints λ_t = ∂L/∂(θ_t, s_t) of
functions L of θ_T follow from λ_{t+1} by the optimizer's pullback, which also gives a = ∂L/∂g_t; then

    λ_t^θ += H_t a   with H_t = ∂g_t/∂θ,        ∂L/∂w_r += scale ⟨∇ℓ_r(θ_t), a⟩.

Both come from one backward through g_t's own graph, for all functions L at once. (Maclaurin et al. 2015, Gradient-based
hyperparameter optimization through reversible learning; as data attribution Ilyas & Engstrom 2025, MAGIC, arXiv
2504.16430.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from backcast.attribution.replay.optimizers import clip, clip_pullback
from backcast.attribution.replay.schedule import backwards
from backcast.attribution.replay.trajectory import State, Trajectory, flat
from backcast.progress import progress
from backcast.tasks.twice import twice_differentiable

#: Bytes of kept states, where that is more than log₂ of the steps' number of them.
MEMORY = 2**30
#: Functions in one backward through a gradient: more would only leave the caches.
TOGETHER = 8


def example_derivatives(
    trajectory: Trajectory, ends: Callable[[State], Tensor], memory: int = MEMORY
) -> Tensor:
    """(n, m) float64 ∂L_j/∂w_r of every example's weight, at the recorded run's weights of one.

    Costs, for each step, one backward of m functions through a gradient, and as many forward runs as the memory asks
    for (see `backwards`).

    Args:
        trajectory: the run, its model borrowed.
        ends: the gradients (m, N) of the m functions by θ at the final state.
        memory: bytes of states to keep; never fewer than log₂ of the number of steps are kept.
    """
    run, steps = trajectory, len(trajectory.steps)
    start = run.start()
    kept = max(math.ceil(math.log2(steps + 1)) + 1, memory // max(start.nbytes(), 1))
    adjoint: _Adjoint | None = None
    with progress(f"replay of {steps} steps", steps) as done, twice_differentiable():
        for t, state in backwards(start, steps, kept, run.advance):
            if adjoint is None:
                adjoint = _Adjoint(run, ends(run.advance(state, t)))
            adjoint.back(state, t)
            done(1)
    assert adjoint is not None  # a recording has steps
    return adjoint.derivatives


class _Adjoint:
    """λ after the step that comes next, going backwards, and the derivatives summed so far."""

    def __init__(self, run: Trajectory, ends: Tensor) -> None:
        self.run = run
        self.theta = ends
        self.slots = tuple(torch.zeros_like(ends) for _ in run.rules[0].slots)
        self.derivatives = torch.zeros(len(run.examples), len(ends), dtype=torch.float64)

    def back(self, state: State, t: int) -> None:
        batches = self.run.steps[t].batches
        self.run.load(state)
        held = list(self._gradients(t)) if len(batches) == 1 else None  # of several one at a time, twice
        g = torch.stack([graph.detach() for graph, _ in held or self._gradients(t)]).sum(0)
        a = self._through_update(state, t, g)
        for (graph, w), rows in zip(held or self._gradients(t), batches, strict=True):
            by_theta, by_weight = _products(graph, self.run, w, a)
            self.theta += by_theta
            self.derivatives.index_add_(0, torch.tensor(rows), by_weight.T.cpu().double())

    def _gradients(self, t: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Each micro-batch's share of g_t (N,) with its graph, and the weights (B,) in it."""
        for objective, w in self.run.objectives(t):
            gradients = torch.autograd.grad(
                objective, self.run.parameters, create_graph=True, materialize_grads=True
            )
            yield flat(gradients), w

    def _through_update(self, state: State, t: int, g: Tensor) -> Tensor:
        """a (m, N); λ becomes that before the step, without what goes through g."""
        run, most = self.run, self.run.recording.optimizer.max_grad_norm
        clipped = g if most is None else clip(g, most)
        a = torch.cat(
            [
                each.pullback(
                    self.theta[:, part],
                    tuple(slot[:, part] for slot in self.slots),
                    state.theta[part],
                    tuple(slot[part] for slot in state.slots),
                    clipped[part],
                    rate,
                    run.number(t),
                )
                for part, each, rate in run.by_group(t)
            ],
            dim=1,
        )
        return a if most is None else clip_pullback(a, g, most)


def _products(graph: Tensor, run: Trajectory, w: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """(m, N) H a and (m, B) scale ⟨∇ℓ_r, a⟩."""
    parts = []
    for some in a.split(TOGETHER):
        products = torch.autograd.grad(
            graph,
            [*run.parameters, w],
            grad_outputs=some,
            is_grads_batched=True,
            retain_graph=True,
            materialize_grads=True,
        )
        parts.append((torch.cat([p.reshape(len(some), -1) for p in products[:-1]], 1), products[-1]))
    by_theta, by_weight = zip(*parts, strict=True)
    return torch.cat(by_theta), torch.cat(by_weight)
