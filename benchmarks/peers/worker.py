"""One peer's way to collect gradient sketches, in a process of its own: ``worker.py WAY FOLDER``.

FOLDER holds the model and ``job.json``: token ids (B, T), the names of the layers to track and k. It answers in lines
of JSON: at first with a ``note`` on the sketches of a first pass, once they have been checked, or with the ``error``
that it met; from then on with the ``seconds`` of a pass over the batch, for each line on stdin.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, PreTrainedModel

Pass = Callable[[], Tensor]


def load(folder: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def load_frozen(folder: Path) -> PreTrainedModel:
    """With the input embedding alone to learn, as bergson loads models: enough for gradients to flow from."""
    model = load(folder)
    model.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)
    return model


def losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """(B,) mean next-token cross-entropies."""
    labels = tokens[:, 1:]
    entropies = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), reduction="none")
    return entropies.view(labels.shape).mean(1)


def training_step(job: dict[str, Any], folder: Path) -> Pass:
    """No sketches: a forward and a backward with weight gradients, to tell the torch versions' speeds apart."""
    model, tokens = load(folder), torch.tensor(job["tokens"])

    def step() -> Tensor:
        model.zero_grad()
        each = losses(model(tokens).logits, tokens)
        each.sum().backward()
        return each.detach()[:, None]

    return step


def bergson(job: dict[str, Any], folder: Path) -> Pass:
    """Its in-memory collector, with the two-sided projection of each module's gradient that its ``build`` makes."""
    from bergson.collector.collector import CollectorComputer
    from bergson.collector.in_memory_collector import InMemoryCollector
    from bergson.config import IndexConfig
    from bergson.gradients import GradientProcessor
    from datasets import Dataset

    model = load_frozen(folder)
    side = math.isqrt(job["k"])
    config = IndexConfig(run_path=str(folder / "bergson"), projection_dim=side, loss_reduction="mean")
    config.partial_run_path.mkdir()
    data = Dataset.from_dict({"input_ids": job["tokens"]})
    collector = InMemoryCollector(
        model=model.base_model, data=data, cfg=config, processor=GradientProcessor(projection_dim=side)
    )
    whole = [list(range(len(data)))]
    computer = CollectorComputer(model, data, collector=collector, batches=whole, cfg=config)

    def collect() -> Tensor:
        computer.run_with_collector_hooks()
        return torch.cat(list(collector.gradients.values()), 1)

    return collect


def logra(job: dict[str, Any], folder: Path) -> Pass:
    from dattri.algorithm.logra import LoGraAttributor

    return dattri_cache(LoGraAttributor, job, folder)


def factgrass(job: dict[str, Any], folder: Path) -> Pass:
    from dattri.algorithm.factgrass import FactGraSSAttributor

    return dattri_cache(FactGraSSAttributor, job, folder)


def dattri_cache(attributor: type, job: dict[str, Any], folder: Path) -> Pass:
    """Its cache of compressed gradients; the identity as Hessian leaves it at that.

    Without its ``torch.compile`` of the projections: on a CPU that made LoGra no faster and FactGraSS slower.
    """
    from dattri.task import AttributionTask

    def loss(model: PreTrainedModel, batch: dict[str, Tensor], device: str) -> Tensor:
        return losses(model(**batch).logits, batch["input_ids"]).mean()  # it multiplies by B

    torch._dynamo.config.disable = True
    model = load_frozen(folder)
    cache = attributor(
        task=AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict()),
        layer_names=job["layers"],
        hessian="Identity",
        proj_dim=job["k"],
        offload="none",
        cache_dir=str(folder / attributor.__name__),
    )
    loader = DataLoader([{"input_ids": torch.tensor(row)} for row in job["tokens"]], len(job["tokens"]))

    def collect() -> Tensor:
        cache.cache(loader)
        return cache.offload_manager.cached_gradients[0]

    return collect


def traker(job: dict[str, Any], folder: Path) -> Pass:
    """`TRAKer.featurize` with the projector that it takes on a CPU, in float32, where that is fastest."""
    from trak import TRAKer
    from trak.modelout_functions import AbstractModelOutput

    class NextToken(AbstractModelOutput):
        def __init__(self) -> None:
            pass

        @staticmethod
        def get_output(model: Any, weights: Any, buffers: Any, row: Tensor) -> Tensor:
            logits = functional_call(model, (weights, buffers), (row[None],), {"use_cache": False}).logits
            return losses(logits, row[None])[0]

        def get_out_to_loss_grad(self, model: Any, weights: Any, buffers: Any, batch: Any) -> Tensor:
            return torch.ones(len(batch[0]), 1)  # the output is the loss

    model, tokens = load(folder), torch.tensor(job["tokens"])
    featurizer = TRAKer(
        model,
        NextToken(),
        train_set_size=len(tokens),
        save_dir=str(folder / "traker"),
        device="cpu",
        proj_dim=job["k"],
        use_half_precision=False,
        grad_wrt=[f"{layer}.weight" for layer in job["layers"]],
    )
    featurizer.load_checkpoint(model.state_dict(), model_id=0)
    store = featurizer.saver.current_store

    def collect() -> Tensor:
        store["is_featurized"][:] = 0  # or it would not do the same examples again
        featurizer.featurize([tokens], inds=torch.arange(len(tokens)).numpy())
        return torch.from_numpy(store["grads"])

    return collect


WAYS: dict[str, tuple[str, Callable[[dict[str, Any], Path], Pass]]] = {
    "training step, peers' torch": ("torch", training_step),
    "build": ("bergson", bergson),
    "LoGra": ("dattri", logra),
    "FactGraSS": ("dattri", factgrass),
    "featurize": ("traker", traker),
}


def checked(sketches: Tensor, examples: int) -> str:
    """What the sketches are, in words; raises ValueError where they are none."""
    if len(sketches) != examples or not sketches.isfinite().all() or not sketches.any(1).all():
        raise ValueError(f"its pass gave {tuple(sketches.shape)}, or a row that is zero or not finite")
    return " × ".join(map(str, sketches.shape))


def main() -> None:
    way, folder = sys.argv[1], Path(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the libraries print goes to stderr
    package, make = WAYS[way]
    try:
        job = json.loads((folder / "job.json").read_text())
        run = make(job, folder)
        shape = checked(run(), len(job["tokens"]))
    except Exception as error:
        print(json.dumps({"error": " ".join(f"{type(error).__name__}: {error}".split())[:200]}), file=answers)
        raise
    versions = ", ".join(f"{name} {version(name)}" for name in dict.fromkeys((package, "torch")))
    print(json.dumps({"note": f"{versions}, {shape}"}), file=answers)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(json.dumps({"seconds": time.perf_counter() - start}), file=answers)


if __name__ == "__main__":
    main()
