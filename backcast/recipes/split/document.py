"""A split of scores by modality as a report."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backcast.data import Example, Examples, conversation
from backcast.files import write_atomic
from backcast.multimodal.baselines import images
from backcast.multimodal.parts import Parts
from backcast.report import Agreement, Modality, Pair, Report
from backcast.report.pictures import side_by_side
from backcast.selectors.modality import CLASSES, MODALITIES, driven

#: The most rows that are drawn.
DRAWN = 2000


def split_document(
    parts: Parts, shortlist: Parts, examples: Examples, words: Sequence[Sequence[str]], folder: str | Path
) -> Report:
    """What the page of a split says; the shortlist's images are written to ``folder``/images.

    Args:
        parts: of all n rows, by whichever method.
        shortlist: of s rows by integrated gradients, with maps: the best, best first, then as many of the worst, worst
            first.
        examples: the s examples of the shortlist, in its order.
        words: for each of them its text's players, as `MultimodalTask.words` gives them.
        folder: the run's, where the page will be written.

    Raises:
        InputError: an example is no captioned image and no conversation.
    """
    pairs = [
        _pair(shortlist, place, example, own, Path(folder))
        for place, (example, own) in enumerate(zip(examples, words, strict=True))
    ]
    half = (len(pairs) + 1) // 2
    score, dataset = parts.made["score"]["method"], Path(parts.rows.dataset).name
    of = f" of {dataset}" if dataset else ""
    modality = _modality(parts, shortlist)
    return Report(
        title=f"{score} scores{of}, split between image and text",
        answer=_answer(modality),
        modality=modality,
        best=pairs[:half],
        worst=pairs[half:],
    )


def verdict(score: float, image: float, text: float) -> str:
    """What a row's parts say of it, e.g. "harms through its image alone"; the parts add up to score − baseline."""
    change = image + text
    if change == 0:
        return "its contents change nothing"
    if (score > 0) != (change > 0):
        return f"{'helps' if score > 0 else 'harms'} less than its baseline does"
    does = "helps" if change > 0 else "harms"
    through = [m for m, part in zip(MODALITIES, (image, text), strict=True) if part * change > 0]
    if len(through) == 1:
        return f"{does} through its {through[0]} alone"
    leads = str(driven({"image": np.array([image]), "text": np.array([text])})[0])
    return f"{does} through both" if leads == "mixed" else f"{does} mostly through its {leads}"


def _modality(parts: Parts, shortlist: Parts) -> Modality:
    split, kept = parts.first, ~parts.first.flagged()
    classes, own = driven(parts.parts), parts.parts
    one_sided = (own["image"] < 0) != (own["text"] < 0)
    harmful = kept & one_sided & (own["image"] + own["text"] < 0)
    chosen = np.random.default_rng(0).permutation(np.flatnonzero(kept))[:DRAWN]
    drawn = np.zeros(len(kept), dtype=bool)
    drawn[chosen] = True
    places = np.stack([own[m] for m in MODALITIES], axis=1)
    return Modality(
        driven={name: int((kept & (classes == name)).sum()) for name in CLASSES},
        flagged=int((~kept).sum()),
        one_sided={m: int((harmful & (own[m] < 0)).sum()) for m in MODALITIES},
        points={name: places[drawn & (classes == name)].tolist() for name in CLASSES},
        agreement=[Agreement(**row) for row in parts.agreement()],
        interaction=_interaction(split.parts, split.interaction, kept) if _shapley(parts) else None,
        about=_about(parts, shortlist),
    )


def _shapley(parts: Parts) -> bool:
    return parts.made["method"] == "shapley"


def _interaction(values: dict[str, np.ndarray], together: np.ndarray, kept: np.ndarray) -> float | None:
    """The median of |interaction| / (|image alone| + |text alone| + |interaction|): a Shapley value is what its player
    adds alone, and half of the interaction."""
    sizes = np.abs([values["image"] - together / 2, values["text"] - together / 2, together])[:, kept]
    total = sizes.sum(axis=0)
    shares = sizes[2, total > 0] / total[total > 0]
    return float(np.median(shares)) if len(shares) else None


def _answer(modality: Modality) -> list[str]:
    counts, alone = modality.driven, modality.one_sided
    sentences = [
        f"Of {modality.rows:,} rows {counts['image']:,} are driven by their image, {counts['text']:,} by their text "
        f"and {counts['mixed']:,} by both; {sum(alone.values()):,} harm through one modality alone."
    ]
    if any(alone.values()):
        sentences.append(
            f"Harmful through one modality alone: in {alone['image']:,} rows the image takes away more from the score "
            f"than the text adds, in {alone['text']:,} the text takes away more than the image adds."
        )
    if modality.flagged:
        sentences.append(
            f"{modality.flagged:,} rows are flagged, as their parts do not add up, and left out."
        )
    for a in modality.agreement:
        if a.sign is not None and a.rank is not None:
            sentences.append(
                f"Between the baselines {' and '.join(a.baselines)}, {100 * a.sign:.0f} % of the {a.modality} parts "
                f"have the same sign, and their ranks correlate by {a.rank:.2f}."
            )
    return sentences


def _about(parts: Parts, shortlist: Parts) -> list[str]:
    """What the parts are of, and what is not claimed."""
    made, baseline = parts.made, next(iter(parts.splits))
    methods = {
        "shapley": "exact Shapley values of two players",
        "integrated_gradients": "integrated gradients",
    }
    towards = "the row's own group of targets" if made.get("towards") == "groups" else "the targets' mean"
    maps = next(iter(shortlist.splits))
    said = [
        f"The parts are {methods[made['method']]}, image and text, of the {made['score']['method']} score towards "
        f"{towards}. They add up to the score less the baseline's, which is that of the same example with "
        f"{baseline} in place of its contents. The examples below are split by "
        f"{methods[shortlist.made['method']]} against {maps}, which also gives their maps. "
        "Their verdicts are on their parts and leave the baseline's score aside."
    ]
    if len(parts.splits) == 1:
        said.append("Only one baseline was run, so how far the parts depend on it is not known.")
    said.append(
        "What is not claimed: a part is not the effect of training without that image or text, which was not tried. "
        "It describes this model at these weights, with the labels held fixed; another baseline gives another part."
    )
    return said


def _pair(shortlist: Parts, place: int, example: Example, words: Sequence[str], folder: Path) -> Pair:
    """Row ``place`` of the shortlist; a flagged one without its parts."""
    split = shortlist.first
    score, baseline = float(split.score[place]), float(split.baseline[place])
    values = {m: float(split.parts[m][place]) for m in MODALITIES}
    maps = split.maps or {}
    flagged = bool(split.flagged()[place])
    grid = maps["image"][place] if "image" in maps else np.zeros((0, 0))
    name, fits = _picture(example, grid, folder)
    told: dict[str, Any] = {"verdict": "flagged: its parts do not add up"}
    if not flagged:
        told = {
            "parts": values,
            "baseline": baseline,
            "interaction": float(split.interaction[place]),
            "verdict": verdict(score, values["image"], values["text"]),
            "image_map": grid.tolist() if fits else None,
        }
        if "text" in maps:
            told["tokens"] = list(zip(words, maps["text"][place].tolist(), strict=True))
            told["tokens_in_prompt"] = True
    return Pair(row=example.row, score=score, text=_text(example), image=name, **told)


def _picture(example: Example, grid: np.ndarray, folder: Path) -> tuple[str | None, bool]:
    """The file of the example's images, relative to the folder, and whether the grid (h, w) can be laid over it."""
    own = images(example)
    if not own:
        return None, False
    whole, covered = side_by_side(own, grid)
    name = f"images/row-{example.row}.png"
    write_atomic(folder / name, _png(whole))
    return name, covered


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _text(example: Example) -> str:
    """A caption, or what was asked and what was answered as ``prompt → response``, turns in lines."""
    if "caption" in example.fields:
        return example.fields["caption"]
    messages, _ = conversation(example)
    said: dict[bool, list[str]] = {False: [], True: []}
    for message in messages:
        said[message["role"] == "assistant"].append(_said(message["content"]))
    return " → ".join("\n".join(turns) for turns in said.values())


def _said(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return " ".join(part["text"].strip() for part in content if part["type"] == "text")
