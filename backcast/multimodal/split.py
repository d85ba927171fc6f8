"""How much of a training example's score comes from its image, and how much from its text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

from backcast.attribution import Checkpoint, SketchStore
from backcast.attribution.collect import evaluation_mode, tracked_weights, visiting
from backcast.attribution.gradients.opened import opened
from backcast.data import Examples
from backcast.errors import InputError
from backcast.progress import progress
from backcast.tasks import Batch, on_device
from backcast.tasks.hashes import weights_hash

#: Half the distance, in weight space, between the two losses of the central difference.
EPSILON = 1e-3
#: Rows in one forward of the integral.
AT_ONCE = 256


@runtime_checkable
class MultimodalTask(Protocol):
    """What a task adds to `backcast.tasks.Task` so that its scores can be split."""

    def embeddings(self, model: nn.Module) -> dict[str, nn.Module]:
        """modality → the module whose output (B, ...) is integrated over."""

    def baselines(self, model: nn.Module, batch: Batch, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """modality → embeddings of the same shape that stand for its absence."""

    def maps(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """modality → attributions (B, ...) summed over the embedding dimension, e.g. (B, h, w) and (B, L)."""

    def words(self, caption: str) -> list[str]:
        """A text's tokens as strings, for a text map's entries from the second on."""


@dataclass(frozen=True)
class Split:
    """Scores of r examples, split between modalities; everything in the score's own unit and sign.

    Attributes:
        ids: the examples' content ids.
        score: (r,) s(x).
        baseline: (r,) s(b), the score of the example without content.
        parts: modality → (r,), with Σ parts = s(x) − s(b) up to ``gap``.
        gap: (r,) |Σ parts − (s(x) − s(b))| / |s(x) − s(b)|, Captum's convergence delta made relative.
        maps: modality → (r, ...), the parts by patch and by token.
    """

    ids: tuple[str, ...]
    score: np.ndarray
    baseline: np.ndarray
    parts: dict[str, np.ndarray]
    gap: np.ndarray
    maps: dict[str, np.ndarray]

    def flagged(self, tolerance: float = 0.01) -> np.ndarray:
        """(r,) bool: rows whose parts do not add up, and should not be read."""
        return ~(self.gap <= tolerance)

    def shares(self) -> dict[str, np.ndarray]:
        """modality → (r,) |part| / Σ |parts|: magnitudes without signs, zero where nothing contributes."""
        total = sum(np.abs(part) for part in self.parts.values())
        return {
            m: np.divide(np.abs(p), total, out=np.zeros_like(p), where=total > 0)
            for m, p in self.parts.items()
        }


def split(
    model: nn.Module,
    task: Any,
    examples: Examples,
    wanted: Examples,
    *,
    train: SketchStore,
    target: SketchStore,
    checkpoints: Sequence[Checkpoint] | None = None,
    groups: Sequence[str] | None = None,
    towards: Sequence[str] | None = None,
    cosine: bool = True,
    tolerance: float = 0.01,
    max_steps: int = 512,
) -> Split:
    """Split the TracIn score of each example between its modalities by integrated gradients.

    The score is a scalar function of the example's embeddings e,

        s(e) = Σ_c η_c ⟨w_c, ∇_θ ℓ(e; θ_c)⟩ / ‖ĝ_c(x)‖,

    over the tracked weights, where w_c is what `attribute` compares with: the mean of the targets' unit gradients, or
    the unit mean gradient of a group. The norms are frozen at the stored sketches', so that s(x) is the stored score
    but for the sketch's noise; without ``cosine`` there are none. The inner product is the central difference
    [ℓ(θ + εu) − ℓ(θ − εu)] ‖w‖ / 2ε along u = w/‖w‖, which
    needs first derivatives only; as integrated gradients are linear, each of the two losses is integrated by itself.
    The integral runs from the task's baseline to e; its steps double until the parts add up.

    Args:
        model: as for `collect`; its weights are put back.
        task: a `Task` that is a `MultimodalTask`.
        examples: the r examples to split: a shortlist of ``train``'s.
        wanted: the target examples, in ``target``'s order.
        train, target: the stores that the scores were computed from.
        checkpoints: the weights that the stores visited; None for the model's own.
        groups: a name for each target, as given to `attribute`.
        towards: for each example, the group whose score is split; without, the mean over all groups or targets.
        cosine: as given to `attribute`.
        tolerance: the largest relative gap that stops the doubling.
        max_steps: of the integral.

    Raises:
        InputError: an example that ``train`` does not hold, targets that are not ``target``'s, weights or a task other
            than the stores', an unknown group.

    Sources: Sundararajan et al. 2017, Axiomatic attribution for deep networks, equation 1; Captum's implementation.
    """
    _check(task, examples, wanted, train, target, groups, towards)
    place = {identity: row for row, identity in enumerate(train.rows.ids)}
    rows = np.array([place[identity] for identity in examples.index.ids])
    total: dict[str, Any] = {}
    with (
        evaluation_mode(model),
        progress("split by modality", len(train.checkpoints) * len(examples)) as done,
    ):
        for c, described in enumerate(train.checkpoints):
            rates = described["learning_rate"] * _scales(train.sketches(c)[rows], cosine)
            with visiting(model, checkpoints[c] if checkpoints else None):
                if weights_hash(model) != described["sha256"]:
                    raise InputError(
                        f"{train.path}: was collected at other weights (checkpoint {c + 1}, {described['name']}); "
                        "give its own checkpoints"
                    )
                with opened(model):
                    task.prepare(model)
                    weights = tracked_weights(model, task)
                    directions = _directions(target.sketches(c), groups, towards, len(examples), cosine)
                    for amounts, chosen in directions:
                        line = _Line(model, task, weights, _direction(model, task, wanted, weights, amounts))
                        for block in np.array_split(chosen, -(-len(chosen) // 16)):
                            result = line.integrate(examples[block], tolerance, max_steps)
                            _accumulate(total, block, len(examples), rates[block], result)
                            done(len(block))
    change = total["score"] - total["baseline"]
    summed = sum(total["parts"].values())
    return Split(
        ids=examples.index.ids,
        gap=np.abs(summed - change) / np.maximum(np.abs(change), 1e-30),
        **total,
    )


def _check(
    task: Any,
    examples: Examples,
    wanted: Examples,
    train: SketchStore,
    target: SketchStore,
    groups: Sequence[str] | None,
    towards: Sequence[str] | None,
) -> None:
    if len(examples) == 0:
        raise InputError("nothing to split: there are no examples")
    if dict(task.settings()) != train.header.origin.get("settings"):
        raise InputError(
            f"{train.path}: was collected with another loss (its settings or its bank of negatives); "
            "split with the same task"
        )
    unknown = set(examples.index.ids) - set(train.rows.ids)
    if unknown:
        raise InputError(
            f"{train.path}: holds no sketch of example {sorted(unknown)[0]}; split examples of this store"
        )
    if wanted.index.ids != target.rows.ids:
        raise InputError(f"{target.path}: its rows are not the target examples; collect the target again")
    for names, rows, kind in ((groups, wanted, "targets"), (towards, examples, "examples")):
        if names is not None and len(names) != len(rows):
            raise InputError(f"{len(names)} group names for {len(rows)} {kind}; give one for each")
    if towards is not None and set(towards) - set(groups or ()):
        raise InputError(f"no target group is named {sorted(set(towards) - set(groups or ()))[0]!r}")


def _directions(
    target: np.ndarray,
    groups: Sequence[str] | None,
    towards: Sequence[str] | None,
    examples: int,
    cosine: bool,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(each target's amount in the direction, the examples to split along it), a pair for each direction.

    ``target`` are the m targets' (m, k) sketches.
    """
    everyone = np.arange(examples)
    if groups is None:
        return [(_scales(target, cosine) / len(target), everyone)]
    by_group = {}
    for name in dict.fromkeys(groups):
        member = np.array([group == name for group in groups], dtype=np.float64)
        member /= member.sum()
        by_group[name] = member * _scales(member @ target, cosine)
    if towards is None:
        return [(np.mean(list(by_group.values()), axis=0), everyone)]
    return [(by_group[n], everyone[[t == n for t in towards]]) for n in dict.fromkeys(towards)]


def _scales(gradients: np.ndarray, cosine: bool) -> np.ndarray:
    """What a score multiplies each of the (..., k) gradients by: 1/‖g‖, 0 where there is none, or 1."""
    norms = np.linalg.norm(gradients.astype(np.float64), axis=-1) if cosine else np.ones(gradients.shape[:-1])
    return np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)


def _direction(
    model: nn.Module, task: Any, wanted: Examples, weights: list[Tensor], amounts: np.ndarray
) -> list[Tensor]:
    """Σ_t amounts_t ∇ℓ_t over the tracked weights."""
    kept = np.flatnonzero(amounts)
    direction = [torch.zeros_like(weight) for weight in weights]
    with _requiring_grad(weights):
        for first in range(0, len(kept), 64):
            block = kept[first : first + 64]
            losses = task.loss(model, on_device(task.collate(wanted[block]), model))
            scale = torch.from_numpy(amounts[block]).to(losses)
            gradients = torch.autograd.grad((losses * scale).sum(), weights, allow_unused=True)
            for d, g in zip(direction, gradients, strict=True):
                if g is not None:
                    d += g
    return direction


class _Line:
    """s along one direction w of weight space at one checkpoint, and its integrated gradients."""

    def __init__(self, model: nn.Module, task: Any, weights: list[Tensor], w: list[Tensor]) -> None:
        self.model, self.task, self.weights = model, task, weights
        self.length = math.sqrt(sum(d.double().square().sum().item() for d in w))
        self.unit = [d / max(self.length, 1e-30) for d in w]

    def integrate(self, examples: Examples, tolerance: float, max_steps: int) -> dict[str, Any]:
        """score, baseline, parts and maps of ``examples``, with as many steps as the worst of them needs."""
        steps = 32
        while True:
            result = self._integrate(examples, steps)
            change = result["score"] - result["baseline"]
            gap = np.abs(sum(result["parts"].values()) - change) / np.maximum(np.abs(change), 1e-30)
            # Half the tolerance: a checkpoint's gaps may add up with another's.
            if steps >= max_steps or (gap <= tolerance / 2).all():
                return result
            steps *= 2

    def _integrate(self, examples: Examples, steps: int) -> dict[str, Any]:
        batch = on_device(self.task.collate(examples), self.model)
        modules = self.task.embeddings(self.model)
        values = self._embed(batch, modules)
        baselines = self.task.baselines(self.model, batch, values)
        result: dict[str, Any] = {"score": 0.0, "baseline": 0.0, "parts": {}, "maps": {}}
        for sign in (1, -1):
            with self._shifted(sign):
                amount = sign * self.length / (2 * EPSILON)
                for modality, attribution in self._attributions(
                    batch, modules, values, baselines, steps
                ).items():
                    _add(result["maps"], modality, amount * attribution.double().cpu().numpy())
                result["score"] += amount * self._losses(batch, modules, values)
                result["baseline"] += amount * self._losses(batch, modules, baselines)
        attributions = {m: torch.from_numpy(a) for m, a in result["maps"].items()}
        result["parts"] = {m: a.flatten(1).sum(1).numpy() for m, a in attributions.items()}
        result["maps"] = {m: a.numpy() for m, a in self.task.maps(attributions).items()}
        return result

    def _attributions(
        self,
        batch: Batch,
        modules: Mapping[str, nn.Module],
        values: Mapping[str, Tensor],
        baselines: Mapping[str, Tensor],
        steps: int,
    ) -> dict[str, Tensor]:
        def loss(*inputs: Tensor) -> Tensor:
            *embeddings, rows = inputs
            with _substituted({modules[m]: e for m, e in zip(values, embeddings, strict=True)}):
                return self.task.loss(self.model, _take(batch, rows))

        rows = torch.arange(len(next(iter(values.values()))))
        attributions = IntegratedGradients(loss).attribute(
            tuple(values.values()),
            tuple(baselines[m] for m in values),
            additional_forward_args=(rows,),
            n_steps=steps,
            internal_batch_size=AT_ONCE,
        )
        return dict(zip(values, attributions, strict=True))

    @torch.no_grad()
    def _embed(self, batch: Batch, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for modality, module in modules.items():

                def keep(_: nn.Module, __: Any, output: Tensor, modality: str = modality) -> None:
                    seen[modality] = output.detach()

                stack.callback(module.register_forward_hook(keep).remove)
            self.task.loss(self.model, batch)
        return seen

    @torch.no_grad()
    def _losses(
        self, batch: Batch, modules: Mapping[str, nn.Module], values: Mapping[str, Tensor]
    ) -> np.ndarray:
        with _substituted({modules[m]: value for m, value in values.items()}):
            return self.task.loss(self.model, batch).double().cpu().numpy()

    @contextmanager
    def _shifted(self, sign: int) -> Iterator[None]:
        """The model at θ ± εu; its own weights again on leaving, bit for bit."""
        own = [weight.detach().clone() for weight in self.weights]
        try:
            with torch.no_grad():
                for weight, unit in zip(self.weights, self.unit, strict=True):
                    weight.add_(unit, alpha=sign * EPSILON)
            yield
        finally:
            with torch.no_grad():
                for weight, value in zip(self.weights, own, strict=True):
                    weight.copy_(value)


@contextmanager
def _substituted(values: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """Modules that answer with given outputs instead of their own."""
    handles = [m.register_forward_hook(lambda _, __, ___, value=value: value) for m, value in values.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _requiring_grad(weights: Sequence[Tensor]) -> Iterator[None]:
    before = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight, flag in zip(weights, before, strict=True):
            weight.requires_grad_(flag)


def _take(batch: Batch, rows: Tensor) -> Batch:
    """The batch's rows, repeated and reordered as ``rows`` says."""
    chosen = rows.tolist()
    return {
        key: value[rows.to(value.device)] if isinstance(value, Tensor) else [value[i] for i in chosen]
        for key, value in batch.items()
    }


def _add(sums: dict[str, np.ndarray], key: str, value: np.ndarray) -> None:
    sums[key] = sums[key] + value if key in sums else value


def _accumulate(
    total: dict[str, Any], block: np.ndarray, n: int, rates: np.ndarray, result: Mapping[str, Any]
) -> None:
    """Add a block's results, each row scaled by its rate, into the arrays of all n rows."""
    for key, value in result.items():
        if isinstance(value, dict):
            _accumulate(total.setdefault(key, {}), block, n, rates, value)
        else:
            scaled = value * rates.reshape(-1, *[1] * (value.ndim - 1))
            total.setdefault(key, np.zeros((n, *value.shape[1:])))[block] += scaled
