"""The page of one selection, from its manifest and what lies beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from backcast.attribution import Scores, SketchStore
from backcast.data import Examples, Rows, read_examples
from backcast.errors import InputError
from backcast.files import write_atomic
from backcast.manifests import Manifest, meta_path
from backcast.recipes.selection.document import Beside, selection_choice, selection_document
from backcast.recipes.selection.one_shot import groups_of, read_targets
from backcast.recipes.selection.run_config import RunConfig
from backcast.report import render
from backcast.report.choice import Choice
from backcast.selectors import Evidence
from backcast.vectors import Features

T = TypeVar("T")

#: What is missing, and what would add it.
NO_SCORES = "Scores of the pool, and the best examples that were left out: add --scores, the file of 'backcast score'."
NO_STORE = "Redundancy and coverage: add --store, the sketches of the pool."
NO_DATA = "Examples, and their characters: add --data, the place of the data set."


def selection_report(
    subset: str | Path,
    out: str | Path | None = None,
    *,
    scores: str | Path | None = None,
    store: str | Path | None = None,
    data: str | Path | None = None,
) -> tuple[Path, Choice]:
    """Write the page of one selection; returns its path and its numbers.

    What is not given is taken from where the manifest says that it is, or from where a run in one shot keeps it, and
    left out if it is not there or has changed.

    Args:
        subset: the manifest.
        out: the page, ``*.html``; by default beside the manifest.
        scores: the pool's, the file of ``backcast score``.
        store: the pool's sketches.
        data: where the data set is now.

    Raises:
        InputError: a file that was given cannot be read, or is not the one that was selected with.
    """
    manifest = Manifest.load(subset)
    page = Path(out) if out else manifest.path.with_suffix(".html")
    if page.suffix != ".html":
        raise InputError(f"{page}: the name of a page ends in .html")
    beside = look_beside(manifest, scores, store, data)
    with tempfile.TemporaryDirectory() as folder:
        choice = selection_choice(manifest, beside, folder)
        write_atomic(page, render(selection_document(manifest, choice), folder))
    return page, choice


def look_beside(
    manifest: Manifest,
    scores: str | Path | None = None,
    store: str | Path | None = None,
    data: str | Path | None = None,
) -> Beside:
    """What is known of a selection; see `selection_report`."""
    missing: list[str] = []
    run, kept = _run(manifest), manifest.path.with_suffix(".sketches")

    def known(given: Any, named: list[Any], read: Callable[[Any], T], what: str) -> T | None:
        """What was given, else the first of those named."""
        try:
            for place in [given] if given else filter(None, named):
                return read(place)
        except InputError as error:
            if given:
                raise
            what = f"{what} ({error})"
        missing.append(what)
        return None

    evidence = known(
        scores,
        [run.scores, _if_there(kept / "scores.safetensors")],
        lambda place: _scores(manifest, run, place, missing),
        NO_SCORES,
    )
    sketches = known(
        store, [run.store, _if_there(kept / "pool")], lambda place: _store(manifest, place), NO_STORE
    )
    examples = known(data, [manifest.dataset], lambda place: _examples(manifest, place), NO_DATA)
    pools = [each.rows for each in (evidence, sketches) if each is not None]
    if examples is not None and examples.index.fingerprint == manifest.meta["dataset"]["fingerprint"]:
        pools.append(examples.index)
    return Beside(
        examples,
        evidence,
        None if sketches is None else Features.of(sketches),
        pools[0] if pools else None,
        tuple(missing),
    )


def _run(manifest: Manifest) -> RunConfig:
    """The run that made the manifest, its places looked for from there; an empty one where it tells of none."""
    try:
        return RunConfig.read(meta_path(manifest.path))
    except InputError:
        return RunConfig()


def _if_there(place: Path) -> Path | None:
    return place if place.exists() else None


def _scores(manifest: Manifest, run: RunConfig, place: str | Path, missing: list[str]) -> Evidence:
    """The scores, by the groups of targets that the selection had, where these can still be told."""
    scores = Scores.load(place)
    _check_pool(manifest, scores.train, place)
    groups: tuple[str, ...] = ()
    if "groups" in manifest.meta:
        try:
            groups = _groups(run, scores)
        except InputError as error:
            missing.append(f"Scores by group of targets ({error}); here they are means over all targets.")
            return Evidence.of(scores)
    evidence = Evidence.of(scores, groups=groups, weights=manifest.meta.get("weights", {}))
    told = [line["score"] for line in manifest.lines]
    ours = evidence.mean[manifest.positions(scores.train)]
    if None in told or not np.allclose(ours, told, rtol=1e-5, atol=1e-6 * np.abs(ours).max()):
        raise InputError(f"{place}: of the same examples, but not the scores that {manifest.path} tells")
    return evidence


def _groups(run: RunConfig, scores: Scores) -> tuple[str, ...]:
    """(m,) the group of each target, as the targets' own data tell."""
    if not (run.group_by or isinstance(run.target, Mapping)):
        raise InputError("the manifest does not tell which target is in which group")
    sets = read_targets(run)
    ids = [example.id for own in sets.values() for example in own]
    of = dict(zip(ids, groups_of(run, sets), strict=True))
    if not of.keys() >= set(scores.targets):
        raise InputError("the data of the targets have changed")
    return tuple(of[name] for name in scores.targets)


def _store(manifest: Manifest, place: str | Path) -> SketchStore:
    store = SketchStore.open(place)
    _check_pool(manifest, store.rows, place)
    return store


def _examples(manifest: Manifest, place: str | Path) -> Examples:
    examples = read_examples(place, manifest.meta["dataset"]["columns"], skip_broken=True)
    try:
        manifest.positions(examples.index)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    return examples


def _check_pool(manifest: Manifest, rows: Rows, place: str | Path) -> None:
    if rows.fingerprint != manifest.meta["dataset"]["fingerprint"]:
        raise InputError(
            f"{place}: of other examples than the pool of {manifest.path}; give what it was selected with"
        )
