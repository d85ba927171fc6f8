"""From a model, a pool and a target to a subset, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from backcast.attribution import attribute, collect
from backcast.data import read_examples
from backcast.errors import InputError
from backcast.files import whole_folder
from backcast.kernels import SketchSpec, default_kind
from backcast.manifests import Manifest, meta_path
from backcast.multimodal import check_same_kind, load_task
from backcast.multimodal.parts import Parts
from backcast.selectors import Evidence, Method, parse_budget, select


def select_subset(
    model: str,
    pool: str,
    target: str,
    out: str | Path,
    *,
    budget: str = "5%",
    method: str = "round_robin",
    seed: int = 0,
    parts: str | Path | None = None,
    dim: int = 4096,
    columns: Mapping[str, str] | None = None,
    skip_broken: bool = False,
) -> Manifest:
    """Sketch pool and target at the model's weights, score by cosine, select, and write the manifest ``out``.

    The sketches stay in a folder beside ``out`` (``subset.sketches``): another budget, method or seed takes seconds,
    and an interrupted run resumes.

    Args:
        model: a folder or an id; see `load_task`.
        pool, target: data sets; see `read_examples`, which takes ``columns`` and ``skip_broken``.
        budget, method, seed: see `select`.
        parts: the file of the pool's scores split by modality, for the methods that look at that; see `Parts`.
        dim: of the sketch.

    Raises:
        InputError: anything wrong with the input; it is looked for before the long part starts, and leaves nothing
            behind.
    """
    meta_path(out)  # for what it refuses
    if parts is None and Method.parse(method).needs_parts:
        raise InputError(
            f"{method}: needs the pool's scores split by modality; give parts=, the file of 'backcast split'"
        )
    examples, wanted = (read_examples(data, columns, skip_broken) for data in (pool, target))
    parse_budget(budget).limit(len(examples))
    split = Parts.load(parts) if parts else None
    Evidence.of(examples.index, parts=split)  # for what it refuses
    check_same_kind(examples, wanted)
    if str(Path(out).resolve()) in (examples.dataset, wanted.dataset):
        raise InputError(f"{out}: is a data set of this selection; choose another name for the manifest")
    network, task = load_task(model, examples)
    spec = SketchSpec(default_kind(next(network.parameters()).device), dim)
    sketches = Path(out).with_suffix(".sketches")
    with whole_folder(sketches):
        # The target first: it is small, so that what is wrong with it shows at once.
        wants = collect(network, task, wanted, sketches / "target", spec=spec)
        train = collect(network, task, examples, sketches / "pool", like=wants)
    scores = attribute(train, wants, "tracin", cosine=True)
    return select(scores, budget, method, seed, features=train, parts=split).save(out)
