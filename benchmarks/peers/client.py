"""The peers' side of a benchmark: a worker process for each, in an environment of their own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from backcast.attribution.gradients.opened import opened
from backcast.multimodal import ClipTask
from backcast.tasks import CausalLMTask, Task

if TYPE_CHECKING:
    from lds_settings import Setting

HERE = Path(__file__).parent
PYTHON = HERE.parents[1] / ".venv-peers" / "bin" / "python"


class Peer:
    """A worker that waits for its turns; a context manager around its process.

    ``note`` says what its sketches are, or, where it does not run, why.
    """

    def __init__(self, way: str, folder: Path) -> None:
        with (folder / f"{way}.log").open("w") as log:
            self._process = subprocess.Popen(
                [PYTHON, HERE / "worker.py", way, folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=folder,
                env=_environment(),
            )
        answer = self._answer()
        self.runs = "note" in answer
        self.note: str = answer["note"] if self.runs else f"does not run: {answer['error']}"

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def __call__(self) -> float:
        """The seconds of one more pass."""
        assert self._process.stdin is not None
        print("go", file=self._process.stdin, flush=True)
        return self._answer()["seconds"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": f"its process ended with code {self._process.wait()}"}


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}


@contextmanager
def peers(ways: Sequence[str], model: PreTrainedModel, job: Mapping[str, Any]) -> Iterator[dict[str, Peer]]:
    """The peers by the names of their ways, each set up and warm, all for the same model and ``job``."""
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        model.save_pretrained(folder)
        (folder / "job.json").write_text(json.dumps(job))
        yield {way: stack.enter_context(Peer(way, folder)) for way in ways}


class Attribution(NamedTuple):
    """A peer's scores (n, m), higher for more helpful, and the seconds they took; or None and, in the note, why."""

    scores: np.ndarray | None
    seconds: float | None
    note: str


def write_job(
    folder: Path,
    setting: Setting,
    models: Sequence[nn.Module],
    k: int,
    checkpoints: Sequence[tuple[nn.Module, float]] = (),
    start: tuple[nn.Module, int] | None = None,
) -> None:
    """Write what `attributors.py` reads: the models by their weights, and the examples as tensors.

    Args:
        folder: an empty folder.
        setting: whose training examples and targets are scored.
        models: trained on all of the setting's examples; an ensemble where there are several.
        k: the length of the peers' sketches.
        checkpoints: points on the first model's run and the learning rates there; its end alone where there are none.
        start: the model as that run found it, and the seed of its batches; for ways that go through the run.
    """
    with opened(models[0]):
        tracked = setting.task.modules(models[0])
        layers = [name for name, layer in tracked.items() if layer.get_parameter("weight").requires_grad]
    weights = [_save_weights(folder / f"model-{i}.safetensors", model) for i, model in enumerate(models)]
    points = [
        (_save_weights(folder / f"checkpoint-{i}.safetensors", model), rate)
        for i, (model, rate) in enumerate(checkpoints)
    ]
    for name, rows in _rows(setting).items():
        save_file(rows, folder / f"{name}.safetensors")
    if isinstance(setting.task, CausalLMTask):
        setting.task.tokenizer.save_pretrained(folder / "tokenizer")
    job = {
        "kind": setting.kind,
        "config": dict(setting.config),
        "family": _family(setting.task),
        "layers": layers,
        "k": k,
        "weights": weights,
        "checkpoints": points or [(weights[0], 1.0)],
        "run": None if start is None else _run(folder, setting, *start),
    }
    (folder / "job.json").write_text(json.dumps(job))


def attribute(way: str, folder: Path) -> Attribution:
    """Let one of `attributors.WAYS` answer the job in the folder, on as many threads as this process has."""
    with (folder / f"{way}.log").open("w") as log:
        done = subprocess.run(
            [PYTHON, HERE / "attributors.py", way, folder],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            check=False,
            cwd=folder,
            env=_environment(),
        )
    answer: dict[str, Any] = (
        json.loads(done.stdout)
        if done.stdout
        else {"error": f"its process ended with code {done.returncode}"}
    )
    if "error" in answer:
        return Attribution(None, None, f"does not run: {answer['error']}")
    return Attribution(
        load_file(folder / f"{way}.safetensors")["scores"].numpy(), answer["seconds"], answer["note"]
    )


def _run(folder: Path, setting: Setting, model: nn.Module, seed: int) -> dict[str, Any]:
    how, n = setting.training, len(setting.train)
    return {
        "start": _save_weights(folder / "start.safetensors", model),
        "batches": how.batches(n, seed),
        "rates": how.rates(n),
        "optimizer": how.optimizer,
        "options": dict(how.options),
    }


def _save_weights(file: Path, model: nn.Module) -> str:
    """A shared tensor once."""
    with opened(model):
        save_file({name: value.detach().contiguous() for name, value in model.named_parameters()}, file)
    return file.name


def _family(task: Task) -> str:
    if isinstance(task, CausalLMTask):
        return "language"
    return "pairs" if isinstance(task, ClipTask) else "classification"


def _rows(setting: Setting) -> dict[str, dict[str, Tensor]]:
    """The training examples, the targets and, of image-text pairs, the bank of negatives."""
    task, sides = setting.task, {"train": setting.train, "target": setting.target}
    if isinstance(task, CausalLMTask):
        whole = task.collate([*setting.train, *setting.target])  # padded to one length
        n = len(setting.train)
        named = {name: whole[name] for name in ("input_ids", "labels")}
        return {
            "train": {name: value[:n].contiguous() for name, value in named.items()},
            "target": {name: value[n:].contiguous() for name, value in named.items()},
        }
    if isinstance(task, ClipTask):
        numbers = {
            caption: i for i, caption in enumerate(dict.fromkeys(e.fields["caption"] for e in setting.train))
        }
        collated = {name: task.collate(side) for name, side in (sides | {"bank": task.bank}).items()}
        return {
            name: {
                "images": batch["images"],
                "tokens": batch["tokens"],
                "caption": torch.tensor([numbers[caption] for caption in batch["captions"]]),
            }
            for name, batch in collated.items()
        }
    return {name: dict(task.collate(side)) for name, side in sides.items()}
