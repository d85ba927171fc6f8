"""Small models, tasks and stores for the tests of this folder, and the exact gradients they are held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from backcast.attribution import SketchStore
from backcast.attribution.store import Header
from backcast.data import Example, Examples
from backcast.kernels import SketchSpec, sketcher
from backcast.tasks import Batch, Task

CLASSES, INPUTS = 5, 12


class Classify(Task):
    """Cross-entropy of a model of vectors, images or sequences that gives (B, classes)."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        x = torch.stack([e.fields["x"] for e in examples])
        return {"x": x, "y": torch.tensor([e.fields["label"] for e in examples])}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


class Margin(Classify):
    """With TRAK's output: the logit of the right class's probability."""

    def output(self, model: nn.Module, batch: Batch) -> Tensor:
        p = torch.softmax(model(batch["x"]), dim=-1).gather(1, batch["y"][:, None])[:, 0]
        return torch.log(p) - torch.log1p(-p)


def examples(n: int, shape: Sequence[int] = (INPUTS,), seed: int = 0, dtype: Any = torch.float32) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(0, CLASSES, (n,), generator=generator).tolist()
    return Examples.from_fields(
        [{"text": f"{seed}/{i}", "label": y[i], "x": x[i], "source": "ab"[i % 2]} for i in range(n)]
    )


def mlp(hidden: int = 16, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(INPUTS, hidden), nn.Tanh(), nn.Linear(hidden, CLASSES))


def llama(vocabulary: int, width: int = 16, layers: int = 2) -> nn.Module:
    """A freshly initialised Llama; token 0 pads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width // 2,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def exact_gradients(
    model: nn.Module, task: Task, rows: Examples, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """(B, O, I...) gradients by weight: one example, one forward, one backward, nothing of ours between."""
    loop: dict[str, list[Tensor]] = {name: [] for name in weights}
    for b in range(len(rows)):
        loss = task.loss(model, task.collate(rows[b : b + 1]))[0]
        gradients = torch.autograd.grad(loss, list(weights.values()))
        for name, gradient in zip(weights, gradients, strict=True):
            loop[name].append(gradient)
    return {name: torch.stack(gradients) for name, gradients in loop.items()}


def sketch_of(gradients: Mapping[str, Tensor], spec: SketchSpec) -> Tensor:
    """(B, k): Σ_l S_l vec(G_l) of whole gradients, each written as the product IᵀG of a layer with T = O tokens."""
    total: Any = 0
    for name, gradient in gradients.items():
        G = gradient.flatten(2)
        outputs = torch.eye(G.shape[1], dtype=G.dtype).repeat(len(G), 1, 1)
        layer = sketcher(spec, name, G.shape[1], G.shape[2])
        total = total + layer.sketch(layer.keep(G), outputs)
    return total


def store_of(
    path: Path,
    checkpoints: Sequence[np.ndarray],
    rates: Sequence[float] | None = None,
    spec: SketchSpec | None = None,
    name: str = "row",
    slopes: Sequence[np.ndarray] | None = None,
    **header: Any,
) -> SketchStore:
    """A finished store of the given (n, k) sketches, a matrix a checkpoint; of outputs where (n,) slopes are given."""
    n, k = checkpoints[0].shape
    rates = rates or [1.0] * len(checkpoints)
    store = SketchStore.create(
        path,
        Header(
            spec=spec or SketchSpec("sjlt", k),
            layers={"layer": [k, 1]},
            rows=Examples.from_fields([{"text": f"{name} {i}"} for i in range(n)]).index,
            checkpoints=tuple(
                {"name": f"{c}", "learning_rate": rate, "sha256": f"{c}"} for c, rate in enumerate(rates)
            ),
            **({"origin": {"of": "output"}} if slopes else {}),
            **header,
        ),
    )
    for c, s in store.places():
        part = store.header.shards()[s]
        store.write(c, s, checkpoints[c][part], slopes[c][part] if slopes else None)
    return SketchStore.open(path)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder: path → bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def unit(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)
