"""The split of a store's best and worst examples, from files to a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backcast.attribution import Checkpoint, SketchStore, attribute
from backcast.data import Examples, read_examples
from backcast.errors import InputError
from backcast.files import write_atomic
from backcast.multimodal import MultimodalTask, Split, load_task, split


def split_scores(
    model: str,
    train: str | Path,
    target: str | Path,
    rows: int,
    checkpoints: Sequence[Checkpoint] | None,
    out: str | Path,
) -> list[dict[str, Any]]:
    """Split the mean scores of the ``rows`` best and worst training examples, and write ``out``: a JSON line for each.

    Returns the lines, from the highest score to the lowest: id, row, score, baseline, gap, image, text, and maps.
    The stores name their data, which is read again. Raises `InputError` for data that have changed since, and for
    a model without modalities.
    """
    stores = [SketchStore.open(train), SketchStore.open(target)]
    pool, wanted = (_examples(store) for store in stores)
    network, task = load_task(model, pool)
    if not isinstance(task, MultimodalTask):
        raise InputError(f"{model}: has a single modality, so there is nothing to split")
    order = np.argsort(-attribute(stores[0], stores[1], "tracin", cosine=True).total(), kind="stable")
    shown = pool[np.concatenate([order[:rows], order[rows:][-rows:]])]
    result = split(network, task, shown, wanted, train=stores[0], target=stores[1], checkpoints=checkpoints)
    lines = _lines(result, shown)
    write_atomic(out, "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def _examples(store: SketchStore) -> Examples:
    examples = read_examples(store.rows.dataset, store.rows.columns)
    if examples.index.fingerprint != store.rows.fingerprint:
        raise InputError(
            f"{store.rows.dataset}: has changed since {store.path} was collected; collect it again"
        )
    return examples


def _lines(result: Split, examples: Examples) -> list[dict[str, Any]]:
    return [
        {
            "id": example.id,
            "row": example.row,
            "score": float(result.score[k]),
            "baseline": float(result.baseline[k]),
            "gap": float(result.gap[k]),
            **{modality: float(part[k]) for modality, part in result.parts.items()},
            "maps": {modality: values[k].tolist() for modality, values in result.maps.items()},
        }
        for k, example in enumerate(examples)
    ]
