"""Estimators: a `Problem` → (n, g) scores. A new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from backcast.attribution.estimators.blocks import Blocks
from backcast.attribution.estimators.bm25 import bm25
from backcast.attribution.estimators.datainf import datainf
from backcast.attribution.estimators.ekfac import ekfac
from backcast.attribution.estimators.el2n import el2n
from backcast.attribution.estimators.embedding import embedding
from backcast.attribution.estimators.grad_cos import grad_cos
from backcast.attribution.estimators.grad_dot import grad_dot
from backcast.attribution.estimators.grad_norm import grad_norm
from backcast.attribution.estimators.influence import influence
from backcast.attribution.estimators.less import less
from backcast.attribution.estimators.loss import loss
from backcast.attribution.estimators.perplexity import perplexity
from backcast.attribution.estimators.random import random
from backcast.attribution.estimators.replay import replay
from backcast.attribution.estimators.shapley import shapley
from backcast.attribution.estimators.source import source
from backcast.attribution.estimators.tracin import tracin
from backcast.attribution.estimators.trak import trak

#: name → estimator(problem, **params) → (n, g): the score of every training example for every target group.
ESTIMATORS: dict[str, Callable[..., np.ndarray | Blocks]] = {
    "grad_dot": grad_dot,
    "grad_cos": grad_cos,
    "replay": replay,
    "shapley": shapley,
    "tracin": tracin,
    "less": less,
    "trak": trak,
    "influence": influence,
    "datainf": datainf,
    "ekfac": ekfac,
    "source": source,
    "bm25": bm25,
    "el2n": el2n,
    "embedding": embedding,
    "grad_norm": grad_norm,
    "loss": loss,
    "perplexity": perplexity,
    "random": random,
}
