"""TRAK's projector without a CUDA build: `dense` behind ``trak.projectors.AbstractProjector``."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from trak.projectors import AbstractProjector
from trak.utils import vectorize

from backcast.errors import InputError
from backcast.kernels.dense import dense_jl
from backcast.kernels.random import key
from backcast.kernels.spec import SketchSpec


class TrakProjector(AbstractProjector):
    """For ``trak.TRAKer(..., projector=TrakProjector(...))`` on CPU and GPU.

    Every model_id has its own projection, which depends on (seed, model_id) alone. As with TRAK's own
    projectors its entries are ±1, √proj_dim times those of `dense_jl`, so traker's ``lambda_reg`` weighs the
    same with either.

    Args:
        grad_dim: the number of parameters, N.
        proj_dim: the projection's length, k.
        seed: of every sign.
        proj_type: "rademacher", the one there is.
        device: where the gradients are; a string, as traker compares it with "cpu".

    Raises:
        InputError: for any other proj_type.
    """

    def __init__(
        self, grad_dim: int, proj_dim: int, seed: int = 0, proj_type: str = "rademacher", device: str = "cpu"
    ) -> None:
        if proj_type != "rademacher":
            raise InputError(f"TrakProjector has no proj_type {proj_type!r}; leave it at 'rademacher'")
        super().__init__(grad_dim, proj_dim, seed, proj_type, device)

    def project(self, grads: Tensor | Mapping[str, Tensor], model_id: int) -> Tensor:
        """(B, proj_dim) float32 from flat gradients (B, grad_dim), or from a (B, ...) tensor a parameter.

        Raises:
            InputError: where the gradients have not grad_dim numbers an example.
        """
        flat = grads if isinstance(grads, Tensor) else vectorize(grads, device=self.device)
        if flat.shape[1] != self.grad_dim:
            raise InputError(
                f"gradients of {flat.shape[1]} numbers; TrakProjector was made with grad_dim={self.grad_dim}"
            )
        spec = SketchSpec("dense", self.proj_dim, self.seed)
        signs = key(spec, f"trak/{model_id}", "dense")
        return dense_jl(flat.detach(), self.proj_dim, signs) * self.proj_dim**0.5
