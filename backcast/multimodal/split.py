"""How much of a training example's score comes from its image, and how much from its text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save
from torch import Tensor, nn

from backcast.attribution import Checkpoint, SketchStore
from backcast.attribution.collect import batches_of, evaluation_mode, tracked_weights, uncompiled, visiting
from backcast.attribution.gradients.opened import opened
from backcast.attribution.problem import Problem
from backcast.data import Examples
from backcast.errors import InputError
from backcast.files import sha256, write_atomic
from backcast.multimodal.baselines import Baseline, Reference
from backcast.multimodal.directions import Direction, directions
from backcast.multimodal.line import LINES, Line, gradient
from backcast.multimodal.parts import Parts, Split
from backcast.multimodal.shapley import coalitions, interaction, shapley
from backcast.multimodal.task import MultimodalTask, take
from backcast.progress import progress
from backcast.tasks import on_device
from backcast.tasks.hashes import weights_hash

#: How the score is divided: along a path, or over coalitions.
METHODS = ("integrated_gradients", "shapley")
#: Steps of the integral at first.
STEPS = 16
#: The first is what selectors and reports go by; the second tells how much depends on it.
BASELINES = ("colour+mean", "blur+mask")

#: A block's results: "score", and for each baseline its columns and its maps, a map an example.
Block = dict[str, np.ndarray]


def split(
    model: nn.Module,
    task: Any,
    pool: Examples,
    wanted: Examples,
    *,
    train: SketchStore,
    target: SketchStore,
    score: str = "tracin",
    rows: Sequence[int] | np.ndarray | None = None,
    groups: Sequence[str] | None = None,
    towards: Sequence[str] | None = None,
    checkpoints: Sequence[Checkpoint] | None = None,
    method: str = "integrated_gradients",
    baselines: Sequence[str] = BASELINES,
    derivative: str = "difference",
    tolerance: float = 0.01,
    max_steps: int = 512,
    keep: str | Path | None = None,
    **params: Any,
) -> Parts:
    """Split the scores of examples between their image and their text.

    A score is a scalar function of the example's contents e, its pixels and its token embeddings,

        s(e) = Σ_c f_c ⟨w_c, ∇_θ ℓ(e; θ_c)⟩,

    over the tracked weights θ. The direction w_c is a combination of the targets' gradients, and where the score has a
    preconditioner of the training examples' (`directions`). The factors f_c, rates and norms, are frozen at the stored
    sketches of x, so that s(x) is the stored score but for the sketch's noise. Labels and template tokens are no
    players: they stay.

    Args:
        model: as for `collect`, in float32 or wider; its weights are put back.
        task: a `MultimodalTask`.
        pool: the n training examples, ``train``'s.
        wanted: the m target examples, ``target``'s.
        train, target: the stores that the scores were computed from.
        score: the scores' method, one of `DIRECTIONS`; its parameters follow as ``params``.
        rows: the r positions in the pool whose scores to split; without, all.
        groups: a name for each target, as given to `attribute`.
        towards: for each of the r rows the group whose score is split; without, the mean over all groups or targets.
        checkpoints: the weights that the stores visited; None for the model's own.
        method: ``integrated_gradients``, with maps by patch and by word, or ``shapley``, exact and with four
            evaluations far cheaper.
        baselines: what stands for absence, IMAGE+TEXT of `IMAGES` and `TEXTS`.
        derivative: ``difference``, or ``exact``: by double backward, the reference.
        tolerance: the largest relative gap that stops the doubling of the integral's steps, which is a row's own.
        max_steps: of the integral.
        keep: a folder that blocks of rows are kept in, so that a killed call resumes.

    Returns:
        `Parts` of the r examples.

    Raises:
        InputError: examples that are not the stores', weights or a task other than theirs, tracked token embeddings,
            weights in half precision, or an unknown score, group, method or baseline.

    Sources: `Line` and `shapley` name them.
    """
    problem = Problem(train, target, score, groups=groups)
    rows = np.arange(len(pool)) if rows is None else np.asarray(rows)
    _check(task, pool, wanted, problem, rows, towards)
    for value, known, kind in ((method, METHODS, "method"), (derivative, tuple(LINES), "derivative")):
        if value not in known:
            raise InputError(f"{kind} {value!r} does not exist; choose {' or '.join(known)}")
    terms = directions(problem, params)
    made = {
        "method": method,
        "derivative": derivative,
        "score": {"method": score, "params": params},
        "towards": "groups" if towards else "mean",
        "baselines": list(baselines),
        "origin": problem.origin,
    }
    rest = [tolerance, max_steps, rows.tolist(), towards, pool.index.fingerprint]
    kept = None if keep is None else _Kept(Path(keep), sha256(repr([made, rest])))
    run = _Run(model, task, pool, wanted, rows, method, LINES[derivative], tolerance, max_steps, kept)
    total: dict[str, np.ndarray] = {}
    with (
        evaluation_mode(model),
        uncompiled(model),
        progress(f"split by modality ({method.replace('_', ' ')})", len(terms) * len(rows)) as done,
    ):
        reference = Reference(task, pool)
        absences = [Baseline(name, reference) for name in baselines]
        for term in terms:
            with visiting(model, checkpoints[term.checkpoint] if checkpoints else None):
                _check_weights(model, train, term.checkpoint)
                for block, result in run.at(term, _courses(problem, towards, len(rows)), absences):
                    _accumulate(total, result, block, len(rows), term.factors[rows[block]])
                    done(len(block))
    splits = {name: _split(total, name, len(rows), method == "integrated_gradients") for name in baselines}
    return Parts(pool[rows].index, splits, made)


@dataclass(frozen=True)
class _Run:
    """What all checkpoints of a split have in common; the arguments are those of `split`."""

    model: nn.Module
    task: MultimodalTask
    pool: Examples
    wanted: Examples
    rows: np.ndarray
    method: str
    line: type[Line]
    tolerance: float
    max_steps: int
    kept: _Kept | None

    @cached_property
    def examples(self) -> Examples:
        """Those to split."""
        return self.pool[self.rows]

    def at(
        self, term: Direction, courses: Sequence[tuple[np.ndarray, np.ndarray]], baselines: Sequence[Baseline]
    ) -> Iterator[tuple[np.ndarray, Block]]:
        """(places among the rows, results) of one checkpoint's blocks, the model being there."""
        with opened(self.model):
            self.task.prepare(self.model)
            for baseline in baselines:
                baseline.prepare(self.model)
            weights = tracked_weights(self.model, self.task)
            _check_embeddings(self.task.token_embeddings(self.model), weights)
            for place, (mixture, chosen) in enumerate(courses):
                line = cache(partial(self._line, term, mixture, weights))  # none where all blocks are kept
                for b, pack in enumerate(self._packs(chosen)):
                    name = f"{term.checkpoint}-{place}-{b}"
                    result = self.kept.get(name) if self.kept else None
                    if result is None:
                        result = self._block(line(), self.examples[pack], baselines)
                        if self.kept:
                            self.kept.put(name, result)
                    yield pack, result

    def _packs(self, chosen: np.ndarray) -> list[np.ndarray]:
        packs = batches_of(self.model, self.task, self.examples[chosen], 32)
        return [chosen[pack] for pack in packs]

    def _at_once(self, examples: Examples) -> int:
        """How many points of the path go through the model together: as many examples as a batch holds."""
        longest = max(examples, key=self.task.length)
        return len(batches_of(self.model, self.task, [longest] * 32, 32)[0])

    def _line(self, term: Direction, mixture: np.ndarray, weights: Sequence[Tensor]) -> Line:
        """Along w for a ``mixture`` (g,) of the groups."""
        amounts = [(self.wanted, mixture @ term.target)]
        if term.pool is not None:
            amounts.append((self.pool, mixture @ term.pool))

        def parts() -> Iterator[tuple[Any, Tensor]]:
            for examples, amount in amounts:
                used = examples[np.flatnonzero(amount)]
                amount = amount[np.flatnonzero(amount)]
                for pack in batches_of(self.model, self.task, used, 32):
                    batch = on_device(self.task.collate(used[pack]), self.model)
                    yield batch, torch.from_numpy(amount[pack])

        w = gradient(self.model, self.task, weights, parts())
        return self.line(self.model, self.task, weights, w)

    def _block(self, line: Line, examples: Examples, baselines: Sequence[Baseline]) -> Block:
        batch = on_device(self.task.collate(examples), self.model)
        with torch.no_grad():
            own = self.task.contents(self.model, batch)
        result: Block = {}
        for baseline in baselines:
            absent = baseline.contents(examples, batch, own)
            v = coalitions(line, batch, own, absent)
            columns = {"baseline": v["none"], "interaction": interaction(v)}
            if self.method == "shapley":
                columns |= shapley(v)
            else:
                change = v["both"] - v["none"]
                found = integrate(
                    line, batch, own, absent, change, self._at_once(examples), self.tolerance, self.max_steps
                )
                columns |= {m: values.flatten(1).sum(1) for m, values in found.items()}
                result |= self._maps(baseline.name, batch, found)
            result |= {f"{baseline.name}:{name}": _array(values) for name, values in columns.items()}
            result["score"] = _array(v["both"])
        return result

    def _maps(self, baseline: str, batch: Any, found: Mapping[str, Tensor]) -> Block:
        patches = self.task.patches(_array(found["image"]), batch)
        words = _array(found["text"].sum(-1))
        players = _array(self.task.players(batch))
        return {f"{baseline}:image map:{i}": grid for i, grid in enumerate(patches)} | {
            f"{baseline}:text map:{i}": row[own]
            for i, (row, own) in enumerate(zip(words, players, strict=True))
        }


def integrate(
    line: Line,
    batch: Any,
    own: Mapping[str, Tensor],
    baseline: Mapping[str, Tensor],
    change: Tensor,
    at_once: int,
    tolerance: float,
    max_steps: int,
) -> dict[str, Tensor]:
    """Integrated gradients, with as many steps for each example as it needs for parts that add up to ``change`` (B,).

    ``at_once`` points of the paths go through the model together. The steps stop at half the tolerance: a checkpoint's
    gaps may add up with another's.
    """
    steps = STEPS
    found = {m: torch.zeros_like(values, dtype=torch.float64) for m, values in own.items()}
    pending = torch.arange(len(change))
    while len(pending):
        some = [{m: c[pending.to(c.device)] for m, c in contents.items()} for contents in (own, baseline)]
        attributed = line.attributions(take(batch, pending), some[0], some[1], steps, at_once)
        for modality, values in attributed.items():
            found[modality][pending.to(values.device)] = values
        summed = sum(values.flatten(1).sum(1) for values in attributed.values())
        wanted = change[pending.to(change.device)]
        gap = (summed - wanted).abs() / wanted.abs().clamp(min=1e-30)
        steps *= 2
        pending = pending[(gap > tolerance / 2).cpu()] if steps <= max_steps else pending[:0]
    return found


def _check(
    task: Any,
    pool: Examples,
    wanted: Examples,
    problem: Problem,
    rows: np.ndarray,
    towards: Sequence[str] | None,
) -> None:
    train, target = problem.stores
    if not isinstance(task, MultimodalTask):
        raise InputError(f"{type(task).__name__} has a single modality, so there is nothing to split")
    if len(rows) == 0:
        raise InputError("nothing to split: there are no examples")
    if dict(task.settings()) != train.header.origin.get("settings"):
        raise InputError(
            f"{train.path}: was collected with another loss (its settings or its bank of negatives); "
            "split with the same task"
        )
    for store, examples, kind in ((train, pool, "training"), (target, wanted, "target")):
        if examples.index.ids != store.rows.ids:
            raise InputError(f"{store.path}: its rows are not the {kind} examples; collect them again")
    for names, count, kind in ((problem.groups, len(wanted), "targets"), (towards, len(rows), "examples")):
        if names is not None and len(names) != count:
            raise InputError(f"{len(names)} group names for {count} {kind}; give one for each")
    if towards is not None and set(towards) - set(problem.groups or ()):
        unknown = sorted(set(towards) - set(problem.groups or ()))[0]
        raise InputError(f"no target group is named {unknown!r}")


def _check_weights(model: nn.Module, train: SketchStore, checkpoint: int) -> None:
    described = train.checkpoints[checkpoint]
    if weights_hash(model) != described["sha256"]:
        raise InputError(
            f"{train.path}: was collected at other weights (checkpoint {checkpoint + 1}, {described['name']}); "
            "give its own checkpoints"
        )


def _check_embeddings(table: nn.Module, weights: Sequence[Tensor]) -> None:
    """A score is a function of the token embeddings only where their table is not among what it is measured on; and
    a step of `EPSILON` would be lost in half precision."""
    if any(weight is own for own in table.parameters() for weight in weights):
        raise InputError(
            "the token embeddings are tracked, so they cannot be split over; leave them out in modules()"
        )
    if any(weight.dtype.itemsize < 4 for weight in weights):
        raise InputError(
            f"weights of {weights[0].dtype} are too coarse to split scores; load the model in float32"
        )


def _courses(
    problem: Problem, towards: Sequence[str] | None, count: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(mixture of the groups (g,), the examples whose score towards it is split), a pair for each direction."""
    g = len(problem.names)
    if towards is None:
        return [(np.full(g, 1 / g), np.arange(count))]
    return [
        (np.eye(g)[problem.names.index(name)], np.flatnonzero([t == name for t in towards]))
        for name in dict.fromkeys(towards)
    ]


def _accumulate(
    total: dict[str, np.ndarray], result: Block, block: np.ndarray, count: int, factors: np.ndarray
) -> None:
    """Add a block's results, each example scaled by its factor, to those of all ``count`` examples."""
    for key, values in result.items():
        name, _, place = key.rpartition(" map:")
        if name:
            i = int(place)
            key = f"{name} map:{block[i]}"
            total[key] = total.get(key, 0.0) + factors[i] * values
        else:
            total.setdefault(key, np.zeros(count))[block] += factors * values


def _split(total: Mapping[str, np.ndarray], name: str, count: int, maps: bool) -> Split:
    parts = {modality: total[f"{name}:{modality}"] for modality in ("image", "text")}
    change = total["score"] - total[f"{name}:baseline"]
    return Split(
        total["score"],
        total[f"{name}:baseline"],
        parts,
        total[f"{name}:interaction"],
        np.abs(sum(parts.values()) - change) / np.maximum(np.abs(change), 1e-30),
        {m: [total[f"{name}:{m} map:{i}"] for i in range(count)] for m in parts} if maps else None,
    )


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()


class _Kept:
    """Blocks' results in a folder below ``folder``, one for each ``key`` of all that they depend on."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder / key[:16]

    def get(self, name: str) -> Block | None:
        file = self.folder / f"{name}.safetensors"
        return load_file(file) if file.is_file() else None

    def put(self, name: str, block: Block) -> None:
        content = save({key: np.ascontiguousarray(values) for key, values in block.items()})
        write_atomic(self.folder / f"{name}.safetensors", content)
