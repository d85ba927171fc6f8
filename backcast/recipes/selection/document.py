"""A selection as a page: what was chosen and how, from where, how redundant, at which cost, and examples of it."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backcast.data import Example, Examples, Rows, conversation, split_names
from backcast.data.images import open_image
from backcast.files import write_atomic
from backcast.manifests import Manifest
from backcast.progress import progress
from backcast.recipes.selection.numbers import SAMPLE, histogram, nearness
from backcast.report import Figure, Report
from backcast.report.choice import Choice, Cost, Gain, Gallery, Histogram, Mix, Row
from backcast.report.pictures import side_by_side
from backcast.selectors import Evidence
from backcast.vectors import Features, sample

#: Groups of targets, at most, that get a histogram each; points of the summed gain; sources that are listed.
GROUPS, POINTS, SOURCES = 6, 200, 20
#: Examples from each end and the middle of the ranks, of the best that were left out, and of the others.
SHOWN, BEST, OTHERS = 4, 8, 4
#: Characters of a text that are shown, of a parameter's value, of a target's name, and of a hash.
TEXT, VALUE, NAME, HASH = 1500, 120, 40, 12


@dataclass(frozen=True)
class Beside:
    """What is known of a selection beside its manifest.

    Attributes:
        examples: those of the data set, which may be more than the pool.
        evidence: the pool's scores.
        features: the pool's.
        pool: the pool's rows, which any of the others may tell.
        missing: what is not known, and what would add it.
    """

    examples: Examples | None = None
    evidence: Evidence | None = None
    features: Features | None = None
    pool: Rows | None = None
    missing: tuple[str, ...] = ()


# ------------------------------------------------------------------ the page


def selection_choice(manifest: Manifest, beside: Beside, folder: str | Path) -> Choice:
    """The numbers and the examples of a selection, whose images are written to ``folder``.

    O(n m) for the scores of n rows for m targets; O(s k d) for the nearest chosen rows of s sampled ones. Rows are read
    by position, and never all at once.
    """
    chosen = None if beside.pool is None else manifest.positions(beside.pool)
    redundancy, coverage = (None, None)
    if beside.features is not None and chosen is not None:
        redundancy, coverage = nearness(beside.features, chosen)
    return Choice(
        made=_made(manifest),
        dropped=[
            (name, reason, count)
            for name, reasons in manifest.meta.get("dropped", {}).get("reasons", {}).items()
            for reason, count in reasons.items()
        ],
        sources=_sources(manifest, beside.pool),
        scores=_score_histograms(manifest, beside.evidence, chosen),
        gain=_gain(manifest),
        redundancy=redundancy,
        coverage=coverage,
        costs=_costs(manifest, beside.examples),
        chosen=_chosen(manifest, beside.examples, Path(folder)),
        left=[] if chosen is None else _left(manifest, beside, chosen, Path(folder)),
        missing=list(beside.missing),
    )


def selection_document(manifest: Manifest, choice: Choice) -> Report:
    """What the page of a selection says."""
    names = [Path(name).name for name in split_names(manifest.meta["dataset"]["path"])]
    dataset = ", ".join(names) if len(names) < 4 else f"{len(names)} data sets"
    return Report(
        title=f"A subset of {dataset or 'examples in memory'}",
        answer=_answer(manifest, choice),
        figures=_figures(choice),
        selection=choice,
    )


def _answer(manifest: Manifest, choice: Choice) -> list[str]:
    n, k = manifest.meta["dataset"]["n"], len(manifest)
    method = manifest.meta["selector"]["method"]
    said = [f"{method} chose {k:,} of {n:,} examples, {_percent(k / n)}."]
    if len(choice.sources) > 1 and all(mix.pool is not None for mix in choice.sources):
        grown = max(choice.sources, key=lambda mix: mix.subset / k - (mix.pool or 0) / n)
        said.append(
            f"The source that grew the most is {grown.source}: {_percent((grown.pool or 0) / n)} of the pool, "
            f"{_percent(grown.subset / k)} of the subset."
        )
    if choice.redundancy:
        random, chosen = choice.redundancy.cosines.groups
        said.append(
            f"Redundancy: chosen rows have a mean cosine of {chosen.mean:.3f} to the nearest other chosen row, "
            f"{random.mean:.3f} in random subsets of the same size; lower is less redundant."
        )
    if choice.coverage:
        random, chosen = choice.coverage.cosines.groups
        said.append(
            f"Coverage: the pool's rows have a mean cosine of {chosen.mean:.3f} to the nearest chosen row, "
            f"{random.mean:.3f} with random subsets; higher is better covered."
        )
    return said


def _figures(choice: Choice) -> list[Figure]:
    found = [Figure(name=f"{cost.unit} in the subset", value=_amount(cost.subset)) for cost in choice.costs]
    for scores in choice.scores[:1]:
        *pool, subset = scores.groups
        value = f"{subset.mean:.3g}" + "".join(f" against {group.mean:.3g}" for group in pool)
        found.append(Figure(name="mean score, subset against pool" if pool else "mean score", value=value))
    for name, near in (("redundancy", choice.redundancy), ("coverage", choice.coverage)):
        if near:
            random, chosen = near.cosines.groups
            found.append(
                Figure(name=f"{name}, against random", value=f"{chosen.mean:.3f} against {random.mean:.3f}")
            )
    return [Figure(name=f.name, value=f.value.replace("-", "−")) for f in found]


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


# ------------------------------------------------------------------ how it was made


def _made(manifest: Manifest) -> list[tuple[str, str]]:
    meta = manifest.meta
    budget, selector, dataset, origin = (meta[name] for name in ("budget", "selector", "dataset", "origin"))
    unit = budget.get("unit")
    got = f"{budget['got']:,} examples"
    if unit:
        got += f", {_amount(budget['spent'])} of {_amount(budget['limit'])} {unit}"
    scores = meta.get("scores") or {}
    told = {
        "method": selector["method"],
        "parameters": _params(selector["params"]),
        "budget": f"asked {budget['asked']}, got {got}",
        "seed": str(meta["seed"]),
        "at least, by source": _params(meta.get("constraints", {}).get("at_least", {})),
        "at most, by source": _params(meta.get("constraints", {}).get("at_most", {})),
        "targets in each group": _params(meta.get("groups", {})),
        "weights of targets": _params(meta.get("weights", {})),
        "scores": ", ".join(filter(None, [scores.get("method"), _params(scores.get("params", {}))])),
        "model": ", ".join(str(origin[name]) for name in ("model", "task") if name in origin),
        "checkpoints": "; ".join(map(_checkpoint, origin.get("checkpoints", []))),
        "target": origin.get("target", {}).get("dataset", ""),
        "pool": f"{dataset['path'] or 'in memory'}, {dataset['n']:,} examples, {dataset['fingerprint'][:HASH]}",
        "told by the selector": _params(selector.get("notes", {})),
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(meta["versions"].items())),
    }
    return [(name, text) for name, text in told.items() if text]


def _params(params: Mapping[str, Any]) -> str:
    """``a=1, b=2``; of parameters by stage ``stage: a=1, b=2``."""
    nested = [
        f"{name}: {_params(value)}" for name, value in params.items() if isinstance(value, Mapping) and value
    ]
    plain = [
        f"{name}={_cut(str(value), VALUE)}"
        for name, value in params.items()
        if not isinstance(value, Mapping)
    ]
    return "; ".join([*nested, *([", ".join(plain)] if plain else [])])


def _checkpoint(checkpoint: Mapping[str, Any]) -> str:
    return f"{checkpoint['name']} ({checkpoint['sha256'][:HASH]})"


# ------------------------------------------------------------------ numbers


def _sources(manifest: Manifest, pool: Rows | None) -> list[Mix]:
    """By their number in the pool; the smallest of very many together."""
    subset = Counter(line["source"] for line in manifest.lines)
    whole = subset if pool is None else Counter(pool.sources)
    names = sorted(whole, key=lambda name: (-whole[name], name))
    few = names if len(names) <= SOURCES else names[: SOURCES - 1]
    shown = {name: [name] for name in few}
    if rest := names[len(few) :]:
        shown[f"{len(rest)} others"] = rest
    return [
        Mix(
            source=name,
            pool=None if pool is None else sum(whole[source] for source in sources),
            subset=sum(subset[source] for source in sources),
        )
        for name, sources in shown.items()
    ]


def _score_histograms(
    manifest: Manifest, evidence: Evidence | None, chosen: np.ndarray | None
) -> list[Histogram]:
    if evidence is None or chosen is None:
        own = [line["score"] for line in manifest.lines]
        return [] if None in own else [histogram("mean score", {"subset": np.array(own, dtype=np.float64)})]
    columns = {"mean score": evidence.mean}
    names = evidence.group_names
    if 1 < len(names) <= GROUPS:
        columns |= {f"score for {_cut(name, NAME)}": evidence.by_group[:, g] for g, name in enumerate(names)}
    return [
        histogram(
            name, {"pool": np.asarray(values, np.float64), "subset": np.asarray(values[chosen], np.float64)}
        )
        for name, values in columns.items()
    ]


def _gain(manifest: Manifest) -> Gain | None:
    gains = [line["gain"] for line in manifest.lines]
    if None in gains:
        return None
    ranks = np.unique(np.linspace(1, len(gains), POINTS).astype(int))
    return Gain(rank=ranks.tolist(), total=np.cumsum(gains)[ranks - 1].tolist())


def _costs(manifest: Manifest, examples: Examples | None) -> list[Cost]:
    """In examples; in the budget's unit, or else in characters, which are estimated of a larger pool."""
    budget = manifest.meta["budget"]
    found = [Cost(unit="examples", subset=len(manifest), pool=manifest.meta["dataset"]["n"])]
    own = [line["cost"] for line in manifest.lines if line.get("cost") is not None]
    if own:
        unit, limit = budget.get("unit", "cost"), budget.get("limit")
        return [*found, Cost(unit=unit, subset=float(np.sum(own)), limit=limit)]
    if examples is None:
        return found
    with progress("characters", len(manifest)) as done:
        characters = 0
        for position in manifest.positions(examples.index).tolist():
            characters += _characters(examples[position])
            done(1)
    if not characters:
        return found
    if examples.index.fingerprint != manifest.meta["dataset"]["fingerprint"]:
        return [*found, Cost(unit="characters", subset=characters)]
    n = len(examples)
    mean = float(np.mean([_characters(examples[position]) for position in sample(n, SAMPLE, 0).tolist()]))
    return [*found, Cost(unit="characters", subset=characters, pool=mean * n, about=n > SAMPLE)]


# ------------------------------------------------------------------ examples


def _chosen(manifest: Manifest, examples: Examples | None, folder: Path) -> list[Gallery]:
    """The first, the middle and the last ranks; of few rows, all."""
    if examples is None:
        return []
    k = len(manifest)
    middle = max((k - SHOWN) // 2, SHOWN)
    spans = {
        "The first ranks": range(min(SHOWN, k)),
        "In the middle": range(middle, min(middle + SHOWN, k)),
        "The last ranks": range(max(k - SHOWN, middle + SHOWN), k),
    }
    return [
        Gallery(name=name, rows=[_in(manifest.lines[rank], examples, folder) for rank in span])
        for name, span in spans.items()
        if len(span)
    ]


def _left(manifest: Manifest, beside: Beside, chosen: np.ndarray, folder: Path) -> list[Gallery]:
    """The best of what was left out, and a random few."""
    pool, evidence, examples = beside.pool, beside.evidence, beside.examples
    assert pool is not None
    left = np.setdiff1d(np.arange(len(pool)), chosen)
    dropped = manifest.meta.get("dropped", {})
    why = {row["row"]: f"dropped by {row['filter']}: {row['reason']}" for row in dropped.get("rows", ())}

    def out(position: int) -> Row:
        row, name = int(pool.rows[position]), pool.ids[position]
        score = None if evidence is None else float(evidence.mean[position])
        content = _content(examples, row, name, folder)
        return Row(row=row, source=pool.sources[position], score=score, note=why.get(row), **content)

    galleries = []
    if evidence is not None and len(left):
        best = _best(left, evidence)
        about = "What no filter dropped, the selector passed over."
        if len(why) < dropped.get("total", 0):
            about += (
                f" The manifest names {len(why):,} of {dropped['total']:,} dropped rows; these bear a note."
            )
        galleries.append(
            Gallery(name="The best scores that were left out", about=about, rows=[out(i) for i in best])
        )
        left = np.setdiff1d(left, best)
    if examples is not None and len(left):
        some = left[sample(len(left), OTHERS, 0)].tolist()
        galleries.append(Gallery(name="A random few that were left out", rows=[out(i) for i in some]))
    return galleries


def _best(left: np.ndarray, evidence: Evidence) -> list[int]:
    """The `BEST` positions with the highest mean scores, ties by content id."""
    mean = evidence.mean[left]
    least = np.partition(mean, -BEST)[-BEST] if len(left) > BEST else mean.min()
    first = left[mean >= least].tolist()
    return sorted(first, key=lambda i: (-evidence.mean[i], evidence.rows.ids[i]))[:BEST]


def _in(line: Mapping[str, Any], examples: Examples, folder: Path) -> Row:
    told = {name: line.get(name) for name in ("row", "source", "rank", "score", "gain", "cost")}
    weight = None if line["weight"] == 1 else line["weight"]
    return Row(weight=weight, **told, **_content(examples, line["row"], line["id"], folder))


def _content(examples: Examples | None, row: int, name: str, folder: Path) -> dict[str, str | None]:
    """The texts and the picture of an example of this row and id; nothing where the data hold another one there."""
    if examples is None:
        return {}
    found = np.flatnonzero(examples.index.rows == row).tolist()
    if not found or examples.index.ids[found[0]] != name:
        return {}
    example = examples[found[0]]
    prompt, text = _texts(example)
    return {
        "prompt": None if prompt is None else _cut(prompt),
        "text": _cut(text),
        "image": _picture(example, folder),
    }


def _texts(example: Example) -> tuple[str | None, str]:
    """What was asked, if anything was, and what was answered, or the only text; a label as an answer."""
    fields = example.fields
    if "messages" in fields or "response" in fields:
        said: dict[bool, list[str]] = {False: [], True: []}
        for message in conversation(example)[0]:
            said[message["role"] == "assistant"].append(_said(message["content"]))
        return "\n".join(said[False]), "\n".join(said[True])
    if "chosen" in fields:
        prompt, *pair = (_told(fields.get(name, "")) for name in ("prompt", "chosen", "rejected"))
        return prompt or None, "better: {}\nworse: {}".format(*pair)
    text = fields.get("caption") or fields.get("text") or ""
    return (text or None, f"label {fields['label']}") if "label" in fields else (None, text)


def _told(value: str | Sequence[Mapping[str, Any]]) -> str:
    return value if isinstance(value, str) else "\n".join(_said(message["content"]) for message in value)


def _said(content: str | Sequence[Mapping[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return " ".join(part["text"].strip() for part in content if part["type"] == "text")


def _characters(example: Example) -> int:
    prompt, text = _texts(example)
    return len(prompt or "") + (0 if "label" in example.fields else len(text))


def _cut(text: str, length: int = TEXT) -> str:
    return text if len(text) <= length else f"{text[:length]} …"


def _picture(example: Example, folder: Path) -> str | None:
    """The file of the example's images, beside each other, relative to the folder."""
    fields = example.fields
    images = [fields["image"]] if fields.get("image") else fields.get("images") or []
    if not images:
        return None
    whole, _ = side_by_side([open_image(image) for image in images], np.zeros((0, 0)))
    file = io.BytesIO()
    whole.save(file, "PNG")
    write_atomic(folder / f"row-{example.row}.png", file.getvalue())
    return f"row-{example.row}.png"
