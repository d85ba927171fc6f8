"""Is the split of a score by modality useful for choosing data, and do the scaling laws differ by modality?

A pool of easy-VQA questions of which 20 % have a ruined image and another 20 % ruined words is scored towards clean
questions that only the image answers, and split by Shapley values; then a small vision-language model, which has seen
other images before, is fine-tuned on 40 % of it: chosen at random, by the score, and by the score after filters that
look at the parts. Further random subsets of image-driven, text-driven and mixed rows give a scaling law each.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import HERE, Row, arguments, write
from modality_vqa import RUN, VqaSizes, easy_vqa, open_questions, plant, write_warm_model
from scipy.stats import t as student

from backcast.attribution import Scores, attribute, collect
from backcast.data import Examples
from backcast.finetune import FinetuneConfig, Run, by_modality, laws_by_modality, sweep
from backcast.finetune.by_modality import aligned
from backcast.kernels import SketchSpec
from backcast.multimodal import Parts, VisionLanguageTask, load_vision_language, split
from backcast.report.law_plots import write_laws_plot
from backcast.scaling import compare_laws
from backcast.selectors import select
from backcast.selectors.modality import driven

SEEDS, BUDGET, TEST = 5, "40%", 1000
#: What chooses, by name; random subsets are drawn anew for every seed.
METHODS = {
    "random": "random",
    "score": "round_robin",
    "score, modality filter": "one_sided_harm | image_needed | round_robin",
    "score, image_needed": "image_needed | round_robin",
    "score, modality balance": "modality_balance",
}
SIZES = (100, 200, 400, 800)


def main() -> None:
    args = arguments(__doc__ or "")
    if args.data is None:
        print("give --data, a folder with easy_vqa_train.parquet", file=sys.stderr)
        sys.exit(2)
    place = HERE.parent / "runs" / ("modality-quick" if args.quick else "modality")
    sizes = VqaSizes(300, 300, 100, 100, 600, 400) if args.quick else VqaSizes()
    corpus = easy_vqa(args.data, 0, sizes)
    pool, kinds = plant(corpus.pool, "noise")
    target, test = open_questions(corpus.target), open_questions(corpus.test)[: 100 if args.quick else TEST]
    model = place / "model"
    if not (model / "warm").is_file():
        write_warm_model(model, corpus, args.quick)
    scores, parts = _scored(place, model, pool, target)
    config = RUN.model_copy(update={"steps": 20 if args.quick else 150})
    rows = _selection(place, model, pool, test, kinds, scores, parts, config, 2 if args.quick else SEEDS)
    rows += _laws(place, model, pool, test, parts, config, 2, (20, 40) if args.quick else SIZES)
    write("modality-use-quick" if args.quick else "modality-use", rows, args.json)


def _scored(place: Path, model: Path, pool: Examples, target: Examples) -> tuple[Scores, Parts]:
    """Of each answer's target questions, and the parts of each row's score for the answer that it serves best."""
    network, processor = load_vision_language(str(model))
    task = VisionLanguageTask(processor)
    train = collect(network, task, pool, place / "pool", spec=SketchSpec(dim=2048))
    wanted = collect(network, task, target, place / "target", like=train)
    groups = [example.fields["response"] for example in target]
    scores = attribute(train, wanted, "grad_cos", groups=groups)
    file = place / "parts.parquet"
    if not file.is_file():
        best = [scores.targets[i] for i in scores.values.argmax(1)]
        stores = {"train": train, "target": wanted, "score": "grad_cos"}
        kept = {"method": "shapley", "keep": place / "blocks"}
        split(network, task, pool, target, groups=groups, towards=best, **stores, **kept).save(file)
    return scores, Parts.load(file)


def _selection(
    place: Path,
    model: Path,
    pool: Examples,
    test: Examples,
    kinds: np.ndarray,
    scores: Scores,
    parts: Parts,
    config: FinetuneConfig,
    seeds: int,
) -> list[Row]:
    runs: list[Run] = []
    ruined: dict[str, list[float]] = {name: [] for name in [*METHODS, "full"]}
    for name, method in METHODS.items():
        for seed in range(seeds):
            draw = seed if name == "random" else 0
            chosen = select(scores, BUDGET, method, 1000 + draw, parts=parts).indices
            runs.append(Run(name, BUDGET, tuple(int(i) for i in np.sort(chosen)), seed))
            ruined[name].append(float(np.mean([kinds[i] != "clean" for i in chosen])))
    ruined["full"] = [float(np.mean([kind != "clean" for kind in kinds]))]
    runs += [Run.on_all(pool, seed) for seed in range(seeds)]
    found = sweep(str(model), pool, test, runs, place / "selection", config=config)
    values = {
        name: np.array([r["metric"] for r in found if r["selector"] == name]) for name in [*METHODS, "full"]
    }
    rows = []
    for name, own in values.items():
        rows.append(_row("selection", name, own, f"ruined rows: {np.mean(ruined[name]):.0%}"))
    for name in ("score, modality filter", "score, image_needed"):
        for other in ("random", "score"):
            lead = values[name] - values[other]
            rows.append(_row("selection", f"({name}) − {other}", lead, "paired by the fine-tune's seed"))
    return rows


def _row(check: str, method: str, values: np.ndarray, note: str) -> Row:
    """The mean with its 95 % interval over the seeds, Student's."""
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    mean = float(values.mean())
    return {
        "check": check,
        "data": "easy-VQA",
        "method": method,
        "value": mean,
        "low": float(mean - half),
        "high": float(mean + half),
        "seeds": len(values),
        "note": note,
    }


def _laws(
    place: Path,
    model: Path,
    pool: Examples,
    test: Examples,
    parts: Parts,
    config: FinetuneConfig,
    seeds: int,
    sizes: Sequence[int],
) -> list[Row]:
    signed = aligned(parts, pool)
    classes = driven(signed)
    kept = [name for name in ("image", "text", "mixed") if (classes == name).sum() >= sizes[1]]
    runs = by_modality(signed, pool, sizes, seeds, kept)
    found = sweep(str(model), pool, test, runs, place / "laws", config=config)
    laws = laws_by_modality(found)
    comparison = compare_laws(laws)
    write_laws_plot(HERE.parent / "docs" / "modality-laws.png", found, laws, comparison)
    counts = ", ".join(f"{(classes == name).sum()} {name}" for name in ("image", "text", "mixed"))
    return [
        {
            "check": "laws by modality",
            "data": "easy-VQA",
            "method": "exponents",
            "value": None,
            "low": None,
            "high": None,
            "seeds": seeds,
            "note": f"{counts}. " + " ".join(comparison.sentences()),
            "comparison": [comparison.to_json()],
        }
    ]


if __name__ == "__main__":
    main()
