"""The split of stored scores by modality, from stores to columns, maps and a page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backcast.attribution import Checkpoint, SketchStore, attribute
from backcast.data import Examples, read_examples
from backcast.errors import InputError
from backcast.files import whole_folder, write_atomic
from backcast.finetune import Run
from backcast.manifests import Manifest
from backcast.multimodal import MultimodalTask, Parts, load_task, split
from backcast.multimodal.split import BASELINES
from backcast.recipes.split.document import split_document
from backcast.report import write_report


def split_scores(
    model: str,
    train: str | Path,
    target: str | Path,
    out: str | Path,
    *,
    score: str = "tracin",
    params: Mapping[str, Any] | None = None,
    by_source: bool = False,
    best: bool = False,
    checkpoints: Sequence[Checkpoint] | None = None,
    manifest: str | Path | None = None,
    baselines: Sequence[str] = BASELINES,
    shown: int = 6,
) -> Parts:
    """Split the scores of a store's examples, or of a manifest's, and show the best and the worst.

    Shapley values of all rows go to ``out``/parts.parquet, and into the manifest's lines where one is given; integrated
    gradients of the ``shown`` best and worst, with their maps, to ``out``/shortlist.jsonl and the report. Blocks of
    rows are kept while it runs, so that an interrupted call resumes.

    Args:
        model: what the stores were collected with, as `load_task` takes it.
        train, target: the stores; their data are read again.
        out: a folder.
        score, params, by_source: of the scores: the method, its parameters, and whether a target is a source.
        best: split each example's score for the target that it serves best, as LESS takes it, not its mean.
        checkpoints: the weights that the stores visited.
        manifest: a selection from the store's examples.
        baselines: as for `split`.
        shown: rows from either end.

    Raises:
        InputError: data that have changed since, a manifest of other data, a model of one modality; and as `split`.
    """
    stores = [SketchStore.open(train), SketchStore.open(target)]
    pool, wanted = (_examples(store) for store in stores)
    chosen = Manifest.load(manifest) if manifest else None
    rows = np.array(Run.on_subset(chosen, pool, 0).rows) if chosen else np.arange(len(pool))
    network, task = load_task(model, pool, stores[0].header.origin["settings"])
    if not isinstance(task, MultimodalTask):
        raise InputError(f"{model}: has a single modality, so there is nothing to split")
    out = Path(out)
    groups = wanted.index.sources if by_source else None
    served: np.ndarray | None = None
    if best:
        groups = groups or wanted.index.ids
        scores = attribute(stores[0], stores[1], score, groups=groups, **(params or {}))
        served = np.array(scores.targets)[scores.values.argmax(axis=1)]

    def run(rows: np.ndarray, **how: Any) -> Parts:
        return split(
            network,
            task,
            pool,
            wanted,
            train=stores[0],
            target=stores[1],
            score=score,
            rows=rows,
            groups=groups,
            towards=None if served is None else served[rows].tolist(),
            checkpoints=checkpoints,
            baselines=baselines,
            **how,
            **(params or {}),
        )

    with whole_folder(out):
        parts = run(rows, method="shapley", keep=out / "blocks")
        parts.save(out / "parts.parquet")
        ends = rows[_ends(parts.first.score, shown)]
        shortlist, examples = run(ends), pool[ends]
        write_atomic(
            out / "shortlist.jsonl", "".join(json.dumps(x) + "\n" for x in _lines(shortlist, examples))
        )
        words = [task.words(example) for example in examples]
        write_report(split_document(parts, shortlist, examples, words, out), out)
        shutil.rmtree(out / "blocks", ignore_errors=True)
    if chosen:
        made = {key: value for key, value in parts.made.items() if key != "origin"}
        chosen.with_parts(parts.parts, made).save()
    return parts


def _ends(score: np.ndarray, count: int) -> np.ndarray:
    """The places of the highest scores, highest first, and of the lowest, lowest first; of few rows each once."""
    order = np.argsort(-score, kind="stable")
    return np.concatenate([order[:count], order[count:][-count:][::-1]])


def _examples(store: SketchStore) -> Examples:
    examples = read_examples(store.rows.dataset, store.rows.columns, skip_broken=True)
    if examples.index.fingerprint != store.rows.fingerprint:
        raise InputError(
            f"{store.rows.dataset}: has changed since {store.path} was collected; collect it again"
        )
    return examples


def _lines(parts: Parts, examples: Examples) -> list[dict[str, Any]]:
    split = parts.first
    return [
        {
            "id": example.id,
            "row": example.row,
            "score": float(split.score[k]),
            "baseline": float(split.baseline[k]),
            "gap": float(split.gap[k]),
            **{modality: float(part[k]) for modality, part in split.parts.items()},
            "interaction": float(split.interaction[k]),
            "maps": {modality: maps[k].tolist() for modality, maps in (split.maps or {}).items()},
        }
        for k, example in enumerate(examples)
    ]
