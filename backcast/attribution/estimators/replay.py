"""Exact differentiation through the recorded training run."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from backcast.attribution.collect import evaluation_mode, uncompiled
from backcast.attribution.problem import Problem
from backcast.attribution.replay import Trajectory, example_derivatives
from backcast.attribution.replay.adjoint import MEMORY
from backcast.attribution.replay.trajectory import State, flat
from backcast.errors import InputError
from backcast.tasks import on_device
from backcast.tasks.hashes import weights_hash

#: How far, of the way that the run went, its replay may end from the recorded run's end.
FAR = 0.05
#: Targets whose losses are in one backward.
TARGETS = 64


def replay(problem: Problem, memory: int = MEMORY) -> np.ndarray:
    """score(x, z) = −∂ℓ(z; θ_T(w))/∂w_x at w = 1: how fast the target's loss falls as x weighs more.

    θ_T(w) is the end of the recorded run when the loss of each example x is multiplied by w_x: the optimizer's own
    steps on its own batches, nothing approximated; leaving x out raises ℓ(z) by the score, to first order.

    Args:
        memory: bytes of the run's states to keep; with fewer, steps are run more often.

    Sources: see `backcast.attribution.replay.adjoint`.
    """
    model, task = problem.trained
    train, target = problem.examples
    recording = problem.recording
    trajectory = Trajectory(model, task, train, recording)
    if recording.end not in (None, weights_hash(model)):
        raise InputError(
            f"{recording.path}: the model given is not the one that the run ended with; give that"
        )
    reached = flat(tuple(p.detach() for p in trajectory.parameters))

    def ends(state: State) -> Tensor:
        way = reached - trajectory.start().theta
        distance = float((state.theta - reached).norm() / way.norm())
        if not distance <= FAR:
            raise InputError(
                f"{recording.path}: run again it ends {distance:.0%} of its way from where it ended; "
                "replay it on the machine and with the number of threads that recorded it"
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

    with uncompiled(model), trajectory.borrowed():
        return -example_derivatives(trajectory, ends, memory).numpy()
