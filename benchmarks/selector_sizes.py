"""How large a pool can be chosen from, how long does it take, and are the picks those of other packages?

**Size.** A store of half-precision rows is made from the real sketches of docstrings (a small Llama, warmed up) plus
Gaussian noise, its length drawn for each row, so that rows resemble each other as neighbours do; its scores for 100
targets in five groups are written with ``attribute(..., out=)``. Each selector then runs in a process of its own, which
opens both, selects and saves the manifest. The peak is that process's resident memory, mapped files included.

**Quality.** What approximations lose: the objective of their picks, exactly computed, over that of the exact greedy.

**Peers.** The same inputs to apricot, submodlib and plain implementations of the algorithms that DeepCore runs: are the
picks the same, and how long do both take, in turns.

**Bytes.** The manifest of each selector, written in two processes with one and with two threads.

Rows: check, selector, n, k, seconds (of the clock; to select and save), opening, cpu_seconds (of the whole process),
peak_gib, exponent, value, peer, peer_seconds, note.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import Row, arguments, clock, interleave, write

from backcast.attribution import Scores, SketchStore, attribute, collect
from backcast.attribution.store import Header
from backcast.data import Rows, read_examples
from backcast.errors import InputError
from backcast.files import read_json, sha256_file, write_json
from backcast.finetune.train import finetune
from backcast.kernels import SketchSpec
from backcast.multimodal import load_task
from backcast.progress import progress
from backcast.recipes.demo.docstrings import Docstrings
from backcast.selectors import Allowance, Evidence, Method, select
from backcast.selectors.methods.facility_location import (
    Cover,
    Dense,
    Sparse,
    benefits,
    default_neighbours,
    lazy_greedy,
    stochastic_greedy,
)
from backcast.vectors import Features, neighbour_graph

RUNS = Path("runs/selectors")
DIM, SHARD_ROWS = 512, 8192
TARGETS, GROUPS = 100, 5

#: Selector → the most rows, and how many of 100 are chosen, in the sizes of the pool's series.
LARGE = {
    "random": 5.0,
    "top_k": 5.0,
    "less": 5.0,
    "round_robin": 5.0,
    "vote": 5.0,
    "quota": 5.0,
    "importance": 5.0,
    "middle": 5.0,
    "cluster": 5.0,
    "dedup | top_k": 5.0,
}
SMALL = {
    "facility_location": 5.0,
    "k_center": 5.0,
    "herding": 5.0,
    "graph_cut": 5.0,
    "log_det": 1.0,
}
SIZES = {"large": (31_623, 100_000, 316_228, 1_000_000), "small": (10_000, 31_623, 100_000)}
QUICK = {"large": (5_000, 20_000), "small": (1_000, 4_000)}


# ------------------------------------------------------------------ the store


def real_sketches() -> tuple[np.ndarray, np.ndarray]:
    """(2000, 512) sketches of docstrings and (100, 512) of the wanted package's, of a small Llama after 150 steps."""
    folder = RUNS / "real"
    if not (folder / "made.json").is_file():
        setting = Docstrings()
        setting.write(folder, 0, quick=True)
        pool, target = (read_examples(folder / f"{name}.jsonl") for name in ("pool", "target"))
        model, task = load_task(str(folder / "model"), pool)
        finetune(model, task, pool, setting.plan(True).warmup, seed=0)
        wanted = collect(model, task, target[:TARGETS], folder / "wanted", spec=SketchSpec("kron", DIM))
        collect(model, task, pool, folder / "sketches", like=wanted)
        write_json(folder / "made.json", True)
    sketches, wanted = (SketchStore.open(folder / name).sketches() for name in ("sketches", "wanted"))
    return sketches, wanted


def noisy(real: np.ndarray, n: int) -> Iterator[np.ndarray]:
    """Blocks of n unit rows: real sketches in turn, each with noise of 0.05 to 0.8 of its length."""
    unit = real / np.linalg.norm(real, axis=1, keepdims=True)
    for start in range(0, n, SHARD_ROWS):
        rng = np.random.default_rng([start, 1])
        rows = min(SHARD_ROWS, n - start)
        noise = rng.standard_normal((rows, DIM), dtype=np.float32) / np.sqrt(DIM)
        lengths = rng.uniform(0.05, 0.8, (rows, 1)).astype(np.float32)
        yield unit[rng.integers(0, len(unit), rows)] + lengths * noise


def make(n: int, real: np.ndarray, wanted: np.ndarray) -> Path:
    """The folder of a store of n rows and of its scores, made once."""
    folder = RUNS / f"rows-{n}"
    if (folder / "scores.safetensors").is_file():
        return folder
    train = write_store(folder / "store", n, noisy(real, n))
    target = write_store(folder / "target", len(wanted), iter([wanted]))
    groups = [f"group {t % GROUPS}" for t in range(len(wanted))]
    write_json(folder / "groups.json", groups)
    attribute(train, target, "tracin", cosine=True, out=folder / "scores.safetensors")
    return folder


def write_store(path: Path, n: int, blocks: Iterator[np.ndarray]) -> SketchStore:
    # ids as scattered as real ones, without hashing a million texts
    digits = np.random.default_rng(n).bytes(32 * n).hex()
    ids = tuple(digits[64 * i : 64 * i + 64] for i in range(n))
    rows = Rows(ids, np.arange(n), tuple(f"source {i % 7}" for i in range(n)))
    checkpoint = {"name": "model", "learning_rate": 1.0, "sha256": "0"}
    header = Header(
        SketchSpec("kron", DIM), {"layer": [DIM, DIM]}, rows, (checkpoint,), "float16", SHARD_ROWS
    )
    store = SketchStore.create(path, header)
    with progress(f"writing {n} rows", n) as done:
        for shard, block in enumerate(blocks):
            store.write(0, shard, block)
            done(len(block))
    return SketchStore.open(path)


# ------------------------------------------------------------------ one selection in a process of its own


def child(folder: Path, method: str, count: int, out: Path) -> None:
    """Open, select, save; print the seconds of both halves and the peak."""
    start = time.perf_counter()
    store = SketchStore.open(folder / "store")
    scores = Scores.load(folder / "scores.safetensors")
    opened = time.perf_counter()
    groups = read_json(folder / "groups.json")
    chosen = select(scores, count, method, features=store, groups=groups)
    chosen.save(out)
    end = time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak, cpu = used.ru_maxrss / 2**20, used.ru_utime + used.ru_stime
    print(
        json.dumps(
            {
                "opening": opened - start,
                "seconds": end - opened,
                "peak_gib": peak,
                "cpu_seconds": cpu,
                "got": len(chosen),
            }
        )
    )


def selection(folder: Path, method: str, count: int, out: Path, threads: int = 2) -> dict[str, float]:
    out.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, __file__, "--child", str(folder), method, str(count), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-1500:])
    return json.loads(done.stdout.splitlines()[-1])


def kept(name: str, measure: Callable[[], Any]) -> Any:
    """What a stage measured, kept so that a stopped benchmark goes on from there."""
    file = RUNS / "checks" / f"{name.replace(' | ', '+')}.json"
    if not file.is_file():
        write_json(file, measure())
    return read_json(file)


# ------------------------------------------------------------------ size


def sizes(folders: dict[int, Path], series: dict[str, float], steps: tuple[int, ...]) -> Iterator[Row]:
    for method, per_cent in series.items():
        if not known(method):
            continue
        rows = []
        for n in steps:
            count = int(n * per_cent / 100)
            name = f"size-{method}-{n}"
            out = RUNS / "manifests" / "subset.jsonl"
            found = kept(name, lambda m=method, n=n, c=count, o=out: selection(folders[n], m, c, o))
            rows.append(row("size", method, n, count, **found))
            print(
                f"{method} {n}: {found['seconds']:.1f} s, {found['peak_gib']:.2f} GiB",
                file=sys.stderr,
                flush=True,
            )
        slope = np.polyfit(np.log([r["n"] for r in rows]), np.log([r["seconds"] for r in rows]), 1)[0]
        rows[-1]["exponent"] = float(slope)
        yield from rows


def known(method: str) -> bool:
    try:
        Method.parse(method)
    except InputError:
        return False
    return True


def row(check: str, selector: str, n: int, k: int, **found: Any) -> Row:
    return {
        "check": check,
        "selector": selector,
        "n": n,
        "k": k,
        "seconds": found.get("seconds"),
        "opening": found.get("opening"),
        "cpu_seconds": found.get("cpu_seconds"),
        "peak_gib": found.get("peak_gib"),
        "exponent": None,
        "value": found.get("value"),
        "peer": found.get("peer"),
        "peer_seconds": found.get("peer_seconds"),
        "note": found.get("note"),
    }


# ------------------------------------------------------------------ quality


def quality(real: np.ndarray, noisy_rows: np.ndarray, k_per_cent: float) -> Iterator[Row]:
    """What is lost beside the exact greedy; facility location over neighbours and by draws, the rest as they are."""
    for name, x in (("docstrings", real), ("docstrings and noise", noisy_rows)):
        features = Features.of(x)
        n = len(features)
        k, weights, names = int(n * k_per_cent / 100), np.ones(n), np.arange(n)
        dense = Dense(benefits(features.points(), weights))
        exact = covered(dense, lazy_greedy(Cover(dense, weights), Allowance.of(k, n), names)[0])
        near = Sparse(neighbour_graph(features, default_neighbours(n, k)), weights)
        sparse = lazy_greedy(Cover(near, weights), Allowance.of(k, n), names)[0]
        yield row(
            "quality", "facility_location, neighbours", n, k, value=covered(dense, sparse) / exact, note=name
        )
        draws = int(np.ceil(n / k * np.log(1 / 0.01)))
        rng = np.random.Generator(np.random.PCG64(0))
        drawn = stochastic_greedy(Cover(dense, weights), Allowance.of(k, n), names, draws, rng)[0]
        yield row(
            "quality", "facility_location(epsilon=0.01)", n, k, value=covered(dense, drawn) / exact, note=name
        )
        unit = features[:].astype(np.float64)
        for method, peer, objective in (
            ("k_center", farthest_first, radius),
            ("herding", herd, mean_error),
        ):
            own = select(anonymous(n), k, method, features=x).indices
            first = int(own[0])
            value = objective(unit, peer(unit, k, first)) / objective(unit, own)
            yield row("quality", method, n, k, value=value, note=f"{name}; the exact greedy's, over ours")


def covered(dense: Dense, picks: Sequence[int]) -> float:
    """Facility location of the picks."""
    return float(dense.values[list(picks)].max(axis=0).astype(np.float64).sum())


def radius(x: np.ndarray, picks: Sequence[int]) -> float:
    return float((1 - (x @ x[picks].T).max(axis=1)).max())


def mean_error(x: np.ndarray, picks: Sequence[int]) -> float:
    return float(np.linalg.norm(x.mean(axis=0) - x[picks].mean(axis=0)))


def anonymous(n: int) -> Rows:
    return Rows(tuple(f"{i:08d}" for i in range(n)), np.arange(n), ("memory",) * n)


# ------------------------------------------------------------------ peers


def farthest_first(x: np.ndarray, k: int, first: int) -> list[int]:
    """Gonzalez's algorithm over all distances, as DeepCore runs it."""
    squares = np.square(x).sum(axis=1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0))
    picks, nearest = [first], apart[first].copy()
    while len(picks) < k:
        picks.append(int(nearest.argmax()))
        np.minimum(nearest, apart[picks[-1]], out=nearest)
    return picks


def herd(x: np.ndarray, k: int, first: int) -> list[int]:
    """Welling's herding, each row once, as DeepCore runs it: the row nearest to what the mean still lacks."""
    mean, total, left = x.mean(axis=0), np.zeros(x.shape[1]), np.ones(len(x), dtype=bool)
    picks: list[int] = []
    for t in range(k):
        value = np.where(left, x @ ((t + 1) * mean - total), -np.inf)
        picks.append(int(value.argmax()))
        left[picks[-1]] = False
        total += x[picks[-1]]
    return picks


def by_submodlib(function: str, **given: Any) -> Callable[[np.ndarray, int, int], list[int]]:
    def run(x: np.ndarray, k: int, first: int) -> list[int]:
        import submodlib

        peer = getattr(submodlib, function)(
            n=len(x), mode="dense", **{key: make(x) for key, make in given.items()}
        )
        optimizer = "NaiveGreedy" if function == "LogDeterminantFunction" else "LazyGreedy"
        return [j for j, _ in peer.maximize(budget=k, optimizer=optimizer, show_progress=False)]

    return run


def by_apricot(
    function: str, kernel: Callable[[np.ndarray], np.ndarray], **given: Any
) -> Callable[..., list[int]]:
    def run(x: np.ndarray, k: int, first: int) -> list[int]:
        import apricot

        peer = getattr(apricot, function)(k, metric="precomputed", optimizer="lazy", **given)
        return peer.fit(kernel(x)).ranking.tolist()

    return run


def similar(x: np.ndarray) -> np.ndarray:
    return np.maximum(x @ x.T, 0)


def shifted(x: np.ndarray) -> np.ndarray:
    return (1 + x @ x.T) / 2


PEERS: dict[tuple[str, str], Callable[[np.ndarray, int, int], list[int]]] = {
    ("facility_location", "submodlib"): by_submodlib(
        "FacilityLocationFunction", sijs=similar, separate_rep=lambda x: False
    ),
    ("facility_location", "apricot"): by_apricot("FacilityLocationSelection", similar),
    ("graph_cut", "submodlib"): by_submodlib("GraphCutFunction", ggsijs=shifted, lambdaVal=lambda x: 0.5),
    ("graph_cut", "apricot"): by_apricot("GraphCutSelection", shifted, alpha=2),
    ("log_det(ridge=0.5)", "submodlib"): by_submodlib(
        "LogDeterminantFunction", sijs=lambda x: x @ x.T, lambdaVal=lambda x: 0.5
    ),
    ("k_center", "DeepCore's algorithm"): farthest_first,
    ("herding", "DeepCore's algorithm"): herd,
}


def peers(x: np.ndarray, k: int, rounds: int) -> Iterator[Row]:
    """The same rows, rounded as ours are, so that ties and near-ties are the same for both; seconds in turns."""
    points = Features.of(x).points()
    wide, pool = points.astype(np.float64), anonymous(len(x))
    for (method, package), peer in PEERS.items():
        if package in ("submodlib", "apricot") and find_spec(package) is None:
            yield row("peer", method, len(x), k, peer=package, note="not installed")
            continue
        rng = np.random.Generator(np.random.PCG64(0))

        def ours(method: str = method, rng: np.random.Generator = rng) -> np.ndarray:
            evidence = Evidence(pool, features=AsTheyAre(points))
            return Method.parse(method).selector.select(evidence, Allowance.of(k, len(x)), rng).indices

        own = ours()
        theirs = peer(wide, k, int(own[0]))
        taken = interleave(
            {
                "ours": lambda run=ours: clock(run),
                "theirs": lambda run=peer, first=int(own[0]): clock(lambda: run(wide, k, first)),
            },
            rounds,
            slow={"theirs"} if package == "apricot" else (),
        )
        same = next((i for i, (a, b) in enumerate(zip(own, theirs, strict=True)) if a != b), k)
        yield row(
            "peer",
            method,
            len(x),
            k,
            seconds=median(taken["ours"]),
            value=len({*own.tolist()} & {*theirs}) / k,
            peer=package,
            peer_seconds=median(taken["theirs"]),
            note=f"the first {same} picks of {k} are the same",
        )


class AsTheyAre(Features):
    """Points that are rounded already: at unit length anew they would not be the peers'."""

    def __getitem__(self, positions: slice | np.ndarray) -> np.ndarray:
        where = positions if self._positions is None else self._positions[positions]
        return np.asarray(self._source)[where]

    def take(self, positions: slice | np.ndarray) -> Features:
        where = np.arange(len(self))[positions] if self._positions is None else self._positions[positions]
        return AsTheyAre(np.asarray(self._source), where)


# ------------------------------------------------------------------ bytes


def bytes_alike(folder: Path, n: int, count: int) -> Iterator[Row]:
    for method in (*LARGE, *SMALL):
        sums = []
        for threads in (1, 2):
            out = RUNS / "manifests" / f"threads-{threads}" / "subset.jsonl"
            selection(folder, method, count, out, threads)
            sums.append([sha256_file(out), sha256_file(out.with_suffix(".meta.json"))])
        yield row(
            "bytes", method, n, count, value=float(sums[0] == sums[1]), note="1 and 2 threads, two processes"
        )


# ------------------------------------------------------------------


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        folder, method, count, out = sys.argv[2:]
        child(Path(folder), method, int(count), Path(out))
        return
    args = arguments(__doc__ or "")
    steps = QUICK if args.quick else SIZES
    real, wanted = real_sketches()
    folders = {n: make(n, real, wanted) for n in sorted({*steps["large"], *steps["small"]})}
    rows = [*sizes(folders, LARGE, steps["large"]), *sizes(folders, SMALL, steps["small"])]
    mixed = np.concatenate([*noisy(real, 5_000)])
    more = quality(real[:500], mixed[:1000], 5) if args.quick else quality(real, mixed, 5)
    rows += kept("quality" + "-quick" * args.quick, lambda: list(more))
    small = peers(real[:300], 30, 1) if args.quick else peers(real, 100, 3)
    rows += kept("peers" + "-quick" * args.quick, lambda: list(small))
    least = steps["small"][0]
    rows += kept(f"bytes-{least}", lambda: list(bytes_alike(folders[least], least, least // 20)))
    write("selectors", rows, args.json)
    if not args.quick:
        plot(rows, Path("docs/selector-sizes.png"))


def plot(rows: Sequence[Row], path: Path) -> None:
    """Seconds against rows, a line a selector."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for method in (*LARGE, *SMALL):
        line = [r for r in rows if r["check"] == "size" and r["selector"] == method]
        if line:
            style = "--" if method in SMALL else "-"
            label = f"{method}  n^{line[-1]['exponent']:.2f}"
            axes.plot(
                [r["n"] for r in line], [r["seconds"] for r in line], f"o{style}", label=label, markersize=3
            )
    axes.set(xscale="log", yscale="log", xlabel="rows of 512 numbers", ylabel="seconds, two shared cores")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
