"""From a model, a pool and a target to a subset, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from backcast.attribution import attribute, collect
from backcast.data import Examples, read_examples
from backcast.errors import InputError
from backcast.kernels import SketchSpec, default_kind
from backcast.multimodal import load_task
from backcast.selectors import Manifest, parse_budget, select


def select_subset(
    model: str,
    pool: str,
    target: str,
    out: str | Path,
    *,
    budget: str = "5%",
    method: str = "round_robin",
    seed: int = 0,
    dim: int = 4096,
    columns: Mapping[str, str] | None = None,
) -> Manifest:
    """Sketch pool and target at the model's weights, score by cosine, select, and write the manifest ``out``.

    The sketches stay in a folder beside ``out`` (``subset.sketches``): another budget or method takes seconds, and an
    interrupted run resumes.

    Args:
        model: a folder or an id; see `load_task`.
        pool, target: data sets; see `read_examples`. ``columns`` names their fields.
        budget, method, seed: see `select`.
        dim: of the sketch.

    Raises:
        InputError: anything wrong with the input; nothing is written before all of it has been read.
    """
    examples, wanted = read_examples(pool, columns), read_examples(target, columns)
    parse_budget(budget, len(examples))
    _check_same_kind(examples, wanted)
    network, task = load_task(model, examples)
    spec = SketchSpec(kind=default_kind(next(network.parameters()).device), dim=dim, seed=seed)
    sketches = Path(out).with_suffix(".sketches")
    train = collect(network, task, examples, sketches / "pool", spec=spec)
    wants = collect(network, task, wanted, sketches / "target", like=train)
    scores = attribute(train, wants, "tracin", cosine=True)
    return select(scores, budget, method, seed, features=train).save(out)


def _check_same_kind(pool: Examples, target: Examples) -> None:
    kinds = [("image" in e[0].fields, "messages" in e[0].fields) for e in (pool, target)]
    if kinds[0][0] != kinds[1][0]:
        raise InputError(
            f"{target.dataset}: of another kind than the pool {pool.dataset}; both must have images, or neither"
        )
