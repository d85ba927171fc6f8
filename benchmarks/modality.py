"""Do the parts of a score by modality say what they should?

Settings: digits and emoji with captions under a small CLIP, easy-VQA under a small vision-language model. In each, 20 %
of a pool's rows have a ruined image and another 20 % ruined text; the model was warmed up on other rows, and with
captions then trained on the pool as it is. Checked are: do parts add up (completeness); is the modality that was ruined
the one with the lower part (blame); do questions that a text-only model answers get a smaller image share (need); do
parts of a model with random weights differ from the trained one (sanity); and what it costs beside the scores. MM-SHAP
shares and the perceptual score, which are of the model's output and not of its scores, stand beside.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import modality_pairs as pairs
import modality_vqa as vqa
import numpy as np
import torch
from common import HERE, Row, arguments, write
from modality_plant import CLEAN, RUINED_IMAGE, RUINED_TEXT
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import nn

from backcast.attribution import SketchStore, attribute, collect
from backcast.data import Examples
from backcast.data.corpora.base import Corpus
from backcast.files import read_json, write_json
from backcast.finetune import FinetuneConfig, finetune
from backcast.kernels import SketchSpec
from backcast.multimodal import (
    ClipTask,
    MultimodalTask,
    Parts,
    VisionLanguageTask,
    load_clip,
    load_vision_language,
    split,
)
from backcast.multimodal.mini_clip import write_mini_clip
from backcast.multimodal.shares import mm_shap, perceptual_score, shares

PLACE = HERE.parent / "runs" / "modality"
BASELINES = ("colour+mean", "mean+mean", "blur+mask")
WARMUP = FinetuneConfig(steps=60, learning_rate=1e-3)
TRAIN = FinetuneConfig(steps=150, learning_rate=2e-3)
RUINS: tuple[tuple[Any, Any], ...] = (
    ("scrambled", "garbled"),
    ("noise", "garbled"),
    ("noise", "random words"),
)


@dataclass
class Case:
    """A model, its scores of a pool, and what is wrong with the pool's rows.

    Attributes:
        groups: each target's; a row's score is that of the group that it serves best, or the mean where there is one.
        kinds: (n,) clean, ruined image or ruined text.
    """

    data: str
    model: nn.Module
    task: MultimodalTask
    pool: Examples
    target: Examples
    groups: list[str] | None
    kinds: np.ndarray
    train: SketchStore
    wanted: SketchStore
    seconds: float

    @classmethod
    def of(
        cls,
        data: str,
        model: nn.Module,
        task: MultimodalTask,
        pool: Examples,
        target: Examples,
        groups: list[str] | None,
        kinds: np.ndarray,
        place: Path,
    ) -> Case:
        task.prepare(model)
        began = time.process_time()
        train = collect(model, task, pool, place / "pool", spec=SketchSpec(dim=2048))
        seconds = time.process_time() - began
        wanted = collect(model, task, target, place / "target", like=train)
        return cls(data, model, task, pool, target, groups, kinds, train, wanted, seconds)

    def towards(self) -> list[str] | None:
        if self.groups is None:
            return None
        scores = attribute(self.train, self.wanted, "grad_cos", groups=self.groups)
        return [scores.targets[i] for i in scores.values.argmax(1)]

    def split(self, method: str, rows: np.ndarray | None = None, **options: Any) -> Parts:
        rows = np.arange(len(self.pool)) if rows is None else rows
        towards = self.towards()
        return split(
            self.model,
            self.task,
            self.pool,
            self.target,
            train=self.train,
            target=self.wanted,
            score="grad_cos",
            rows=rows,
            groups=self.groups,
            towards=None if towards is None else [towards[i] for i in rows],
            method=method,
            **{"baselines": BASELINES, **options},
        )


def main() -> None:
    args = arguments(__doc__ or "")
    torch.set_num_threads(1)  # the models are small: a second thread costs more than it brings
    stages: dict[str, Callable[[Path], list[Row]]] = {}
    for ruin in RUINS[: 1 if args.quick else None]:
        stages[f"digits-{'-'.join(ruin)}"] = partial(_digits, ruin, args.quick)
    if args.data is None:
        print("emoji and easy-VQA are left out: give --data, a folder with their files", file=sys.stderr)
    else:
        stages["emoji"] = partial(_emoji, args.data, args.quick)
        for swap in ("noise", "swapped"):
            stages[f"easy-VQA-{swap}"] = partial(_vqa_blame, args.data, swap, args.quick)
        stages["need"] = partial(_vqa_need, args.data, args.quick)
        stages["cost"] = partial(_vqa_cost, args.data, args.quick)
    rows = [row for name, stage in stages.items() for row in _kept(name, stage, args.quick)]
    write("modality-quick" if args.quick else "modality", rows, args.json)


def _kept(name: str, stage: Callable[[Path], list[Row]], quick: bool) -> list[Row]:
    """A stage's rows: of a full run they are kept as soon as they are there, so that an interrupted one goes on."""
    file = PLACE / "checks" / f"{name}.json"
    if not quick and file.is_file():
        return read_json(file)
    with TemporaryDirectory() as folder:
        rows = stage(Path(folder))
    if not quick:
        write_json(file, rows)
    return rows


def _digits(ruin: tuple[Any, Any], quick: bool, folder: Path) -> list[Row]:
    return _checked(_pairs("digits", pairs.digits(0, quick), ruin, folder), quick, full=ruin == RUINS[0])


def _emoji(data: Path, quick: bool, folder: Path) -> list[Row]:
    return _checked(_pairs("emoji", pairs.emoji(data, 0, quick), RUINS[1], folder), quick, full=False)


def _pairs(
    data: str, splits: tuple[Examples, Examples, Examples], ruin: tuple[Any, Any], folder: Path
) -> Case:
    warmup, clean, target = splits
    pool, kinds = pairs.plant(clean, *ruin)
    place = folder / f"{data}-{'-'.join(ruin)}"
    write_mini_clip(place / "model", [e.fields["caption"] for part in splits for e in part])
    model, preprocess, tokenizer = load_clip(str(place / "model"))
    task = ClipTask(preprocess, tokenizer, pool)
    finetune(model, task, warmup, WARMUP, 0)
    finetune(model, task, pool, TRAIN, 0)
    groups = [e.fields["caption"] for e in target] if data == "digits" else None
    return Case.of(f"{data}: {ruin[0]}, {ruin[1]}", model, task, pool, target, groups, kinds, place)


def _vqa(
    data: Path, quick: bool, folder: Path
) -> tuple[Path, nn.Module, VisionLanguageTask, Corpus, Examples]:
    """The warmed-up model's folder, the model, its task, the data, and 400 clean questions as targets."""
    sizes = vqa.VqaSizes(200, 200, 50, 50, 300, 200) if quick else vqa.VqaSizes()
    corpus = vqa.easy_vqa(data, 0, sizes)
    place = (folder if quick else PLACE) / "model"  # where `modality_use.py` puts it too
    if not (place / "warm").is_file():
        vqa.write_warm_model(place, corpus, quick)
    model, processor = load_vision_language(str(place))
    return place, model, VisionLanguageTask(processor), corpus, vqa.open_questions(corpus.target)[:400]


def _vqa_blame(data: Path, ruin: Any, quick: bool, folder: Path) -> list[Row]:
    _, model, task, corpus, target = _vqa(data, quick, folder)
    pool, kinds = vqa.plant(vqa.open_questions(corpus.pool), ruin)
    answers = [e.fields["response"] for e in target]
    name = f"easy-VQA: {ruin}, random words"
    case = Case.of(name, model, task, pool, target, answers, kinds, folder)
    return _checked(case, quick, full=ruin == "noise")


def _vqa_need(data: Path, quick: bool, folder: Path) -> list[Row]:
    place, model, task, corpus, target = _vqa(data, quick, folder)
    answers, kinds = [e.fields["response"] for e in target], np.full(len(corpus.pool), CLEAN)
    case = Case.of("easy-VQA", model, task, corpus.pool, target, answers, kinds, folder)
    return _need(case, vqa.text_only(place, corpus.pool), quick)


def _vqa_cost(data: Path, quick: bool, folder: Path) -> list[Row]:
    _, model, task, _, target = _vqa(data, quick, folder)
    count = 200 if quick else 10_000
    pool = vqa.easy_vqa(data, 0, replace(vqa.VqaSizes(), pool_rows=count)).pool
    return _cost(Case.of("easy-VQA", model, task, pool, target, None, np.full(count, CLEAN), folder))


# ------------------------------------------------------------------ checks


def _checked(case: Case, quick: bool, full: bool) -> list[Row]:
    """Blame by Shapley values always; with ``full`` the rest too."""
    whole = case.split("shapley")
    rows = _blame(case, whole, "shapley", np.arange(len(case.pool)))
    if full:
        ruined = np.flatnonzero(case.kinds != CLEAN)
        some = np.random.default_rng(0).permutation(ruined)[: 20 if quick else 60]
        by_path = case.split("integrated_gradients", some, baselines=BASELINES[:2], max_steps=256)
        rows += _blame(case, by_path, "integrated gradients", some)
        rows += _completeness(case, whole, by_path, some)
        rows += _output_shares(case, some[:100])
        rows += _sanity(case, whole)
    return rows


def _blame(case: Case, parts: Parts, method: str, rows: np.ndarray) -> list[Row]:
    """Among ruined rows: how well text part − image part tells those whose image was ruined."""
    kinds = case.kinds[rows]
    return [
        _auroc(
            "blame",
            case.data,
            f"{method}, {name}",
            s.parts["text"] - s.parts["image"],
            kinds,
            kept=~s.flagged(),
        )
        for name, s in parts.splits.items()
    ]


def _completeness(case: Case, whole: Parts, by_path: Parts, some: np.ndarray) -> list[Row]:
    """The gap in unflagged rows, the rows flagged, and Shapley values against those of exact derivatives."""
    rows = []
    for name, s in by_path.splits.items():
        flagged = s.flagged()
        rows.append(
            _row("completeness", case.data, f"integrated gradients, {name}: flagged", float(flagged.mean()))
        )
        gap = float(s.gap[~flagged].max())
        rows.append(_row("completeness", case.data, f"integrated gradients, {name}: largest gap", gap))
    gap = max(float(s.gap.max()) for s in whole.splits.values())
    rows.append(_row("completeness", case.data, "shapley: largest gap", gap))
    exact = case.split("shapley", some[:30], derivative="exact").first
    near = case.split("shapley", some[:30]).first
    off = max(
        float(np.abs(near.parts[m] - exact.parts[m]).max() / np.abs(exact.parts[m]).max())
        for m in exact.parts
    )
    rows.append(_row("completeness", case.data, "shapley: difference against double backward", off))
    for told in whole.agreement():
        a, b = told["baselines"]
        note = f"signs agree in {told['sign']:.0%}"
        rows.append(_row("agreement", case.data, f"{told['modality']}: {a} and {b}", told["rank"], note=note))
    return rows


def _output_shares(case: Case, rows: np.ndarray) -> list[Row]:
    """Blame by measures of the output; of a share, the better of its two directions counts."""
    kinds = case.kinds[rows]
    found = []
    for name, values in _shares(case, rows).items():
        auroc = _auroc("blame", case.data, name, values, kinds)
        if auroc["value"] < 0.5:
            auroc = _auroc("blame", case.data, f"{name}, reversed", -values, kinds)
        found.append(auroc)
    return found


def _shares(case: Case, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Image shares of the output, and the signed drop of the loss by the own image less that by the own text."""
    case.task.prepare(case.model)
    examples = case.pool[rows]
    shap = mm_shap(case.model, case.task, examples, case.pool, samples=5)
    drop = perceptual_score(case.model, case.task, examples)
    return {
        "MM-SHAP image share": shap["image"],
        "perceptual score, image share": shares(drop)["image"],
        "perceptual score, text − image": drop["text"] - drop["image"],
    }


def _need(case: Case, known: vqa.TextOnly, quick: bool) -> list[Row]:
    """Do rows that need the image have a larger image share than those that a text-only model answers?"""
    rows = np.flatnonzero(known.answers | known.leaves_open)[: 60 if quick else 600]
    needs = np.where(known.leaves_open[rows], RUINED_IMAGE, RUINED_TEXT)
    note = (
        f"{int(known.leaves_open[rows].sum())} rows need the image, {int(known.answers[rows].sum())} do not"
    )
    found = []
    for name, s in case.split("shapley", rows).splits.items():
        found.append(_auroc("need", case.data, f"shapley, {name}", s.shares()["image"], needs, note=note))
    every = max(1, len(rows) // 40)
    some, few = rows[::every], needs[::every]
    by_path = case.split("integrated_gradients", some, baselines=BASELINES[:1], max_steps=256).first
    found.append(
        _auroc("need", case.data, "integrated gradients, colour+mean", by_path.shares()["image"], few)
    )
    for name, values in _shares(case, some).items():
        found.append(_auroc("need", case.data, name, -values if "−" in name else values, few))
    return found


def _cost(case: Case) -> list[Row]:
    """CPU seconds of splitting the mean score of every row, as a multiple of those of collecting the pool's store."""
    case.groups = None
    rows = []
    for count in (1, 2):
        began = time.process_time()
        case.split("shapley", baselines=BASELINES[:count])
        multiple = (time.process_time() - began) / case.seconds
        note = f"{len(case.pool)} rows in {case.seconds * (1 + multiple):.0f} CPU seconds, the store included"
        rows.append(_row("cost", case.data, f"shapley, baselines: {count}", multiple, note=note))
    return rows


def _sanity(case: Case, whole: Parts) -> list[Row]:
    """Rank correlation of the parts with those of a model whose weights are drawn anew."""
    own = {name: value.clone() for name, value in case.model.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in case.model.parameters():
            if weight.dim() > 1:
                weight.copy_(weight.std() * torch.randn(weight.shape, generator=generator))
    with TemporaryDirectory() as folder:
        other = Case.of(
            case.data, case.model, case.task, case.pool, case.target, case.groups, case.kinds, Path(folder)
        ).split("shapley", baselines=BASELINES[:1])
    case.model.load_state_dict(own)
    case.task.prepare(case.model)
    return [
        _row(
            "randomised model",
            case.data,
            f"{modality} part, rank correlation",
            float(spearmanr(part, other.first.parts[modality]).statistic),
        )
        for modality, part in whole.first.parts.items()
    ]


def _auroc(
    check: str,
    data: str,
    method: str,
    values: np.ndarray,
    kinds: np.ndarray,
    kept: np.ndarray | None = None,
    note: str = "",
) -> Row:
    """How well ``values`` tell ruined images from ruined texts, with a 95 % interval from 500 bootstraps over rows."""
    chosen = np.isin(kinds, (RUINED_IMAGE, RUINED_TEXT)) & (True if kept is None else kept)
    x, y = values[chosen], kinds[chosen] == RUINED_IMAGE
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(x), size=len(x)) for _ in range(500)]
    found = [roc_auc_score(y[d], x[d]) for d in draws if 0 < y[d].sum() < len(d)]
    low, high = np.quantile(found, (0.025, 0.975))
    return _row(check, data, method, float(roc_auc_score(y, x)), float(low), float(high), note)


def _row(
    check: str,
    data: str,
    method: str,
    value: float,
    low: float | None = None,
    high: float | None = None,
    note: str = "",
) -> Row:
    return {
        "check": check,
        "data": data,
        "method": method,
        "value": value,
        "low": low,
        "high": high,
        "note": note,
    }


if __name__ == "__main__":
    main()
