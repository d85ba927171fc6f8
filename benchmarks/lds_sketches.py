"""What do a sketch's kind, its length and its stored precision cost in LDS?

On what `lds.py` has trained and retrained (run that first): the linear datamodeling score of `grad_dot` and `influence`
on sketches of every kind and of 64 to 16,384 numbers, and at 4,096 numbers in every stored precision.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from common import HERE, Row, write
from lds import SEEDS, SHARE, WORKERS, interval, lds, over_jobs
from lds_truth import Place, kept

from backcast.attribution import attribute, collect
from backcast.kernels import SketchSpec

SETTINGS = ("docstrings-gpt", "docstrings-lora")
LENGTHS = (64, 256, 1024, 4096, 16384)
KINDS = ("kron", "tile", "sjlt", "dense")
DTYPES = ("float16", "int8", "sign")
METHODS = ("grad_dot", "influence")
SKETCH_SEEDS = 1


def cases() -> Iterator[tuple[str, int, str]]:
    """(kind, k, dtype)"""
    for kind in KINDS:
        yield from ((kind, k, "float32") for k in LENGTHS if kind != "dense" or k <= 1024)
    yield from (("kron", 4096, dtype) for dtype in DTYPES)


def scores(place: Place, kind: str, k: int, dtype: str, seed: int) -> dict[str, np.ndarray]:
    """Each method's (n, m) on sketches with this seed."""
    torch.set_num_threads(1)
    setting, model = place.setting, place.model()
    spec = SketchSpec(kind, k, seed)
    with TemporaryDirectory() as name:
        train = collect(model, setting.task, setting.train, Path(name) / "train", spec=spec, dtype=dtype)
        target = collect(model, setting.task, setting.target, Path(name) / "target", like=train)
        methods = [method for method in METHODS if method == "grad_dot" or k <= 4096]  # k × k are inverted
        return {method: attribute(train, target, method).values for method in methods}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two lengths and one sketch of each kind")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    parser.add_argument("--work", type=Path, metavar="DIR", default=HERE.parent / "runs" / "lds")
    asked = parser.parse_args()
    places = {name: [Place(asked.work, name, seed) for seed in range(SEEDS[name])] for name in SETTINGS}
    if missing := [
        p for of in places.values() for p in of if not (p.path / f"outcomes-{SHARE:g}.npy").is_file()
    ]:
        print(f"{missing[0].path}: no retrained models there; run lds.py first", file=sys.stderr)
        sys.exit(2)
    chosen = [case for case in cases() if not asked.quick or case[1] in LENGTHS[:2]]
    sketches = 1 if asked.quick else SKETCH_SEEDS
    jobs = [
        (place, *case, sketch)
        for name in SETTINGS
        for case in chosen
        for place in places[name]
        for sketch in range(sketches)
    ]
    made = dict(zip(jobs, over_jobs(scores, jobs, "sketches", WORKERS), strict=True))
    rows: list[Row] = []
    for name in SETTINGS:
        subsets = kept(len(places[name][0].setting.train), 60, SHARE)
        outcomes = np.mean([place.outcomes(SHARE) for place in places[name]], axis=0)
        for kind, k, dtype in chosen:
            for method in METHODS:
                # The LDS of each sketch's scores, and its mean over the sketches.
                each = [
                    np.mean([made[(place, kind, k, dtype, sketch)][method] for place in places[name]], axis=0)
                    for sketch in range(sketches)
                    if method in made[(places[name][0], kind, k, dtype, sketch)]
                ]
                if each:
                    found = np.mean([lds(one, subsets, outcomes) for one in each], axis=0)
                    row: Row = {"setting": name, "method": method, "kind": kind, "k": k, "dtype": dtype}
                    rows.append({**row, **interval(found)})
    write("lds_sketches-quick" if asked.quick else "lds_sketches", rows, asked.json)


if __name__ == "__main__":
    main()
