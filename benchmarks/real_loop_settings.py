"""The settings of `real_loop.py`: two of `selection.py`'s, with runs in which the metric goes on improving with n.

Every run of a setting makes the same number of steps, whatever n: what n changes is how often an example is seen again,
and so how soon the model learns its subset by heart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from selection_settings import Setting, settings

from backcast.finetune import FinetuneConfig

#: Rows of a pool, and the sizes that the law sees: up to 12 % of it.
POOL, BUDGETS = 1200, (22, 38, 68, 100, 147)


@dataclass(frozen=True)
class Experiment:
    """A setting, and what is asked of it.

    Attributes:
        setting: pool, model, and how the runs train.
        bounds: the metric's range, as the law is told.
        budgets: the sizes that the law sees.
        beyond: a target that should be out of this pool's reach.
        decimals: to which the other targets are rounded.
    """

    setting: Setting
    bounds: tuple[float, float]
    budgets: tuple[int, ...]
    beyond: float
    decimals: int


def experiments(work: Path, quick: bool) -> list[Experiment]:
    """Both; ``work`` keeps the docstrings, once they have been read. Quick ones have every other budget."""
    known, budgets = settings(None, work, quick=False), BUDGETS[:: 2 if quick else 1]
    images, texts = known["digits"], known["docstrings"]
    return [
        Experiment(
            replace(
                images,
                draw=partial(images.draw, n=POOL),
                runs=FinetuneConfig(steps=100, learning_rate=2e-3, batch_size=32),
            ),
            bounds=(0.1, 1.0),
            budgets=budgets,
            beyond=0.97,
            decimals=3,
        ),
        Experiment(
            replace(
                texts,
                draw=partial(texts.draw, n=POOL),
                runs=FinetuneConfig(steps=80, learning_rate=3e-3, batch_size=32),
            ),
            bounds=(0.0, 12.0),
            budgets=budgets,
            beyond=4.0,
            decimals=3,
        ),
    ]
