"""From a file of scores to a subset."""

from __future__ import annotations

from backcast.attribution import Scores, SketchStore
from backcast.data import Examples, read_examples
from backcast.errors import InputError
from backcast.manifests import Manifest
from backcast.recipes.selection.choose import check_method, conditions, write
from backcast.recipes.selection.run_config import RunConfig
from backcast.selectors import select


def select_from_scores(config: RunConfig) -> Manifest:
    """Select from the scores that ``config`` names, and write its manifest; raises `InputError` for a bad input."""
    check_method(config)
    scores = Scores.load(str(config.scores))
    features = SketchStore.open(config.store) if config.store else None
    known = {"features": features, **conditions(config, lambda: _pool(scores)), **config.params}
    return write(select(scores, config.budget, config.method, config.seed, **known), config)


def _pool(scores: Scores) -> Examples:
    """The scored examples themselves, from where they were read."""
    rows = scores.train
    if not rows.dataset:
        raise InputError(
            "the scores are of examples in memory, whose costs cannot be looked up; select in Python"
        )
    pool = read_examples(rows.dataset, rows.columns, skip_broken=True)
    if pool.index.ids != rows.ids:
        raise InputError(f"{rows.dataset}: has changed since it was scored; score it again")
    return pool
