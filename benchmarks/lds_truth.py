"""What really happens when examples are left out: trained models, and retraining on subsets, kept as they are made.

A folder a setting and seed: ``run/`` (the recorded training run), ``model.safetensors``, checkpoints on the way with
the optimizer's states, and ``outcomes-SHARE.npy`` (subsets, targets): the targets' losses after training from the same
start, in the same order, without the rows that a subset leaves out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import lds_settings as settings
import numpy as np
import torch
from lds_settings import Setting
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backcast.attribution import Checkpoint, Recorder, Recording
from backcast.attribution.collect import evaluation_mode
from backcast.attribution.replay import Trajectory
from backcast.files import write_json
from backcast.tasks import on_device

#: Checkpoints on the way, the last of them the end.
CHECKPOINTS = 4


@dataclass(frozen=True)
class Place:
    """Where a setting's seed is kept, and all that is needed to make it.

    Attributes:
        work: the folder of all settings.
        name: the setting's.
        seed: of the initial weights and of the batches' order.
        quick: whether it is the setting's small form.
        data: the folder of data that is not the project's own.
    """

    work: Path
    name: str
    seed: int
    quick: bool = False
    data: Path | None = None

    @property
    def path(self) -> Path:
        return self.work / f"{self.name}{'-quick' if self.quick else ''}" / f"seed-{self.seed}"

    @property
    def setting(self) -> Setting:
        return _setting(self)

    @property
    def recording(self) -> Recording:
        return Recording.open(self.path / "run")

    def model(self) -> nn.Module:
        """As the recorded run left it; the run is made where it has not been yet."""
        if not (self.path / "model.safetensors").is_file():
            _train(self)
        model = self.setting.model(self.seed)
        model.load_state_dict({**model.state_dict(), **load_file(self.path / "model.safetensors")})
        return model

    def checkpoints(self) -> list[Checkpoint]:
        """Evenly on the way, the end among them, each with the optimizer's state and the rate of its stretch."""
        rates, points = self.setting.training.rates(len(self.setting.train)), _points(self)
        return [
            Checkpoint(
                str(self.path / f"checkpoint-{point}.safetensors"),
                float(np.mean(rates[before:point])),
                optimizer=str(self.path / f"optimizer-{point}.pt"),
            )
            for before, point in zip([0, *points], points, strict=False)
        ]

    def outcomes(self, share: float) -> np.ndarray:
        """(subsets, m) the targets' losses."""
        return np.load(self.path / f"outcomes-{share:g}.npy")


@cache
def _setting(place: Place) -> Setting:
    match place.name:
        case "digits-logistic":
            return settings.digits_logistic(place.quick)
        case "cifar-cnn":
            assert place.data is not None
            return settings.cifar_cnn(place.data, place.quick)
        case "docstrings-gpt":
            return settings.docstrings_gpt(place.quick)
        case "docstrings-base":
            return settings.docstrings_base(place.quick)
        case "docstrings-lora":
            base = Place(place.work, "docstrings-base", 0, place.quick)
            return settings.docstrings_lora(base.setting, base.model(), place.quick)
        case "digits-clip":
            return settings.digits_clip(place.quick)
    raise ValueError(place.name)


def kept(n: int, subsets: int, share: float) -> np.ndarray:
    """(subsets, n) bool: each subset keeps all but a random ``share`` of the rows."""
    rng = np.random.default_rng(0)
    out = np.ones((subsets, n), dtype=bool)
    for subset in out:
        subset[rng.permutation(n)[: round(share * n)]] = False
    return out


def _points(place: Place) -> list[int]:
    steps = len(place.setting.training.rates(len(place.setting.train)))
    return [round(steps * (c + 1) / CHECKPOINTS) for c in range(CHECKPOINTS)]


def _train(place: Place) -> None:
    """The recorded run on all rows, and what of it is kept."""
    setting, model = place.setting, place.setting.model(place.seed)
    how, n = setting.training, len(setting.train)
    optimizer = how.start(model)
    place.path.mkdir(parents=True, exist_ok=True)
    points = _points(place)

    def run() -> None:
        with Recorder(model, optimizer, setting.train, place.path / "run", task=setting.task) as recorder:
            batches = zip(how.batches(n, place.seed), how.rates(n), strict=True)
            for done, (rows, rate) in enumerate(batches, start=1):
                optimizer.param_groups[0]["lr"] = rate
                recorder.batch(rows)
                batch = on_device(setting.task.collate(setting.train[rows]), model)
                setting.task.objective(model, batch).backward()
                optimizer.step()
                optimizer.zero_grad()
                if done in points:
                    save_file(_state(model), place.path / f"checkpoint-{done}.safetensors")
                    torch.save(optimizer.state_dict(), place.path / f"optimizer-{done}.pt")

    began = time.process_time()
    run()
    seconds = time.process_time() - began
    model.eval()
    name, quality, beside = setting.quality
    about = {"seconds": seconds, "quality": quality(model), "measure": name, "beside": beside, "n": n}
    write_json(place.path / "training.json", about)
    save_file(_state(model), place.path / "model.safetensors")


def _state(model: nn.Module) -> dict[str, Tensor]:
    named, kept_ones = (*model.named_parameters(), *model.named_buffers()), model.state_dict().keys()
    return {name: value.detach().clone().contiguous() for name, value in named if name in kept_ones}


def retrain(place: Place, count: int, share: float) -> None:
    """The outcomes of a place's subsets; what was made before an interruption is kept."""
    torch.set_num_threads(1)
    subsets = kept(len(place.setting.train), count, share)
    file = place.path / f"outcomes-{share:g}.npy"
    made = np.load(file) if file.is_file() else np.zeros((0, len(place.setting.target)))
    if len(made) >= len(subsets):
        return
    model, setting = place.model(), place.setting
    trajectory = Trajectory(model, setting.task, setting.train, place.recording)
    batch = setting.task.collate(setting.target)
    with trajectory.borrowed():
        for subset in subsets[len(made) :]:
            trajectory.load(trajectory.run(torch.from_numpy(subset).float()))
            with torch.no_grad(), evaluation_mode(model):
                setting.task.prepare(model)
                losses = setting.task.loss(model, batch).numpy()
            made = np.concatenate([made, losses[None]])
            if not np.isfinite(losses).all():
                raise ValueError(f"{place.path}: a loss is not finite")
            with (file.with_suffix(".partial")).open("wb") as partial:
                np.save(partial, made)
            file.with_suffix(".partial").replace(file)
