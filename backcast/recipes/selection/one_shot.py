"""From a model, a pool and a target to a subset, in one call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from backcast.attribution import attribute, collect
from backcast.attribution.estimators import ESTIMATORS
from backcast.data import Example, Examples, read_examples, split_names
from backcast.errors import InputError
from backcast.files import whole_folder
from backcast.kernels import SketchSpec, default_kind
from backcast.manifests import Manifest
from backcast.multimodal import check_same_kind, load_task
from backcast.recipes.selection.choose import check_method, conditions, write
from backcast.recipes.selection.run_config import RunConfig, ScoreConfig
from backcast.recipes.selection.trial import Trial
from backcast.selectors import Evidence, Method, select

#: The scores that sketches of losses give.
BY_SKETCHES = ("tracin", "grad_cos", "grad_dot", "grad_norm", "influence", "datainf", "random")


def select_subset(config: RunConfig) -> Manifest:
    """Sketch pool and target at the model's weights, score, select, and write the manifest ``config.out``.

    Sketches, scores and trials stay in a folder beside it (``subset.sketches``): another budget, method or seed takes
    seconds, and an interrupted run resumes. Of the pool's sketches no more than a few shards are held at a time.

    Raises:
        InputError: anything wrong with the input; it is looked for before the long part starts, and leaves nothing
            behind.
    """
    check_asked(config)
    out = Path(config.out)
    pool, sets = read(config, str(config.pool)), read_targets(config)
    test = read(config, config.trial.test) if config.trial else None
    for other in (*sets.values(), *([test] if test else [])):
        check_same_kind(pool, other)
        if str(out.resolve()) in split_names(f"{pool.dataset},{other.dataset}"):
            raise InputError(f"{out}: is a data set of this selection; choose another name for the manifest")
    wanted, groups = joined(sets), groups_of(config, sets)
    known = conditions(config, lambda: pool)
    _refuse(config, pool, wanted, groups, known)

    network, task = load_task(str(config.model), pool)
    kind = config.sketch.kind or default_kind(next(network.parameters()).device)
    spec, folder = SketchSpec(kind, config.sketch.dim), out.with_suffix(".sketches")
    how: dict[str, Any] = {"batch_size": config.batch_size, "dtype": config.sketch.dtype}
    with whole_folder(folder):
        # The target first: it is small, so that what is wrong with it shows at once.
        wants = collect(network, task, wanted, folder / "target", spec=spec, **how)
        train = collect(network, task, pool, folder / "pool", like=wants, **how)
    scores = attribute(
        train, wants, config.score.method, out=folder / "scores.safetensors", **config.score.params
    )
    trial = None
    if config.trial and test:
        trial = Trial(network, task, pool, test, config.trial, folder / "trials")
    how_chosen = {"features": train, "groups": groups, "trial": trial, **known, **config.params}
    selection = select(scores, config.budget, config.method, config.seed, **how_chosen)
    return write(selection, _resolved(config, kind, pool, sets, test))


def _refuse(
    config: RunConfig, pool: Examples, wanted: Examples, groups: Sequence[str], known: Mapping[str, Any]
) -> None:
    """Raise `InputError` for what a selection would refuse, before there are scores."""
    Evidence.of(pool.index, targets=wanted.index.ids, groups=groups, weights=known["weights"])
    select(pool.index, config.budget, "random", **{**known, "weights": None})


def _resolved(
    config: RunConfig, kind: str, pool: Examples, sets: Mapping[str, Examples], test: Examples | None
) -> RunConfig:
    """The run with all that was found out on the way: patterns' files, and the kind of the sketch."""
    targets = {name: own.dataset for name, own in sets.items()}
    changed: dict[str, Any] = {
        "pool": pool.dataset,
        "target": targets if isinstance(config.target, Mapping) else targets[""],
        "sketch": config.sketch.model_copy(update={"kind": kind}),
    }
    if config.trial and test:
        changed["trial"] = config.trial.model_copy(update={"test": test.dataset})
    return config.model_copy(update=changed)


def check_asked(config: RunConfig) -> None:
    """Raise `InputError` for what can be told without data: a manifest's name, a method, what it needs, the scores."""
    check_method(config)
    method = Method.parse(config.method, config.params)
    if config.trial is None and method.needs_trial:
        raise InputError(f"{method.name}: learns from training; give --test, what a trial is measured on")
    _check_score(config.score)


def _check_score(score: ScoreConfig) -> None:
    """Raise `InputError` for scores that are not made from sketches, or a parameter that they do not have."""
    if score.method not in BY_SKETCHES:
        raise InputError(
            f"score: method {score.method!r} is none that one shot makes ({', '.join(BY_SKETCHES)}); "
            "take 'backcast score', and select from its file"
        )
    own = list(inspect.signature(ESTIMATORS[score.method]).parameters)[1:]
    for name in score.params:
        if name not in own:
            raise InputError(
                f"score: {score.method} has no parameter {name!r}; it has {', '.join(own) or 'none'}"
            )


def read(config: RunConfig, data: str) -> Examples:
    """A data set of the run."""
    return read_examples(data, config.columns, config.skip_broken)


def targets_of(config: RunConfig) -> Mapping[str, str]:
    """name → data set; a single one without a name has the name ""."""
    return config.target if isinstance(config.target, Mapping) else {"": str(config.target)}


def read_targets(config: RunConfig) -> dict[str, Examples]:
    """name → the examples of that target; see `targets_of`."""
    return {name: read(config, data) for name, data in targets_of(config).items()}


def groups_of(config: RunConfig, sets: Mapping[str, Examples]) -> tuple[str, ...]:
    """(m,) the group of each of the targets; none where each stands for itself."""
    if config.group_by:
        return sets[""].index.sources
    return tuple(name for name, own in sets.items() for _ in own if name)


def joined(sets: Mapping[str, Examples]) -> Examples:
    """Several data sets as one, their rows numbered through, as `read_examples` does with several files."""
    if len(sets) == 1:
        return next(iter(sets.values()))
    examples: list[Example] = []
    skipped: list[tuple[int, str]] = []
    first = 0
    for own in sets.values():
        examples += [replace(example, row=first + example.row) for example in own]
        skipped += [(first + row, reason) for row, reason in own.skipped]
        first += len(own) + len(own.skipped)
    alike = [own.columns for own in sets.values()]
    columns = alike[0] if all(found == alike[0] for found in alike) else None
    return Examples(examples, ",".join(own.dataset for own in sets.values()), columns, skipped)
