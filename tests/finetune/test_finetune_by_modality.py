"""The subsets of a sweep by modality, against their definition row by row; and the laws made of its table."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import numpy as np
import pytest

from backcast.data import Examples
from backcast.errors import InputError
from backcast.finetune import Run, aligned, by_modality, laws_by_modality
from backcast.multimodal.parts import Parts, Split
from backcast.selectors import select

N = 90
#: The image's share of |image| + |text|, and rows of each class: 30 image-driven, 40 text-driven, 20 mixed.
SHARES = np.array([0.9] * 20 + [2 / 3 + 1e-9] * 10 + [0.0] * 25 + [0.33] * 15 + [0.5] * 20)
CLASS = np.array(["image"] * 30 + ["text"] * 40 + ["mixed"] * 20)
SELECTORS = {"image": "image-driven", "text": "text-driven", "mixed": "mixed"}


def examples() -> Examples:
    return Examples.from_fields([{"text": f"row {i}"} for i in range(N)])


def parts() -> dict[str, np.ndarray]:
    """Signed, of all sizes."""
    rng = np.random.default_rng(0)
    size, signs = rng.uniform(0.1, 10, N), rng.choice([-1, 1], (2, N))
    return {"image": signs[0] * size * SHARES, "text": signs[1] * size * (1 - SHARES)}


def named(runs: list[Run]) -> dict[tuple[str, int, int], Run]:
    return {(run.selector, len(run.rows), run.seed): run for run in runs}


def test_every_class_size_and_seed_is_run_and_a_random_subset_beside_it() -> None:
    runs = by_modality(parts(), examples(), [5, "10", 20], seeds=2)
    expected = [
        (selector, modality, budget, n, seed)
        for selector, modality in [*((SELECTORS[c], c) for c in SELECTORS), ("random", "all")]
        for budget, n in (("5", 5), ("10", 10), ("20", 20))
        for seed in (0, 1)
    ]
    assert [(r.selector, r.modality, r.budget, len(r.rows), r.seed) for r in runs] == expected


def test_subsets_are_of_their_class_nested_and_without_repetition() -> None:
    runs = by_modality(parts(), examples(), [5, 10, 20], seeds=3)
    found = named(runs)
    for run in runs:
        assert len(set(run.rows)) == len(run.rows)
        if run.modality != "all":
            assert set(CLASS[list(run.rows)]) == {run.modality}
    for selector in (*SELECTORS.values(), "random"):
        for seed in range(3):
            small, middle, large = (found[selector, n, seed].rows for n in (5, 10, 20))
            assert large[:10] == middle
            assert middle[:5] == small
        assert len({found[selector, 10, seed].rows for seed in range(3)}) == 3
    assert set(found["mixed", 20, 0].rows) == set(np.flatnonzero(CLASS == "mixed"))


def test_a_seed_is_one_shuffle_of_the_pool_read_class_by_class() -> None:
    """The shuffle is that of the selector ``random``."""
    pool = examples()
    found = named(by_modality(parts(), pool, [5, 20], seeds=2))
    for seed in (0, 1):
        order = select(pool.index, N, "random", seed).indices
        assert found["random", 20, seed].rows == tuple(order[:20])
        for name, selector in SELECTORS.items():
            assert found[selector, 20, seed].rows == tuple([i for i in order if CLASS[i] == name][:20])


def test_the_same_call_gives_the_same_runs_and_more_seeds_add_to_them() -> None:
    few = by_modality(parts(), examples(), [5, 10], seeds=1)
    more = by_modality(parts(), examples(), [10, 5, 20], seeds=3)
    assert few == by_modality(parts(), examples(), [5, 10], seeds=1)
    assert set(few) < set(more)


def test_percentages_are_of_the_smallest_class() -> None:
    runs = by_modality(parts(), examples(), ["25%", "100%"], seeds=1)
    assert {(r.budget, len(r.rows)) for r in runs} == {("25%", 5), ("100%", 20)}
    without = by_modality(parts(), examples(), ["25%", "100%"], 1, classes=["text", "image"])
    assert {len(r.rows) for r in without} == {8, 30}
    assert {r.selector for r in without} == {"text-driven", "image-driven", "random"}


def test_a_small_class_leaves_large_sizes_out_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="backcast"):
        runs = by_modality(parts(), examples(), [10, 20, 25, 40, 41], seeds=1)
    sizes = {
        selector: [len(r.rows) for r in runs if r.selector == selector] for selector in SELECTORS.values()
    }
    assert sizes == {"image-driven": [10, 20, 25], "text-driven": [10, 20, 25, 40], "mixed": [10, 20]}
    assert [len(r.rows) for r in runs if r.selector == "random"] == [10, 20, 25, 40]
    assert caplog.messages == [
        "image-driven: 30 rows, too few for 40, 41",
        "text-driven: 40 rows, too few for 41",
        "mixed: 20 rows, too few for 25, 40, 41",
    ]


def test_rows_without_a_split_are_nowhere() -> None:
    unsplit = parts()
    unsplit["text"][::3] = math.nan
    runs = by_modality(unsplit, examples(), [3, 6, "100%"], seeds=2)
    assert all(row % 3 for run in runs for row in run.rows)
    assert (
        max(len(r.rows) for r in runs if r.selector == "mixed")
        == (CLASS[np.arange(N) % 3 > 0] == "mixed").sum()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": [15, 21]}, r"mixed: 20 rows have room for 1 of the sizes 15, 21; a law needs two"),
        ({"sizes": [20, "100%"]}, r"image-driven: 30 rows have room for 1 of the sizes 20; a law needs two"),
        ({"sizes": [5, 91]}, r"budget 91: the pool holds only 90 examples"),
        ({"sizes": ["5", "many"]}, r"budget 'many': give a count"),
        ({"classes": ["image", "sound"]}, r"unknown classes \['sound'\]; choose from image, text, mixed"),
        ({"parts": {"image": np.ones(8), "text": np.ones(8)}}, r"not those of the pool's 90 examples"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options: Mapping, message: str) -> None:
    with pytest.raises(InputError, match=message):
        by_modality(**{"parts": parts(), "pool": examples(), "sizes": [5, 10], "seeds": 1, **options})


# ------------------------------------------------------------------ parts of a file


def saved(pool: Examples, gap: np.ndarray) -> Parts:
    """Parts of these rows, whose numbers are their places in the data set."""
    place = pool.index.rows.astype(float)
    split = Split(place, place, {"image": place, "text": -place}, place, gap)
    return Parts(pool.index, {"mean": split})


def test_parts_are_put_in_the_pools_order() -> None:
    pool = examples()
    some = pool[[7, 3, 50, 12]]
    found = aligned(saved(some, np.array([0.0, 0.0, 0.5, 0.01])), pool)
    expected = np.full(N, math.nan)
    expected[[7, 3, 12]] = 7, 3, 12  # row 50 was flagged
    np.testing.assert_array_equal(found["image"], expected)
    np.testing.assert_array_equal(found["text"], -expected)


def test_parts_of_other_rows_are_refused() -> None:
    pool = examples()
    with pytest.raises(
        InputError, match=r"row 50 of the parts is not that of the pool: it has moved or changed"
    ):
        aligned(saved(pool[[3, 50]], np.zeros(2)), pool[:40])
    changed = Examples.from_fields([{"text": f"row {i}" if i != 3 else "other"} for i in range(N)])
    with pytest.raises(InputError, match="row 3 of the parts"):
        aligned(saved(pool, np.zeros(N)), changed)


# ------------------------------------------------------------------ its laws


def table(measure: str, curve: Mapping[str, float]) -> list[dict]:
    """Noiseless runs by selector with exponents of 1 - error, or of the loss; and a run on the whole pool."""
    rows = [
        {"selector": s, "n": n, "seed": 0, "modality": s, "metric": 0.9 * n**-b, "measure": measure}
        for s, b in curve.items()
        for n in (4, 8, 16)
    ]
    rows.append({**rows[0], "selector": "full", "modality": None, "n": 64})
    return rows if measure == "loss" else [{**row, "metric": 1 - row["metric"]} for row in rows]


def test_the_metric_says_which_way_is_better() -> None:
    for measure, bounds, target in (
        ("loss", (0, math.inf), 0.9 * 8**-0.6),
        ("accuracy", (0, 1), 1 - 0.9 * 8**-0.6),
    ):
        laws = laws_by_modality(table(measure, {"image": 0.6}))
        assert list(laws) == ["image"]  # not the one on the whole pool
        assert laws["image"].bounds == bounds
        assert laws["image"].higher_is_better == (measure != "loss")
        assert laws["image"].invert(target).n == pytest.approx(8, rel=0.15)


def test_a_table_without_modalities_has_no_such_laws() -> None:
    rows = [{**row, "modality": None} for row in table("loss", {"random": 0.5})]
    with pytest.raises(InputError, match="no run in the table has a modality"):
        laws_by_modality(rows)
