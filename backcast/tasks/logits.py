"""What is made of logits and the right answer, a row at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def margins(logits: Tensor, answers: Tensor) -> Tensor:
    """(n,) log p/(1 − p) of the right answer's probability p: its logit less the logsumexp of the others'.

    Args:
        logits: (n, C)
        answers: (n,) int64

    Source: Park et al. 2023, TRAK: attributing model behavior at scale, section 3.
    """
    own = logits.gather(1, answers[:, None])
    others = logits.scatter(1, answers[:, None], -torch.inf)
    return own[:, 0] - others.logsumexp(1)


def error_norms(logits: Tensor, answers: Tensor) -> Tensor:
    """(n,) ‖p − y‖₂ of the probabilities p and the one-hot answer y; arguments as for `margins`.

    Source: Paul et al. 2021, Deep learning on a data diet, section 2 (EL2N).
    """
    p = logits.softmax(1)
    own = p.gather(1, answers[:, None])
    return (p.scatter(1, answers[:, None], own - 1)).norm(dim=1)


def drawn(logits: Tensor, generator: torch.Generator) -> Tensor:
    """(n,) int64 answers drawn from softmax(logits) (n, V); the generator lies where the logits do."""
    return torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
