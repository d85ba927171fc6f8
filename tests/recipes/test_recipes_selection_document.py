"""The page of a selection: its numbers against brute force, its examples, and what it says where nothing is known."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backcast.attribution import Scores, SketchStore
from backcast.attribution.store import Header
from backcast.cli import main
from backcast.data import Examples, read_examples
from backcast.errors import InputError
from backcast.kernels import SketchSpec
from backcast.manifests import Manifest
from backcast.recipes.selection import numbers as selection_numbers
from backcast.recipes.selection.document import Beside, selection_choice, selection_document
from backcast.recipes.selection.numbers import histogram, nearest, nearness
from backcast.recipes.selection.report import look_beside, selection_report
from backcast.report import render
from backcast.report.choice import Choice, Row
from backcast.selectors import select
from backcast.vectors import Features, sample

N, D, TARGETS = 300, 16, 4
SOURCES = ("web", "books <b>", "code")


@dataclass(frozen=True)
class Case:
    """A pool on disk, its scores and its store, and a subset of it."""

    folder: Path
    pool: Examples
    scores: Scores
    unit: np.ndarray
    manifest: Manifest

    @property
    def paths(self) -> dict[str, Path]:
        return {"scores": self.folder / "scores.safetensors", "store": self.folder / "store"}

    def choice(self, folder: Path) -> Choice:
        return selection_choice(self.manifest, look_beside(self.manifest, **self.paths), folder)

    @property
    def mean(self) -> np.ndarray:
        return self.scores.values.astype(np.float64).mean(axis=1)

    @property
    def out(self) -> list[int]:
        """The positions that were left out."""
        return sorted(set(range(N)) - set(self.manifest.rows.tolist()))


def write(path: Path, rows: list[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def text(i: int) -> str:
    return f"Row {i} says <i>{'so ' * (i % 7)}</i> & no more."


def store_of(path: Path, pool: Examples, sketches: np.ndarray) -> SketchStore:
    checkpoint = {"name": "end", "learning_rate": 1.0, "sha256": "ab" * 32}
    header = Header(SketchSpec("sjlt", D), {"layer": (4, 4)}, pool.index, (checkpoint,), shard_rows=64)
    store = SketchStore.create(path, header)
    for number, rows in enumerate(header.shards()):
        store.write(0, number, sketches[rows])
    return store


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Rows i and i + 150 are nearly alike, so that dedup drops one of them, which may score well."""
    folder = tmp_path_factory.mktemp("case")
    rows = [{"text": text(i), "source": SOURCES[i % 5 % 3]} for i in range(N)]
    pool = read_examples(write(folder / "pool.jsonl", rows))
    rng = np.random.default_rng(0)
    half = rng.normal(size=(N // 2, D))
    sketches = np.concatenate([half, half + 0.01 * rng.normal(size=half.shape)]).astype(np.float32)
    values = (sketches @ rng.normal(size=(D, TARGETS))).astype(np.float32)
    origin = {"model": "M", "task": "T", "target": {"dataset": "", "fingerprint": ""}}
    scores = Scores(
        values,
        pool.index,
        tuple(f"target {t}" for t in range(TARGETS)),
        "grad_dot",
        {"cosine": False},
        origin,
    )
    scores.save(folder / "scores.safetensors")
    store = store_of(folder / "store", pool, sketches)
    unit = sketches.astype(np.float64) / np.linalg.norm(sketches.astype(np.float64), axis=1, keepdims=True)
    manifest = select(scores, "10%", "dedup(0.98, whiten=False) | top_k", 3, features=store).save(
        folder / "subset.jsonl"
    )
    return Case(folder, pool, scores, unit, manifest)


@pytest.fixture(scope="module")
def choice(case, tmp_path_factory) -> Choice:
    return case.choice(tmp_path_factory.mktemp("images"))


# ------------------------------------------------------------------ numbers


def test_the_sources_are_counted(case, choice):
    pool = Counter(example.fields["source"] for example in case.pool)
    subset = Counter(case.pool[int(row)].source for row in case.manifest.rows)
    assert [(mix.source, mix.pool, mix.subset) for mix in choice.sources] == [
        (name, pool[name], subset[name]) for name in sorted(pool, key=lambda name: (-pool[name], name))
    ]
    assert sum(mix.subset for mix in choice.sources) == len(case.manifest) == 30


def test_very_many_sources_are_listed_but_for_the_smallest(tmp_path):
    rows = [{"text": f"{s} {i}", "source": f"source {s:02d}"} for s in range(30) for i in range(40 - s)]
    pool = Examples.from_fields(rows)
    manifest = select(pool.index, 200, "random").save(tmp_path / "subset.jsonl")
    mixes = selection_choice(manifest, Beside(pool=pool.index), tmp_path).sources
    assert [mix.source for mix in mixes] == [*(f"source {s:02d}" for s in range(19)), "11 others"]
    assert mixes[-1].pool == sum(40 - s for s in range(19, 30))
    assert sum(mix.pool or 0 for mix in mixes) == len(pool)
    assert sum(mix.subset for mix in mixes) == 200


def test_the_histograms_count_every_row_once(case, choice):
    columns = [case.mean, *case.scores.values.astype(np.float64).T]
    assert [h.of for h in choice.scores] == [
        "mean score",
        *(f"score for target {t}" for t in range(TARGETS)),
    ]
    for shown, values in zip(choice.scores, columns, strict=True):
        for counts, group, own in zip(
            shown.counts, shown.groups, (values, values[case.manifest.rows]), strict=True
        ):
            wanted = [0] * (len(shown.edges) - 1)
            for value in own:
                inside = [b for b, edge in enumerate(shown.edges[:-1]) if value >= edge]
                wanted[inside[-1] if inside else 0] += 1
            assert counts == wanted
            assert group.count == sum(counts) == len(own)
            assert group.mean == pytest.approx(own.mean())
            assert group.quantiles == pytest.approx(np.percentile(own, [5, 25, 50, 75, 95]))
    assert [group.name for group in choice.scores[0].groups] == ["pool", "subset"]


def test_one_value_alone_has_a_histogram():
    found = histogram("x", {"pool": np.full(5, 3.0), "subset": np.full(2, 3.0)})
    assert [sum(counts) for counts in found.counts] == [5, 2]
    assert found.edges[0] < 3 < found.edges[-1]


def test_the_ends_hold_what_lies_beyond():
    values = np.concatenate([np.arange(5000.0), [1e9, -1e9]])
    found = histogram("x", {"pool": values})
    assert -1 < found.edges[0] < found.edges[-1] < 5000
    assert sum(found.counts[0]) == 5002


def test_the_gain_is_the_sum_over_ranks(case, choice):
    gains = [case.mean[row] for row in case.manifest.rows]
    assert choice.gain is not None
    assert choice.gain.rank == list(range(1, 31))
    assert choice.gain.total == pytest.approx([sum(gains[:k]) for k in range(1, 31)])


def test_the_gain_of_many_picks_is_thinned_out(tmp_path):
    pool = Examples.from_fields([{"text": str(i)} for i in range(1000)])
    scores = Scores(np.arange(1000, dtype=np.float32)[:, None], pool.index, ("t",), "grad_dot")
    manifest = select(scores, 900, "top_k").save(tmp_path / "subset.jsonl")
    gain = selection_choice(manifest, Beside(), tmp_path).gain
    assert gain is not None
    assert (gain.rank[0], gain.rank[-1], len(gain.rank)) == (1, 900, 200)
    assert gain.total == [sum(999 - i for i in range(k)) for k in gain.rank]


def test_a_selector_without_gains_has_none(case, tmp_path):
    manifest = select(case.scores, 9, "random").save(tmp_path / "subset.jsonl")
    assert selection_choice(manifest, Beside(), tmp_path).gain is None


def brute(unit: np.ndarray, asked: np.ndarray, among: np.ndarray, itself: bool) -> np.ndarray:
    """Nearest by a loop in float64."""
    return np.array([max(unit[i] @ unit[j] for j in among if itself or i != j) for i in asked])


def test_the_nearest_are_those_of_all_pairs(case, choice):
    chosen = np.sort(case.manifest.rows)
    everything = np.arange(N)
    for near, asked, itself in ((choice.redundancy, None, False), (choice.coverage, everything, True)):
        assert near is not None
        random, own = near.cosines.groups
        wanted = brute(case.unit, chosen if asked is None else asked, chosen, itself)
        assert own.mean == pytest.approx(wanted.mean(), abs=1e-6)
        assert own.quantiles == pytest.approx(np.percentile(wanted, [5, 25, 50, 75, 95]), abs=1e-6)
        means = []
        for seed in (1, 2, 3):
            subset = sample(N, 30, seed)
            means.append(brute(case.unit, subset if asked is None else asked, subset, itself).mean())
        assert near.random_means == pytest.approx(means, abs=1e-6)
        assert len(set(near.random_means)) == 3
        assert random.mean == pytest.approx(np.mean(means), abs=1e-6)
        assert near.asked == ((30, 30) if asked is None else (N, N))


def test_a_sample_of_rows_in_small_blocks_finds_the_same(case, monkeypatch):
    monkeypatch.setattr(selection_numbers, "SAMPLE", 50)
    monkeypatch.setattr(selection_numbers, "BLOCK", 7)
    chosen = case.manifest.rows
    redundancy, coverage = nearness(Features(case.unit), chosen)
    assert redundancy is not None
    assert (redundancy.asked, coverage.asked) == ((30, 30), (50, N))
    wanted = brute(case.unit, sample(N, 50, 0), chosen, True)
    assert coverage.cosines.groups[1].mean == pytest.approx(wanted.mean(), abs=1e-6)
    assert coverage.cosines.groups[0].count == 150


def test_a_copy_is_a_neighbour_and_only_another_row_counts():
    features = Features(np.array([[1.0, 0], [1, 0], [0, 1], [0, 0]]))
    everything = np.arange(4)
    done: Callable[[int], None] = lambda _: None  # noqa: E731
    apart, covered = nearest(features, everything, everything, features[:], done)
    assert apart.tolist() == [1, 1, 0, 0]
    assert covered.tolist() == [1, 1, 1, 0]
    redundancy, coverage = nearness(features, np.array([2]))
    assert redundancy is None
    assert coverage.cosines.groups[1].mean == 0.25


@pytest.mark.parametrize(("n", "size"), [(1000, 10), (10, 10), (5, 10)])
def test_a_sample_is_of_distinct_positions(n, size):
    seen = [sample(n, size, seed).tolist() for seed in range(3)]
    assert all(len(set(s)) == min(n, size) and s == sorted(s) and s[-1] < n for s in seen)
    assert (seen[0] != seen[1]) == (size < n)


def test_costs_are_sums(case, choice):
    examples, characters = choice.costs
    assert (examples.unit, examples.subset, examples.pool) == ("examples", 30, N)
    assert characters.unit == "characters"
    assert characters.subset == sum(len(text(int(row))) for row in case.manifest.rows)
    assert characters.pool == pytest.approx(sum(len(text(i)) for i in range(N)))
    assert not characters.about


def test_a_budget_of_tokens_is_told_in_tokens(case, tmp_path):
    tokens = np.arange(1.0, N + 1)
    manifest = select(case.scores, "500 tokens", "top_k", costs={"tokens": tokens}).save(tmp_path / "s.jsonl")
    choice = selection_choice(manifest, Beside(examples=case.pool, pool=case.pool.index), tmp_path)
    assert [cost.unit for cost in choice.costs] == ["examples", "tokens"]
    assert choice.costs[1].subset == tokens[manifest.rows].sum()
    assert choice.costs[1].limit == 500
    assert dict(choice.made)["budget"] == (
        f"asked 500 tokens, got {len(manifest)} examples, {choice.costs[1].subset:g} of 500 tokens"
    )


# ------------------------------------------------------------------ how it was made


def test_how_it_was_made(case, choice):
    made = dict(choice.made)
    assert made["method"] == "dedup | top_k"
    assert made["parameters"].startswith("dedup: threshold=0.98")
    assert made["budget"] == "asked 10%, got 30 examples"
    assert (made["seed"], made["scores"], made["model"]) == ("3", "grad_dot, cosine=False", "M, T")
    assert made["pool"].startswith("./pool.jsonl, 300 examples, ")
    assert choice.dropped == [("dedup", "near-duplicate", 150)]
    report = selection_document(case.manifest, choice)
    assert report.answer[0] == "dedup | top_k chose 30 of 300 examples, 10 %."
    assert choice.redundancy is not None
    assert any(f"{choice.redundancy.cosines.groups[1].mean:.3f}" in said for said in report.answer)


def test_constraints_and_weights_are_told(case, tmp_path):
    manifest = select(
        case.scores,
        20,
        "top_k",
        at_least={"code": 5},
        at_most={"web": "50%"},
        groups=["a", "b", "b", "b"],
        weights={"a": 2.0},
    ).save(tmp_path / "subset.jsonl")
    made = dict(selection_choice(manifest, Beside(), tmp_path).made)
    assert made["at least, by source"] == "code=5"
    assert made["at most, by source"] == "web=50%"
    assert made["targets in each group"] == "a=1, b=3"
    assert made["weights of targets"] == "a=2.0"


# ------------------------------------------------------------------ examples


def test_the_chosen_examples_are_the_ends_and_the_middle_of_the_ranks(case, choice):
    assert [[row.rank for row in gallery.rows] for gallery in choice.chosen] == [
        [1, 2, 3, 4],
        [14, 15, 16, 17],
        [27, 28, 29, 30],
    ]
    for row in (row for gallery in choice.chosen for row in gallery.rows):
        line = case.manifest.lines[row.rank - 1]
        assert (row.row, row.source, row.score) == (line["row"], line["source"], line["score"])
        assert (row.text, row.prompt, row.image) == (text(row.row), None, None)


@pytest.mark.parametrize("k", [1, 3, 5, 8, 11, 12, 13])
def test_of_few_rows_each_is_shown_once(case, k, tmp_path):
    manifest = select(case.scores, k, "top_k").save(tmp_path / "subset.jsonl")
    found = selection_choice(manifest, Beside(examples=case.pool), tmp_path).chosen
    ranks = [row.rank for gallery in found for row in gallery.rows]
    assert sorted(set(ranks)) == ranks
    assert len(ranks) == min(k, 12)


def test_the_best_left_out_are_the_best_and_say_why(case, choice):
    best, others = choice.left
    wanted = sorted(case.out, key=lambda i: (-case.mean[i], case.pool[i].id))[:8]
    assert [row.row for row in best.rows] == wanted
    assert [row.score for row in best.rows] == pytest.approx(case.mean[wanted])
    dropped = {row["row"] for row in case.manifest.meta["dropped"]["rows"]}
    assert len(dropped) == 150
    notes = [row.note for row in best.rows]
    assert notes == ["dropped by dedup: near-duplicate" if row in dropped else None for row in wanted]
    assert len(set(notes)) == 2 or all(notes)
    assert {row.row for row in others.rows} <= set(case.out) - set(wanted)
    assert len(others.rows) == 4
    assert all(row.text == text(row.row) for gallery in choice.left for row in gallery.rows)


def test_ties_go_by_content_id(tmp_path):
    pool = Examples.from_fields([{"text": str(i)} for i in range(40)])
    scores = Scores(np.ones((40, 1), dtype=np.float32), pool.index, ("t",), "grad_dot")
    manifest = select(scores, 5, "top_k").save(tmp_path / "subset.jsonl")
    scores.save(tmp_path / "scores.safetensors")
    beside = look_beside(manifest, tmp_path / "scores.safetensors")
    best = selection_choice(manifest, beside, tmp_path).left[0]
    ids = sorted(set(pool.index.ids) - set(manifest.ids))[:8]
    assert [row.row for row in best.rows] == [pool.index.ids.index(name) for name in ids]


def test_a_whole_pool_leaves_nothing_out(case, tmp_path):
    manifest = select(case.scores, "100%", "top_k").save(tmp_path / "subset.jsonl")
    choice = selection_choice(manifest, look_beside(manifest, **case.paths), tmp_path)
    assert choice.left == []
    assert choice.coverage is not None
    assert choice.coverage.cosines.groups[1].mean == pytest.approx(1, abs=1e-6)
    assert choice.coverage.random_means == pytest.approx([1, 1, 1], abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "prompt", "said"),
    [
        ({"prompt": "Why?", "response": "So."}, "Why?", "So."),
        (
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "Why?"},
                    {"role": "assistant", "content": "So."},
                ]
            },
            "Be brief.\nWhy?",
            "So.",
        ),
        ({"prompt": "Why?", "chosen": "So.", "rejected": "No."}, "Why?", "better: So.\nworse: No."),
        (
            {
                "chosen": [{"role": "assistant", "content": "So."}],
                "rejected": [{"role": "assistant", "content": "No."}],
            },
            None,
            "better: So.\nworse: No.",
        ),
        ({"text": "A film.", "label": "bad"}, "A film.", "label bad"),
        ({"text": "x" * 5000}, None, "x" * 1500 + " …"),
    ],
    ids=["pair", "messages", "preference", "preference-messages", "label", "long"],
)
def test_texts_of_every_kind(fields, prompt, said, tmp_path):
    pool = Examples.from_fields([fields])
    manifest = select(pool.index, 1, "random").save(tmp_path / "subset.jsonl")
    (gallery,) = selection_choice(manifest, Beside(examples=pool), tmp_path).chosen
    assert (gallery.rows[0].prompt, gallery.rows[0].text) == (prompt, said)


def test_images_are_shown(tmp_path):
    Image.new("RGB", (16, 8), "red").save(tmp_path / "red.png")
    turns = [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Same?"}],
        },
        {"role": "assistant", "content": "Yes."},
    ]
    red = str(tmp_path / "red.png")
    pool = Examples.from_fields(
        [
            {"image": red, "caption": "one"},
            {"messages": turns, "images": [red, (tmp_path / "red.png").read_bytes()]},
            {"image": red, "label": 3},
        ]
    )
    manifest = select(pool.index, 3, "random").save(tmp_path / "subset.jsonl")
    choice = selection_choice(manifest, Beside(examples=pool), tmp_path)
    rows: dict[int, Row] = {row.row: row for gallery in choice.chosen for row in gallery.rows}
    sizes = {row: Image.open(tmp_path / str(shown.image)).size for row, shown in rows.items()}
    assert sizes == {0: (16, 8), 1: (32, 8), 2: (16, 8)}
    assert (rows[1].prompt, rows[1].text, rows[2].text) == ("Same?", "Yes.", "label 3")
    assert render(selection_document(manifest, choice), tmp_path).count("data:image/png;base64,") == 3


# ------------------------------------------------------------------ what is there, and what is not


def moved(case: Case, folder: Path, **run: Any) -> Manifest:
    """The manifest in a folder of its own, from where its data are not found, but for what the run names."""
    meta = {**case.manifest.meta, "dataset": {**case.manifest.meta["dataset"], "path": "./gone.jsonl"}}
    manifest = Manifest(
        folder / "subset.jsonl", case.manifest.lines, {**meta, **({"run": run} if run else {})}
    )
    manifest.save()
    return manifest


def test_a_manifest_alone_has_a_page_that_says_what_is_missing(case, tmp_path):
    manifest = moved(case, tmp_path)
    page, choice = selection_report(manifest.path)
    assert page == tmp_path / "subset.html"
    assert [said.split(":")[0] for said in choice.missing] == [
        "Scores of the pool, and the best examples that were left out",
        "Redundancy and coverage",
        "Examples, and their characters",
    ]
    for option, said in zip(("--scores", "--store", "--data"), choice.missing, strict=True):
        assert option in said
    assert "gone.jsonl: no such file" in choice.missing[2]
    assert (choice.redundancy, choice.coverage, choice.chosen, choice.left) == (None, None, [], [])
    assert all(mix.pool is None for mix in choice.sources)
    assert [group.name for group in choice.scores[0].groups] == ["subset"]
    assert choice.gain is not None
    html = page.read_text()
    assert "books &lt;b&gt;" in html
    assert "books <b>" not in html


def test_what_is_given_is_used(case, tmp_path):
    manifest = moved(case, tmp_path)
    _, choice = selection_report(
        manifest.path, tmp_path / "page.html", data=case.folder / "pool.jsonl", **case.paths
    )
    assert choice == replace_made(case.choice(tmp_path), choice)
    assert choice.missing == []
    assert [p.name for p in tmp_path.glob("*.html")] == ["page.html"]


def replace_made(choice: Choice, other: Choice) -> Choice:
    """``choice`` as made elsewhere: only the place of the pool differs."""
    return choice.model_copy(update={"made": other.made})


def test_what_the_run_names_is_used(case, tmp_path):
    manifest = moved(
        case, tmp_path, scores=str(case.folder / "scores.safetensors"), store=str(case.folder / "store")
    )
    choice = selection_choice(manifest, look_beside(manifest), tmp_path)
    assert len(choice.scores) == 1 + TARGETS
    assert choice.redundancy is not None
    assert len(choice.missing) == 1


def test_what_a_run_in_one_shot_keeps_is_used(case, tmp_path):
    manifest = moved(case, tmp_path)
    kept = tmp_path / "subset.sketches"
    store_of(kept / "pool", case.pool, case.unit.astype(np.float32))
    case.scores.save(kept / "scores.safetensors")
    choice = selection_choice(manifest, look_beside(manifest), tmp_path)
    assert len(choice.scores) == 1 + TARGETS
    assert choice.coverage is not None


def test_what_is_kept_of_another_run_is_left_out(case, tmp_path):
    manifest = moved(case, tmp_path)
    Scores(-case.scores.values, case.pool.index, case.scores.targets, "grad_dot").save(
        tmp_path / "subset.sketches" / "scores.safetensors"
    )
    beside = look_beside(manifest)
    assert beside.evidence is None
    assert any("not the scores that" in said for said in beside.missing)


def test_scores_and_stores_of_other_examples_are_refused(case, tmp_path):
    other = Examples.from_fields([{"text": f"other {i}"} for i in range(N)])
    Scores(case.scores.values, other.index, case.scores.targets, "grad_dot").save(tmp_path / "scores")
    store_of(tmp_path / "store", other, case.unit.astype(np.float32))
    for name in ("scores", "store"):
        with pytest.raises(InputError, match=f"{name}: of other examples than the pool of"):
            look_beside(case.manifest, **{name: tmp_path / name})


def test_data_that_have_changed_are_refused(case, tmp_path):
    rows = [{"text": text(i), "source": "web"} for i in range(N)]
    first = int(case.manifest.rows[0])
    rows[first] = {"text": "something else", "source": "web"}
    path = write(tmp_path / "pool.jsonl", rows)
    with pytest.raises(InputError, match=f"pool.jsonl: row {first} is not the example that"):
        look_beside(case.manifest, data=path)


def test_more_data_than_the_pool_show_the_chosen_rows(case, tmp_path):
    rows = [{"text": text(i), "source": "web"} for i in range(N)] + [{"text": "more", "source": "web"}]
    manifest = moved(case, tmp_path)
    beside = look_beside(manifest, data=write(tmp_path / "more.jsonl", rows))
    assert beside.pool is None
    choice = selection_choice(manifest, beside, tmp_path)
    assert choice.chosen[0].rows[0].text == text(int(manifest.rows[0]))
    assert choice.costs[1].pool is None
    assert choice.left == []


def test_places_are_found_in_any_order(case):
    order = np.random.default_rng(0).permutation(N)
    shuffled = case.pool[order]
    found = case.manifest.positions(shuffled.index)
    assert [shuffled[int(i)].id for i in found] == list(case.manifest.ids)


@pytest.fixture
def grouped(case, tmp_path) -> tuple[Manifest, Path]:
    """A selection for two groups of targets, each in a file of its own, one thrice the other's size."""
    maths = [{"text": "one and one"}]
    code = [{"text": f"def f{i}()"} for i in range(3)]
    a, b = write(tmp_path / "maths.jsonl", maths), write(tmp_path / "code.jsonl", code)
    ids = [*read_examples(a).index.ids, *read_examples(b).index.ids]
    scores = Scores(case.scores.values, case.pool.index, tuple(ids), "grad_dot")
    scores.save(tmp_path / "scores.safetensors")
    groups = ["maths", "code", "code", "code"]
    selection = select(scores, 20, "top_k", groups=groups, weights={"maths": 3.0})
    run = {"model": "m", "pool": "p", "target": {"maths": "./maths.jsonl", "code": "./code.jsonl"}}
    manifest = replace(selection, why={**selection.why, "run": run}).save(tmp_path / "subset.jsonl")
    return manifest, tmp_path / "scores.safetensors"


def test_scores_are_shown_by_group_of_targets(case, grouped, tmp_path):
    manifest, scores = grouped
    choice = selection_choice(manifest, look_beside(manifest, scores), tmp_path)
    values = case.scores.values.astype(np.float64)
    maths, code = values[:, 0], values[:, 1:].mean(axis=1)
    assert [h.of for h in choice.scores] == ["mean score", "score for maths", "score for code"]
    for shown, wanted in zip(choice.scores, (0.75 * maths + 0.25 * code, maths, code), strict=True):
        assert shown.groups[0].mean == pytest.approx(wanted.mean())
        assert shown.groups[1].mean == pytest.approx(wanted[manifest.rows].mean())


def test_groups_that_nothing_tells_are_said_to_be_missing(case, grouped, tmp_path):
    manifest, scores = grouped
    (tmp_path / "code.jsonl").unlink()
    choice = selection_choice(manifest, look_beside(manifest, scores), tmp_path)
    assert choice.scores[0].groups[0].mean == pytest.approx(case.mean.mean())
    assert any("code.jsonl" in said and "means over all targets" in said for said in choice.missing)


# ------------------------------------------------------------------ the command


def run(monkeypatch, capsys, *words: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["backcast", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0), *capsys.readouterr()


def test_the_command_writes_the_page_and_prints_its_numbers(case, choice, tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.html"
    options = [word for name, path in case.paths.items() for word in (f"--{name}", path)]
    words = ["report", case.manifest.path, "-o", page, *options]
    code, out, _ = run(monkeypatch, capsys, *words, "--json")
    assert code == 0
    assert json.loads(out) == {"report": str(page), **choice.to_json()}
    first = page.read_bytes()
    assert run(monkeypatch, capsys, *words)[1] == f"report  {page}\n"
    assert page.read_bytes() == first


def test_the_command_refuses_what_it_cannot_do(case, tmp_path, monkeypatch, capsys):
    for words, said in (
        (["report", tmp_path, "--scores", "x"], "are for the page of a manifest"),
        (["report", case.manifest.path, "-o", tmp_path / "page.txt"], "the name of a page ends in .html"),
        (["report", tmp_path / "none.jsonl"], "no such manifest"),
        (["report", case.manifest.path, "--store", tmp_path], "not a sketch store"),
    ):
        code, _, err = run(monkeypatch, capsys, *words)
        assert code == 2
        assert said in err
        assert err.count("\n") == 1
