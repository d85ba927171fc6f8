"""Which scores predict what happens when examples are left out?

The linear datamodeling score (Park et al. 2023, TRAK, definition 2.4): over random subsets, trained from scratch, the
rank correlation of a target's real loss with the sum of the scores of the rows that are kept; its mean over the
targets, with a 95 % interval by bootstrap over them. Outcomes and scores are means over the seeds, which have models of
their own. What was made is kept in ``--work`` and not made again.

Seconds are of CPU time for one model, on one thread: of our methods with the collection of their sketches, of every
method without training, imports and the loading of weights.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import HERE, Row, write
from lds_settings import train
from lds_truth import CHECKPOINTS, Place, kept, retrain
from peers.client import attribute as peers_scores
from peers.client import write_job
from scipy.stats import rankdata
from torch import nn

from backcast.attribution import attribute, collect
from backcast.attribution.checkpoints import load_weights
from backcast.errors import InputError
from backcast.files import write_json
from backcast.kernels import SketchSpec
from backcast.progress import progress

#: Rows that a subset leaves out.
SHARE = 0.1
#: Numbers in every sketch, ours and the peers'.
DIM = 4096
SEEDS = {"digits-logistic": 3, "cifar-cnn": 1, "docstrings-gpt": 1, "docstrings-lora": 2, "digits-clip": 1}

#: Processes of one thread each.
WORKERS = 2

Way = Callable[[Place, Path], np.ndarray]


@dataclass(frozen=True)
class Sketched:
    """A method on two stores, collected for it."""

    method: str
    of: str = "loss"
    direction: str = "gradient"
    checkpoints: bool = False
    spec: SketchSpec = SketchSpec(dim=DIM)  # noqa: RUF009

    def __call__(self, place: Place, folder: Path) -> np.ndarray:
        setting, model = place.setting, place.model()
        options: dict[str, Any] = {
            "of": self.of,
            "spec": self.spec,
            "checkpoints": place.checkpoints() if self.checkpoints else None,
        }
        train = collect(
            model, setting.task, setting.train, folder / "train", direction=self.direction, **options
        )
        target = collect(model, setting.task, setting.target, folder / "target", **options)
        return attribute(train, target, self.method).values


@dataclass(frozen=True)
class Modelled:
    """A method that reads the examples and runs the model."""

    method: str
    checkpoints: bool = False
    run: bool = False
    params: Mapping[str, Any] | None = None

    def __call__(self, place: Place, folder: Path) -> np.ndarray:
        setting = place.setting
        return attribute(
            setting.train,
            setting.target,
            self.method,
            model=place.model(),
            task=setting.task,
            checkpoints=place.checkpoints() if self.checkpoints else None,
            run=place.recording if self.run else None,
            **(self.params or {}),
        ).values


@dataclass(frozen=True)
class Segments:
    """SOURCE: each checkpoint stands for the steps before it."""

    def __call__(self, place: Place, folder: Path) -> np.ndarray:
        drawn = (
            "empirical" if place.name == "digits-clip" else "true"
        )  # no answers to draw under a contrastive loss
        params = {"steps": len(place.recording.steps) // CHECKPOINTS, "fisher": drawn}
        return Modelled("source", checkpoints=True, params=params)(place, folder)


@dataclass(frozen=True)
class Peer:
    """A peer's method, in an environment of its own."""

    way: str

    def __call__(self, place: Place, folder: Path) -> np.ndarray:
        raise NotImplementedError  # see `_made_by_peer`, which keeps its own time


ADAM = ("docstrings-gpt", "docstrings-lora", "digits-clip")
TEXT = ("docstrings-gpt", "docstrings-lora")
EVERYWHERE = tuple(SEEDS)
REPLAYED = ("digits-logistic", "docstrings-gpt", "docstrings-lora")
#: A method takes minutes on the image-text pairs.
PEERED = tuple(name for name in SEEDS if name != "digits-clip")
SAMPLED = tuple(name for name in SEEDS if name != "digits-clip")

#: what a method sees → package, name → the way, and the settings that it is for.
WAYS: dict[tuple[str, str], tuple[str, Way, tuple[str, ...]]] = {
    ("backcast", "replay"): ("run", Modelled("replay", run=True), REPLAYED),
    ("backcast", "source"): ("checkpoints", Segments(), EVERYWHERE),
    ("backcast", "tracin"): ("checkpoints", Sketched("tracin", checkpoints=True), EVERYWHERE),
    ("backcast", "less"): (
        "checkpoints",
        Sketched("less", direction="adam", checkpoints=True, spec=SketchSpec("tile", DIM)),
        ADAM,
    ),
    ("backcast", "ekfac"): ("model", Modelled("ekfac"), EVERYWHERE),
    ("backcast", "ekfac, true Fisher"): ("model", Modelled("ekfac", params={"fisher": "true"}), SAMPLED),
    ("backcast", "ekfac + CG"): ("model", Modelled("ekfac", params={"iterations": 10}), ("digits-logistic",)),
    ("backcast", "influence"): ("model", Sketched("influence"), EVERYWHERE),
    ("backcast", "influence of outputs"): ("model", Sketched("influence", of="output"), EVERYWHERE),
    ("backcast", "trak"): ("model", Sketched("trak", of="output"), EVERYWHERE),
    ("backcast", "datainf"): ("model", Sketched("datainf"), EVERYWHERE),
    ("backcast", "grad_dot"): ("model", Sketched("grad_dot"), EVERYWHERE),
    ("backcast", "grad_cos"): ("model", Sketched("grad_cos"), EVERYWHERE),
    ("backcast", "grad_norm"): ("model", Sketched("grad_norm"), EVERYWHERE),
    ("backcast", "embedding"): ("model", Modelled("embedding"), EVERYWHERE),
    ("backcast", "loss"): ("model", Modelled("loss"), EVERYWHERE),
    ("backcast", "el2n"): ("model", Modelled("el2n"), EVERYWHERE),
    ("backcast", "perplexity"): ("model", Modelled("perplexity"), TEXT),
    ("backcast", "bm25"): ("data", Modelled("bm25"), (*TEXT, "digits-clip")),
    ("backcast", "random"): ("data", Modelled("random"), EVERYWHERE),
    ("traker", "TRAK"): ("model", Peer("traker"), PEERED),
    ("dattri", "TRAK"): ("model", Peer("dattri-trak"), PEERED),
    ("dattri", "LoGra"): ("model", Peer("dattri-logra"), PEERED),
    ("dattri", "FactGraSS"): ("model", Peer("dattri-factgrass"), PEERED),
    ("dattri", "EK-FAC"): ("model", Peer("dattri-ekfac"), PEERED),
    ("dattri", "DataInf"): ("model", Peer("dattri-datainf"), PEERED),
    ("dattri", "TracIn"): ("checkpoints", Peer("dattri-tracin"), PEERED),
    ("kronfluence", "EK-FAC"): ("model", Peer("kronfluence"), PEERED),
    ("bergson", "TrackStar"): ("model", Peer("bergson-trackstar"), PEERED),
    ("bergson", "EK-FAC"): ("model", Peer("bergson-ekfac"), PEERED),
    ("bergson", "MAGIC"): ("run", Peer("bergson-magic"), PEERED),
}


#: Of these the LDS is shown against the number of models, up to `MODELS`.
ENSEMBLED = [
    ("backcast", name) for name in ("grad_dot", "influence", "influence of outputs", "trak", "ekfac")
]
MODELS = 3


def main() -> None:
    asked = _arguments()
    torch.set_num_threads(1)
    names = [name for name in SEEDS if name in asked.settings]
    if asked.data is None and "cifar-cnn" in names:
        names.remove("cifar-cnn")
        print("cifar-cnn is left out: it needs --data, a folder with CIFAR-10's parquet files")
    places = {name: _places(asked, name) for name in names}
    for name in names:  # LoRA starts from a language model's end
        for place in places[name]:
            place.model()
    retrained = [place for name in names for place in places[name][: len(_seeds(asked, name))]]
    over_jobs(retrain, [(place, asked.subsets, SHARE) for place in retrained], "retraining", WORKERS)
    over_jobs(training_seconds, [(place,) for place in retrained], "training once more", WORKERS)
    _make_all(retrained, list(WAYS), asked.only)
    _make_all([place for of in places.values() for place in of], ENSEMBLED, asked.only)
    rows = [row for name in names for row in _setting(places[name], asked)]
    write("lds-quick" if asked.quick else "lds", rows, asked.json)
    if not asked.quick:
        _plot(rows)
        _plot_ensembles(rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="small settings, one seed, 20 subsets, digits alone"
    )
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    parser.add_argument("--data", type=Path, metavar="DIR", help="CIFAR-10's parquet files")
    parser.add_argument("--work", type=Path, metavar="DIR", default=HERE.parent / "runs" / "lds")
    parser.add_argument("--settings", nargs="+", choices=list(SEEDS), metavar="NAME")
    parser.add_argument("--only", metavar="PACKAGE", help="methods of this package alone")
    parser.add_argument("--subsets", type=int, metavar="N", help="to train on; 60, or 20 with --quick")
    asked = parser.parse_args()
    asked.settings = asked.settings or (["digits-logistic"] if asked.quick else list(SEEDS))
    asked.subsets = asked.subsets or (20 if asked.quick else 60)
    return asked


def _seeds(asked: argparse.Namespace, name: str) -> range:
    """The seeds whose models are retrained."""
    return range(1 if asked.quick else SEEDS[name])


def _places(asked: argparse.Namespace, name: str) -> list[Place]:
    """Those of the seeds, and of further models for ensembles."""
    models = max(len(_seeds(asked, name)), 1 if asked.quick else MODELS)
    return [Place(asked.work, name, seed, asked.quick, asked.data) for seed in range(models)]


def _setting(places: list[Place], asked: argparse.Namespace) -> list[Row]:
    """The rows of one setting."""
    setting, seeds = places[0].setting, len(_seeds(asked, places[0].name))
    subsets = kept(len(setting.train), asked.subsets, SHARE)
    outcomes = np.mean([place.outcomes(SHARE)[: len(subsets)] for place in places[:seeds]], axis=0)
    about = [json.loads((place.path / "training.json").read_text()) for place in places[:seeds]]
    quality = f"{about[0]['measure']} {np.mean([a['quality'] for a in about]):.3g} ({about[0]['beside']})"
    training = float(np.median([training_seconds(place) for place in places[:seeds]]))
    rows = []
    for (package, method), (sees, way, where) in WAYS.items():
        if not wanted(package, where, setting.name, asked.only):
            continue
        models = places if (package, method) in ENSEMBLED else places[:seeds]
        each = [made(way, place, package, method) for place in models]
        row: Row = {"setting": setting.name, "package": package, "method": method, "sees": sees}
        row |= dict.fromkeys(("lds", "low", "high", "seconds", "trainings", "by_models"))
        if all(one.scores is not None for one in each):
            scores = [one.scores for one in each]
            found = [lds(np.mean(scores[: j + 1], axis=0), subsets, outcomes) for j in range(len(scores))]
            seconds = float(np.median([one.seconds for one in each]))
            row |= interval(found[seeds - 1]) | {"seconds": seconds, "trainings": seconds / training}
            row["by_models"] = [float(one.mean()) for one in found]
        rows.append(
            {**row, "quality": quality, "models": seeds, "training_s": training, "note": each[0].note}
        )
    return rows


def wanted(package: str, where: Sequence[str], name: str, only: str | None) -> bool:
    return name in where and only in (None, package)


def _make_all(places: Sequence[Place], names: Sequence[tuple[str, str]], only: str | None) -> None:
    """The scores at every place, so that `made` finds them."""
    jobs = [
        (WAYS[name][1], place, *name)
        for name in names
        for place in places
        if wanted(name[0], WAYS[name][2], place.name, only)
    ]
    over_jobs(made, jobs, "scores", WORKERS)


def training_seconds(place: Place) -> float:
    """CPU seconds of one training on all rows, measured when the scores are."""
    file = place.path / "training-seconds.json"
    if not file.is_file():
        torch.set_num_threads(1)
        began = time.process_time()
        train(place.setting, place.seed)
        write_json(file, time.process_time() - began)
    return json.loads(file.read_text())


def over_jobs(
    function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], description: str, workers: int
) -> list[Any]:
    """function(*job) of every job, in processes of one thread each."""
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        progress(description, len(jobs)) as done,
    ):
        futures = [pool.submit(function, *job) for job in jobs]
        for future in as_completed(futures):
            future.result()
            done(1)
    return [future.result() for future in futures]


def lds(scores: np.ndarray, subsets: np.ndarray, outcomes: np.ndarray) -> np.ndarray:
    """(m,) rank correlations, over the subsets, of the sums of their rows' scores and the fall of the target's loss."""
    predicted, real = rankdata(subsets @ scores, axis=0), rankdata(-outcomes, axis=0)
    predicted, real = predicted - predicted.mean(0), real - real.mean(0)
    length = np.linalg.norm(predicted, axis=0) * np.linalg.norm(real, axis=0)
    return np.divide((predicted * real).sum(0), length, out=np.zeros_like(length), where=length > 0)


def interval(each: np.ndarray) -> dict[str, float]:
    """The mean over the targets, and its 95 % interval by bootstrap over them."""
    drawn = np.random.default_rng(0).integers(len(each), size=(2000, len(each)))
    low, high = np.quantile(each[drawn].mean(1), [0.025, 0.975])
    return {"lds": float(each.mean()), "low": float(low), "high": float(high)}


@dataclass(frozen=True)
class Made:
    """A way's scores at one place, and the seconds; none where it does not run, and the note says why."""

    scores: np.ndarray | None
    seconds: float | None
    note: str = ""


def made(way: Way, place: Place, package: str, method: str) -> Made:
    """From the disk where it has been made before."""
    torch.set_num_threads(1)
    folder = place.path / "scores"
    folder.mkdir(exist_ok=True)
    file = folder / f"{package}-{method.replace(' ', '-').replace('+', 'and')}.npz"
    about = file.with_suffix(".json")
    if not about.is_file():
        made = _made_by_peer(way.way, place) if isinstance(way, Peer) else _made_here(way, place)
        if made.scores is not None:
            np.savez(file, scores=made.scores)
        write_json(about, {"seconds": made.seconds, "note": made.note})
    kept_about = json.loads(about.read_text())
    scores = np.load(file)["scores"] if kept_about["seconds"] is not None else None
    return Made(scores, kept_about["seconds"], kept_about["note"])


def _made_here(way: Way, place: Place) -> Made:
    place.setting.task.collate(place.setting.train[:2])  # imports and the decoding of data are not timed
    with TemporaryDirectory() as name:
        began = time.process_time()
        try:
            scores = way(place, Path(name))
        except InputError as error:
            return Made(None, None, f"does not run: {error}")
        return Made(scores, time.process_time() - began)


def _made_by_peer(way: str, place: Place) -> Made:
    with TemporaryDirectory() as name:
        folder, model = Path(name), place.model()
        points: list[tuple[nn.Module, float]] = []
        for checkpoint in place.checkpoints():
            twin = place.setting.model(place.seed)
            load_weights(twin, checkpoint.weights(), checkpoint.path)
            points.append((twin, checkpoint.learning_rate))
        start = place.setting.model(place.seed), place.seed
        write_job(folder, place.setting, [model], DIM, points, start=start)
        scores, seconds, note = peers_scores(way, folder)
    return Made(scores, seconds, note)


def _plot(rows: list[Row]) -> None:
    """``docs/lds.png``: every method's LDS by setting."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(row["setting"] for row in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 7), sharex=True, squeeze=False)
    colours = {"run": "#c0392b", "checkpoints": "#e67e22", "model": "#2471a3", "data": "#7f8c8d"}
    for axis, name in zip(axes[0], names, strict=True):
        shown = sorted(
            (r for r in rows if r["setting"] == name and r["lds"] is not None), key=lambda r: r["lds"]
        )
        for place, row in enumerate(shown):
            ours = row["package"] == "backcast"
            axis.barh(place, row["lds"], color=colours[row["sees"]], alpha=1 if ours else 0.45)
            axis.plot([row["low"], row["high"]], [place, place], color="black", lw=1)
        labels = [
            r["method"] if r["package"] == "backcast" else f"{r['package']} {r['method']}" for r in shown
        ]
        axis.set_yticks(range(len(shown)), labels, fontsize=7)
        axis.set_title(f"{name}\n{shown[0]['quality']}", fontsize=9)
        axis.axvline(0, color="black", lw=0.5)
    figure.supxlabel(
        "LDS: rank correlation with retraining (95 % interval over the targets); pale: peers", fontsize=9
    )
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    figure.legend(handles, [f"sees the {name}" for name in colours], loc="upper center", ncols=4, fontsize=8)
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    figure.savefig(HERE.parent / "docs" / "lds.png", dpi=110)


def _plot_ensembles(rows: list[Row]) -> None:
    """``docs/lds-ensembles.png``: LDS against the number of models whose scores are averaged."""
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(row["setting"] for row in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(3 * len(names), 3), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for row in rows:
            if row["setting"] == name and (row["package"], row["method"]) in ENSEMBLED and row["by_models"]:
                axis.plot(
                    range(1, len(row["by_models"]) + 1), row["by_models"], marker="o", label=row["method"]
                )
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("models", fontsize=8)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_ylabel("LDS")
    axes[0, 0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(HERE.parent / "docs" / "lds-ensembles.png", dpi=110)


if __name__ == "__main__":
    main()
