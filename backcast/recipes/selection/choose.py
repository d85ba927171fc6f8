"""What a run tells `select`, whether in one shot or from parts, and the manifest that tells of the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from backcast.attribution import Scores
from backcast.data import Examples, costs
from backcast.data.costs import TOKENS
from backcast.errors import InputError
from backcast.manifests import Manifest, meta_path
from backcast.recipes.selection.run_config import RunConfig
from backcast.selectors import Method, Selection, parse_budget
from backcast.selectors.budget import EXAMPLES


def check_method(config: RunConfig) -> None:
    """Raise `InputError` for the name of no manifest, or a method that does not exist or lacks the parts it needs."""
    meta_path(config.out)
    method = Method.parse(config.method, config.params)
    if config.parts is None and method.needs_parts:
        raise InputError(
            f"{method.name}: needs the pool's scores split by modality; give parts=, the file of 'backcast split'"
        )


def conditions(config: RunConfig, pool: Callable[[], Examples]) -> dict[str, Any]:
    """What the run asks for and knows beside scores, sketches and the method's parameters, as arguments of `select`.

    Args:
        config: the run.
        pool: gives the examples, which only a budget in something else has read.

    Raises:
        InputError: a file that cannot be read, or costs that are not there.
    """
    asked: dict[str, Any] = {
        "weights": config.weights,
        "at_least": config.at_least,
        "at_most": config.at_most,
        "signals": {name: Scores.load(file) for name, file in config.signals.items()},
    }
    if config.parts:
        from backcast.multimodal.parts import Parts  # seconds, which only a choice by parts has to wait

        asked["parts"] = Parts.load(config.parts)
    unit = parse_budget(config.budget).unit
    if unit != EXAMPLES:
        asked["costs"] = {unit: costs(pool(), unit, token_counter(config.model) if unit == TOKENS else None)}
    return asked


def token_counter(model: str | None) -> Callable[[str], int]:
    """How many tokens a text has, by the model's own tokenizer, which is loaded for the first one.

    On being called it raises `InputError` where there is no model, or none with a tokenizer.
    """

    @cache
    def tokenizer() -> Any:
        from transformers import AutoTokenizer

        if model is None:
            raise InputError(
                "a budget in tokens needs a column 'tokens' in the pool, or --model for its tokenizer"
            )
        try:
            return AutoTokenizer.from_pretrained(model)
        except (OSError, ValueError, KeyError, ImportError):
            raise InputError(
                f"{model}: no tokenizer that transformers reads; add a column 'tokens' to the pool"
            ) from None

    return lambda text: len(tokenizer()(text, add_special_tokens=False, verbose=False)["input_ids"])


def write(selection: Selection, config: RunConfig) -> Manifest:
    """The manifest of the selection, which tells of the run."""
    run = config.embedded(Path(config.out).resolve().parent)
    return replace(selection, why={**selection.why, "run": run}).save(config.out)
