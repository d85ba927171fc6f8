"""Second derivatives of a task's loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel

from backcast.tasks.head import whole_logits


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Make losses twice differentiable: fused attention on a CPU is not, nor is the frozen head's fused loss."""
    with sdpa_kernel(SDPBackend.MATH), whole_logits():
        yield
