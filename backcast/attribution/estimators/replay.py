"""Exact differentiation through the recorded training run."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from backcast.attribution.collect import evaluation_mode
from backcast.attribution.problem import Problem
from backcast.attribution.replay import Trajectory, example_derivatives
from backcast.attribution.replay.adjoint import MEMORY
from backcast.attribution.replay.trajectory import State, flat
from backcast.errors import InputError
from backcast.tasks import on_device

#: How far, of its length, a replayed run may end from the model that is said to be its result.
FAR = 0.01
#: Targets whose losses are in one backward.
TARGETS = 64


def replay(problem: Problem, memory: int = MEMORY) -> np.ndarray:
    """score(x, z) = −∂ℓ(z; θ_T(w))/∂w_x at w = 1: how fast the target's loss falls as x weighs more.

    θ_T(w) is the end of the recorded run when the loss of each example x is multiplied by w_x: the optimizer's own
    steps on its own batches, nothing approximated; of leaving x out, −1 times the score is the first-order effect.

    Args:
        memory: bytes of the run's states to keep; with fewer, steps are run more often.

    Sources: see `backcast.attribution.replay.adjoint`.
    """
    model, task = problem.trained
    train, target = problem.examples
    trajectory = Trajectory(model, task, train, problem.recording)
    reached = flat(tuple(p.detach() for p in trajectory.parameters))

    def ends(state: State) -> Tensor:
        distance = float((state.theta - reached).norm() / reached.norm())
        if distance > FAR:
            raise InputError(
                f"{problem.recording.path}: run again it ends {distance:.1%} away from the model given; "
                "give the model as the recorded run left it, and the same task"
            )
        trajectory.load(state)
        with evaluation_mode(model):
            task.prepare(model)
            losses = torch.cat(
                [
                    task.loss(model, on_device(task.collate(target[i : i + TARGETS]), model))
                    for i in range(0, len(target), TARGETS)
                ]
            )
            means = torch.as_tensor(problem.member, device=losses.device, dtype=losses.dtype) @ losses
            gradients = [
                torch.autograd.grad(mean, trajectory.parameters, retain_graph=True, materialize_grads=True)
                for mean in means
            ]
        return torch.stack([flat(g) for g in gradients])

    with trajectory.borrowed():
        return -example_derivatives(trajectory, ends, memory).numpy()
