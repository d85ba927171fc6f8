"""One peer's attribution scores, in a process of its own: ``attributors.py WAY FOLDER``.

FOLDER holds ``job.json`` and what it names, written by `client.write_job`. The answer is a line of JSON: ``seconds``
of CPU time that the attribution took, its fitting included but neither imports nor the loading of models, and a
``note`` on its settings; or the ``error`` that it met. The scores (n, m), higher for more helpful, go to
``FOLDER/WAY.safetensors``.

Every way is given the same tracked layers, all else frozen, and the same k where it sketches. Where a peer wants a
damping as a number, it is a tenth of the mean eigenvalue, the heuristic of those that find their own.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from models import build
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader, TensorDataset

Rows = dict[str, Tensor]

#: Examples whose gradients a peer is given at once, where it asks.
BATCH = 100
#: Seconds of CPU time that a way which goes target by target may take for all of them.
LIMIT = 300.0


# ------------------------------------------------------------------ what the benchmark asks


class Family:
    """What the losses and margins of a kind of data are. ``call`` is the model, or its functional form."""

    def losses(self, call: Callable[..., Any], rows: Rows) -> Tensor:
        """(B,) of examples."""
        raise NotImplementedError

    def training(self, call: Callable[..., Any], rows: Rows) -> Tensor:
        """(B,) what training minimises the batch's mean of."""
        return self.losses(call, rows)

    def margins(self, call: Callable[..., Any], rows: Rows) -> Tensor:
        """(B,) log p/(1 − p) of the right answer; TRAK's model output."""
        raise NotImplementedError

    def misses(self, call: Callable[..., Any], rows: Rows) -> Tensor:
        """(B,) 1 − p of the right answer."""
        raise NotImplementedError

    def sampled(self, call: Callable[..., Any], rows: Rows) -> Tensor:
        """() sum of the losses with answers that the model draws."""
        raise NotImplementedError


class Classification(Family):
    """``x`` (B, ...), ``y`` (B,)."""

    def losses(self, call: Callable[..., Any], rows: Rows) -> Tensor:
        return F.cross_entropy(call(rows["x"]), rows["y"], reduction="none")

    def margins(self, call: Callable[..., Any], rows: Rows) -> Tensor:
        return margins(call(rows["x"]), rows["y"])

    def misses(self, call: Callable[..., Any], rows: Rows) -> Tensor:
        return 1 - torch.exp(-self.losses(call, rows))

    def sampled(self, call: Callable[..., Any], rows: Rows) -> Tensor:
        logits = call(rows["x"])
        return F.cross_entropy(logits, drawn(logits), reduction="sum")


class Language(Family):
    """``input_ids`` and ``labels`` (B, T), padded on the right, so that a causal model needs no mask.

    All are means over an example's tokens.
    """

    def losses(self, call: Callable[..., Any], rows: Rows) -> Tensor:
        logits, labels, share = self._tokens(call, rows)
        return (F.cross_entropy(logits.mT, labels, reduction="none") * share).sum(1)

    def margins(self, call: Callable[..., Any], rows: Rows) -> Tensor:
        logits, labels, share = self._tokens(call, rows)
        return (margins(logits, labels) * share).sum(1)

    def misses(self, call: Callable[..., Any], rows: Rows) -> Tensor:
        logits, labels, share = self._tokens(call, rows)
        return ((1 - torch.exp(-F.cross_entropy(logits.mT, labels, reduction="none"))) * share).sum(1)

    def sampled(self, call: Callable[..., Any], rows: Rows) -> Tensor:
        logits, _, share = self._tokens(call, rows)
        return (F.cross_entropy(logits.mT, drawn(logits), reduction="none") * share).sum()

    def _tokens(self, call: Callable[..., Any], rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, T − 1, V), labels and each token's share of the mean (B, T − 1)."""
        labels = rows["labels"][:, 1:]
        counts = (labels >= 0).float()
        logits = call(rows["input_ids"], use_cache=False).logits[:, :-1]
        return logits, labels.clamp(min=0), counts / counts.sum(1, keepdim=True)


class Pairs(Family):
    """``images``, ``tokens`` and ``caption`` (B,), its number, against a bank of pairs that is held constant."""

    def __init__(self, model: nn.Module, bank: Rows) -> None:
        with torch.no_grad():
            self.images, self.texts = model(bank["images"], bank["tokens"])[:2]
        self.caption = bank["caption"]

    def losses(self, call: Callable[..., Any], rows: Rows) -> Tensor:
        return sum(
            F.cross_entropy(logits, torch.zeros_like(rows["caption"]), reduction="none")
            for logits in self._logits(call, rows)
        ) / torch.tensor(2.0)

    def training(self, call: Callable[..., Any], rows: Rows) -> Tensor:
        """Shares of the batch's contrastive loss: all pairs of one caption are positives, and share its loss."""
        u, v, scale = call(rows["images"], rows["tokens"])[:3]
        which = rows["caption"].unique(return_inverse=True)[1]
        positive = F.one_hot(which)
        logits = scale * u @ v[positive.argmax(0)].T
        to_images = logits.logsumexp(0) - logits.masked_fill(positive == 0, -torch.inf).logsumexp(0)
        shares = len(u) / (positive.shape[1] * positive.sum(0))
        return (F.cross_entropy(logits, which, reduction="none") + (shares * to_images)[which]) / 2

    def margins(self, call: Callable[..., Any], rows: Rows) -> Tensor:
        own = torch.zeros_like(rows["caption"])
        return sum(margins(logits, own) for logits in self._logits(call, rows)) / torch.tensor(2.0)

    def misses(self, call: Callable[..., Any], rows: Rows) -> Tensor:
        return 1 - torch.exp(-self.losses(call, rows))

    def sampled(self, call: Callable[..., Any], rows: Rows) -> Tensor:
        both = self._logits(call, rows)
        return sum(F.cross_entropy(logits, drawn(logits), reduction="sum") for logits in both) / torch.tensor(
            2.0
        )

    def _logits(self, call: Callable[..., Any], rows: Rows) -> Iterator[Tensor]:
        """(B, 1 + bank) of the image among texts, then of the text among images, the own pair first."""
        u, v, scale = call(rows["images"], rows["tokens"])[:3]
        own = (u * v).sum(1, keepdim=True)
        same = rows["caption"][:, None] == self.caption
        for one, others in ((u, self.texts), (v, self.images)):
            yield scale * torch.cat([own, (one @ others.T).masked_fill(same, -1e4)], 1)


class Attention(nn.Module):
    """Self-attention of an `nn.MultiheadAttention` with its projections as layers that hooks see."""

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        width, self.heads = fused.embed_dim, fused.num_heads
        self.in_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(
        self, query: Tensor, *others: Tensor, attn_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor]:
        """(B, T, E), which keys and values are too."""
        B, T, width = query.shape
        q, k, v = self.in_proj(query).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = q @ k.mT / math.sqrt(width / self.heads)
        weights = (weights if attn_mask is None else weights + attn_mask).softmax(-1)
        return (self.out_proj((weights @ v).transpose(1, 2).reshape(B, T, width)),)


def margins(logits: Tensor, right: Tensor) -> Tensor:
    own = torch.arange(logits.shape[-1]) == right[..., None]
    others = logits.masked_fill(own, -torch.inf).logsumexp(-1)
    return (logits * own).sum(-1) - others


def drawn(logits: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.distributions.Categorical(logits=logits).sample()


@dataclass
class Job:
    """What ``job.json`` asks for.

    Attributes:
        kind, config: of the model.
        family: ``classification``, ``language`` or ``pairs``.
        layers: names of the tracked layers.
        k: length of a sketch.
        weights: file names of the trained models' weights, an ensemble or a single one.
        checkpoints: file names and learning rates of points on the first model's run.
        run: that run: its ``start``, a file name of weights, the positions of each step's ``batches``, their learning
            ``rates``, the ``optimizer`` (``sgd`` or ``adamw``) and its ``options``; none where it is not told.
    """

    folder: Path
    kind: str
    config: dict[str, Any]
    family: str
    layers: list[str]
    k: int
    weights: list[str]
    checkpoints: list[tuple[str, float]]
    run: dict[str, Any] | None = None
    note: str = field(default="", init=False)
    started: float = field(default=0.0, init=False)

    def start(self) -> None:
        """The clock, once imports and loading are done."""
        self.asks, self.train, self.target  # noqa: B018
        vmap(grad(torch.square))(torch.ones(1))  # torch imports its compiler for the first
        self.started = time.process_time()

    @classmethod
    def read(cls, folder: Path) -> Job:
        return cls(folder, **json.loads((folder / "job.json").read_text()))

    @cached_property
    def train(self) -> Rows:
        return load_file(self.folder / "train.safetensors")

    @cached_property
    def target(self) -> Rows:
        return load_file(self.folder / "target.safetensors")

    def state(self, name: str) -> Rows:
        return load_file(self.folder / name)

    def built(self, weights: str) -> nn.Module:
        """With these weights; those may learn that did in training."""
        model = build(self.kind, self.config).eval()
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.MultiheadAttention):
                model.set_submodule(name, Attention(module))
        if unexpected := model.load_state_dict(self.state(weights), strict=False).unexpected_keys:
            raise KeyError(f"the model has no {', '.join(unexpected)}")
        return model

    @cached_property
    def model(self) -> nn.Module:
        """With the first weights; the tracked weights alone may learn."""
        model = self.built(self.weights[0])
        wanted = {f"{layer}.weight" for layer in self.layers}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in wanted)
        return model

    @cached_property
    def asks(self) -> Family:
        if self.family == "pairs":
            return Pairs(self.model, load_file(self.folder / "bank.safetensors"))
        return {"classification": Classification, "language": Language}[self.family]()

    @cached_property
    def tracked(self) -> list[str]:
        """The tracked weights in the model's order."""
        return [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]

    def complete(self, state: Rows) -> Rows:
        """The weights by all names that the model's state dict has, those of shared tensors too."""
        return {name: state.get(name, value) for name, value in self.model.state_dict().items()}

    def linear(self) -> list[str]:
        """The tracked layers that are linear, for peers that take no others."""
        linear = [name for name in self.layers if isinstance(self.model.get_submodule(name), nn.Linear)]
        if len(linear) < len(self.layers):
            self.note = f"linear layers alone: {len(linear)} of {len(self.layers)}"
        return linear

    def mean(
        self, what: Callable[..., Tensor]
    ) -> Callable[[Mapping[str, Tensor], tuple[Tensor, ...]], Tensor]:
        """``what``, averaged over a batch or taken of a single example, as a function of the weights and a tuple."""
        axes = {name: value.dim() for name, value in self.train.items()}

        def of(weights: Mapping[str, Tensor], values: tuple[Tensor, ...]) -> Tensor:
            rows = dict(zip(axes, values, strict=True))
            whole = {name: x if x.dim() == axes[name] else x[None] for name, x in rows.items()}
            call = partial(functional_call, self.model, dict(weights))
            return what(lambda *args, **kwargs: call(args, kwargs), whole).mean()

        return of

    def functional(self, what: Callable[..., Tensor]) -> Callable[[Mapping[str, Tensor], Rows], Tensor]:
        """``what`` of a single example (its rows without a batch axis), as a function of the weights."""

        def of(weights: Mapping[str, Tensor], rows: Rows) -> Tensor:
            return what(partial(call, weights), {name: value[None] for name, value in rows.items()})[0]

        def call(weights: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
            return functional_call(self.model, dict(weights), args, kwargs)

        return of


def loader(rows: Rows, size: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*rows.values()), size)


# ------------------------------------------------------------------ the ways


def gradients(job: Job) -> Tensor:
    """No peer: inner products of whole gradients, which a plausible score is correlated with."""
    weights = {name: job.model.get_parameter(name).detach() for name in job.tracked}
    each = vmap(grad(job.functional(job.asks.losses)), (None, 0))
    job.start()
    train, target = (flat(each(weights, rows)) for rows in (job.train, job.target))
    return train @ target.T


def flat(gradients: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten(1) for gradient in gradients.values()], 1)


def traker(job: Job) -> Tensor:
    """TRAK with the projector that `TRAKer` takes on a CPU, an ensemble where there are several weights."""
    from trak import TRAKer
    from trak.modelout_functions import AbstractModelOutput

    names, asks = list(job.train), job.asks
    margin = job.functional(asks.margins)

    class Output(AbstractModelOutput):
        def __init__(self) -> None:
            pass

        @staticmethod
        def get_output(model: Any, weights: Any, buffers: Any, *row: Tensor) -> Tensor:
            return margin({**weights, **buffers}, dict(zip(names, row, strict=True)))

        def get_out_to_loss_grad(self, model: Any, weights: Any, buffers: Any, batch: Any) -> Tensor:
            call = partial(functional_call, model, {**weights, **buffers})
            rows = dict(zip(names, batch, strict=True))
            return asks.misses(lambda *args, **kwargs: call(args, kwargs), rows).detach()[:, None]

    n, m = (len(next(iter(rows.values()))) for rows in (job.train, job.target))
    states = [job.state(name) for name in job.weights]
    job.start()
    trak = TRAKer(
        job.model,
        Output(),
        train_set_size=n,
        save_dir=str(job.folder / "traker"),
        device="cpu",
        proj_dim=job.k,
        use_half_precision=False,
        grad_wrt=job.tracked,
    )
    for number, state in enumerate(states):
        trak.load_checkpoint(job.complete(state), model_id=number)
        for rows, start in batches(job.train):
            trak.featurize(list(rows.values()), inds=range_of(rows, start))
    gradients = torch.from_numpy(trak.saver.current_store["grads"])
    trak.score_computer.lambda_reg = 0.1 * gradients.square().sum().item() / job.k
    trak.finalize_features()
    for number, state in enumerate(states):
        trak.start_scoring_checkpoint("targets", job.complete(state), model_id=number, num_targets=m)
        for rows, start in batches(job.target):
            trak.score(list(rows.values()), inds=range_of(rows, start))
    return torch.from_numpy(trak.finalize_scores("targets"))


def batches(rows: Rows) -> Iterator[tuple[Rows, int]]:
    for start in range(0, len(next(iter(rows.values()))), BATCH):
        yield {name: value[start : start + BATCH] for name, value in rows.items()}, start


def range_of(rows: Rows, start: int) -> Any:
    return torch.arange(start, start + len(next(iter(rows.values())))).numpy()


def dattri_task(job: Job, checkpoints: list[str], what: Callable[..., Tensor]) -> Any:
    """Its task with ``what`` as the function to differentiate.

    Its attributors give a function tensors of single examples with a batch axis, without one, or of a whole batch.
    """
    from dattri.task import AttributionTask

    states = [job.complete(job.state(name)) for name in checkpoints]
    return AttributionTask(loss_func=job.mean(what), model=job.model, checkpoints=states)


def dattri_trak(job: Job) -> Tensor:
    from dattri.algorithm.trak import TRAKAttributor

    task = dattri_task(job, job.weights, lambda call, rows: -job.asks.margins(call, rows))
    hit = job.mean(lambda call, rows: 1 - job.asks.misses(call, rows))
    train, target = loader(job.train, BATCH), loader(job.target, BATCH)
    job.start()
    trak = TRAKAttributor(
        task, hit, {"proj_dim": job.k, "proj_max_batch_size": 32, "device": "cpu"}, regularization=0.0
    )
    sample = trak.grad_loss_func(task.get_param(0)[0], next(iter(train))) / trak.norm_scaler
    n = len(train.dataset)  # type: ignore[arg-type]
    trak.regularization = 0.1 * n * sample.square().sum(1).mean().item() / job.k
    trak.cache(train)
    return trak.attribute(target)


def dattri_tracin(job: Job) -> Tensor:
    from dattri.algorithm.tracin import TracInAttributor

    task = dattri_task(job, [name for name, _ in job.checkpoints], job.asks.losses)
    rates = torch.tensor([rate for _, rate in job.checkpoints])
    train, target = (loader(rows, len(next(iter(rows.values())))) for rows in (job.train, job.target))
    job.start()
    projector = {"proj_dim": job.k, "proj_max_batch_size": 32, "device": "cpu"}
    return TracInAttributor(task, rates, False, projector).attribute(train, target)


def dattri_datainf(job: Job) -> Tensor:
    from dattri.algorithm.influence_function import IFAttributorDataInf

    task = dattri_task(job, job.weights[:1], job.asks.losses)
    train, target = (loader(rows, len(next(iter(rows.values())))) for rows in (job.train, job.target))
    job.start()
    datainf = IFAttributorDataInf(task)
    datainf.cache(train)
    datainf.regularization = 0.1 * datainf._cached_train_reps[0].square().mean().item()
    return datainf.attribute(train, target)


def dattri_ekfac(job: Job) -> Tensor:
    from dattri.algorithm.influence_function import IFAttributorEKFAC

    linear = job.linear()
    task = dattri_task(job, job.weights[:1], job.asks.losses)
    train, target = loader(job.train, BATCH), loader(job.target, BATCH)
    job.start()
    ekfac = IFAttributorEKFAC(task, linear)
    ekfac.cache(train)
    eigenvalues = torch.cat([value.flatten() for value in ekfac.cached_lambdas.values()])
    ekfac.damping = 0.1 * eigenvalues.mean().item()
    return ekfac.attribute(loader(job.train, len(train.dataset)), target)  # type: ignore[arg-type]


def dattri_logra(job: Job) -> Tensor:
    from dattri.algorithm.logra import LoGraAttributor

    return block_projected(LoGraAttributor, job)


def dattri_factgrass(job: Job) -> Tensor:
    from dattri.algorithm.factgrass import FactGraSSAttributor

    return block_projected(FactGraSSAttributor, job)


class Answering(nn.Module):
    """A model as dattri's block-projected attributors call it: it gives its own loss, summed over a batch."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.model, self._asks = job.model, job.asks

    def forward(self, **rows: Tensor) -> Any:
        return SimpleNamespace(loss=self._asks.losses(self.model, rows).sum())


def block_projected(attributor: type, job: Job) -> Tensor:
    """Without its ``torch.compile`` of the projections: on a CPU that made LoGra no faster and FactGraSS slower."""
    from dattri.task import AttributionTask

    torch._dynamo.config.disable = True
    model = Answering(job)
    linear = [f"model.{name}" for name in job.linear()]
    task = AttributionTask(
        loss_func=lambda model, batch, device: model(**batch).loss,
        model=model,
        checkpoints=model.state_dict(),
    )
    train, target = (DataLoader(Listed(rows), BATCH) for rows in (job.train, job.target))
    job.start()
    way = attributor(
        task, linear, damping=0.1, proj_dim=job.k, offload="none", cache_dir=str(job.folder / "dattri")
    )
    way.cache(train)
    return way.attribute(train, target)


class Listed(torch.utils.data.Dataset[Rows]):
    """Rows as a data set of dictionaries."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def __getitem__(self, index: int) -> Rows:
        return {name: value[index] for name, value in self.rows.items()}


def kronfluence(job: Job) -> Tensor:
    """EK-FAC with the true Fisher, answers drawn from the model, and its own heuristic damping."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    asks = job.asks

    class Asked(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            return asks.sampled(model, batch) if sample else asks.losses(model, batch).sum()

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return asks.losses(model, batch).sum()

        def get_influence_tracked_modules(self) -> list[str]:
            return job.layers

        def get_attention_mask(self, batch: Any) -> Any:
            return (batch["labels"] >= 0).long() if "labels" in batch else None

    train, target = Listed(job.train), Listed(job.target)
    job.start()
    model = prepare_model(job.model, Asked())
    analyzer = Analyzer(
        "lds", model, Asked(), cpu=True, disable_tqdm=True, output_dir=str(job.folder / "kronfluence")
    )
    analyzer.fit_all_factors("ekfac", train, BATCH, factor_args=FactorArguments("ekfac"))
    analyzer.compute_pairwise_scores(
        "scores",
        "ekfac",
        target,
        train,
        per_device_query_batch_size=BATCH,
        per_device_train_batch_size=BATCH,
        score_args=ScoreArguments(damping_factor=None),
    )
    return analyzer.load_pairwise_scores("scores")["all_modules"].T


def bergson_trackstar(job: Job) -> Tensor:
    """Its TrackStar pipeline on two-sided projections of each layer's gradient, none longer than the gradient."""
    from bergson.cli.trackstar import trackstar
    from bergson.config.config import PreprocessConfig, TrackstarConfig, TrackstarIndexConfig

    options, query = bergson_inputs(job)
    smallest = min(job.model.get_parameter(name).numel() for name in job.tracked)
    if smallest < job.k:
        job.note = f"sketches of {math.isqrt(smallest)} x {math.isqrt(smallest)}, no longer than a gradient"
    index = TrackstarIndexConfig(**options, projection_dim=math.isqrt(min(job.k, smallest)))
    config = TrackstarConfig(query=query, preprocess_cfg=PreprocessConfig(unit_normalize=True))
    job.start()
    trackstar(index, config)
    return bergson_scores(job)


def bergson_ekfac(job: Job) -> Tensor:
    """Its Hessian pipeline with K-FAC factors and corrected eigenvalues, on whole gradients."""
    from bergson.config.config import (
        HessianConfig,
        HessianPipelineConfig,
        IndexConfig,
        PreprocessConfig,
        ScoreConfig,
    )
    from bergson.hessians.pipeline import hessian_pipeline

    options, query = bergson_inputs(job)
    job.start()
    hessian_pipeline(
        IndexConfig(**options),
        HessianConfig("kfac", ev_correction=True),
        ScoreConfig(),
        PreprocessConfig(),
        HessianPipelineConfig(query=query),
    )
    return bergson_scores(job)


def bergson_magic(job: Job) -> Tensor:
    """The exact derivative of a run's end by its examples' weights, a way back through its steps for each target.

    Its trainer, given the recorded run's start, batches, learning rates and optimizer.
    """
    from bergson.magic import BackwardState, Trainer
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torchopt.pytree import tree_iter

    if job.run is None:
        raise ValueError("the job does not tell of the run")
    stream, folder = Stream(job.train, job.run["batches"]), str(job.folder / "magic")
    model = Weighted(job.built(job.run["start"]), job.asks)
    trainer, state = Trainer.initialize(model, torchopt_optimizer(job.run))
    scores = []
    job.start()
    with sdpa_kernel(SDPBackend.MATH):  # of the others the derivative has none
        state = trainer.train(state, stream, inplace=True, save_dir=folder)
        end, m = state.to("cpu").detach_(), len(next(iter(job.target.values())))
        for target in range(m):
            began = time.process_time()
            state.detach_()
            state.copy_(end)
            with state.activate(model) as weights:
                rows = {name: value[target : target + 1] for name, value in job.target.items()}
                loss = job.asks.losses(model.call, rows).sum()
                by_weights = dict(
                    zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True)
                )
            state.detach_()
            slots = [torch.zeros_like(s) for s in tree_iter(state.opt_state) if s.is_floating_point()]
            back = BackwardState(by_weights, slots, torch.zeros_like(stream.weights))
            back = trainer.backward(folder, stream, back, state, cleanup=False, inplace=True)
            scores.append(-back.weight_grads.detach())
            seconds = time.process_time() - began
            if seconds * m > LIMIT and not target:
                raise TimeoutError(
                    f"{seconds:.0f} s a target: {seconds * m / 60:.0f} minutes for {m}, more than {LIMIT / 60:.0f}"
                )
    return torch.stack(scores, 1)


class Stream:
    """A run's batches, as bergson's `DataStream` gives its own."""

    device = torch.device("cpu")
    requires_grad = True

    def __init__(self, rows: Rows, batches: list[list[int]]) -> None:
        self._rows, self._batches = rows, batches
        self.weights = nn.Parameter(torch.ones(len(next(iter(rows.values())))))

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, step: int) -> Rows:
        """``shift_loss_mask`` is what the trainer counts a batch by."""
        chosen = torch.tensor(self._batches[step])
        rows = {name: value[chosen] for name, value in self._rows.items()}
        return {
            **rows,
            "example_weight": self.weights[chosen],
            "shift_loss_mask": torch.ones(len(chosen)),
        }


class Weighted(nn.Module):
    """A model as bergson's trainer steps it: its own parameters are those that learn, each once."""

    def __init__(self, model: nn.Module, asks: Family) -> None:
        super().__init__()
        learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.weights = nn.ParameterList(learning.values())
        self._call = partial(functional_call, model)
        self._names, self._asks = list(learning), asks

    def call(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(dict(zip(self._names, self.weights, strict=True)), args, kwargs)

    def forward(self, example_weight: Tensor, shift_loss_mask: Tensor, **rows: Tensor) -> Tensor:
        return (example_weight * self._asks.training(self.call, rows)).mean()


def torchopt_optimizer(run: Mapping[str, Any]) -> Any:
    """The run's, with bergson's default under Adam's root, whose derivative is infinite at zero."""
    import torchopt
    from bergson.config.config import TrainingConfig

    rate, options = lambda step: run["rates"][int(step)], run["options"]
    if run["optimizer"] == "sgd":
        return torchopt.sgd(rate, **options)
    return torchopt.adamw(rate, **options, eps_root=TrainingConfig.eps_root)


def bergson_inputs(job: Job) -> tuple[dict[str, Any], Any]:
    """Options of its index and its query: the model and the examples' tokens in folders, as it reads them."""
    from bergson.config.config import DataConfig, QuerySetConfig
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel

    if not isinstance(job.model, PreTrainedModel | PeftModel):
        raise TypeError(f"it takes language models of transformers, not {type(job.model).__name__}")
    folder = job.folder / "bergson"
    if isinstance(job.model, PeftModel):  # an adapter's folder names that of the model it is for
        deepcopy(job.model).unload().save_pretrained(folder / "base")
        job.model.active_peft_config.base_model_name_or_path = str(folder / "base")
    job.model.save_pretrained(str(folder / "model"))
    for name, rows in (("train", job.train), ("target", job.target)):
        lengths = (rows["labels"] >= 0).sum(1).tolist()
        columns = {
            column: [row[:length].tolist() for row, length in zip(rows[column], lengths, strict=True)]
            for column in ("input_ids", "labels")
        }
        Dataset.from_dict({**columns, "length": lengths}).save_to_disk(folder / name)
    options = {
        "run_path": str(folder / "run"),
        "model": str(folder / "model"),
        "tokenizer": str(job.folder / "tokenizer"),
        "data": DataConfig(str(folder / "train")),
        "loss_reduction": "mean",
    }
    return options, QuerySetConfig(str(folder / "target"))


def bergson_scores(job: Job) -> Tensor:
    from bergson.data import load_scores

    return torch.from_numpy(load_scores(job.folder / "bergson" / "run" / "scores")[:].copy())


#: way → the package and what it does, as the tables name it.
WAYS: dict[str, tuple[str, str, Callable[[Job], Tensor]]] = {
    "gradients": ("torch", "gradient dot", gradients),
    "traker": ("traker", "TRAK", traker),
    "dattri-trak": ("dattri", "TRAK", dattri_trak),
    "dattri-logra": ("dattri", "LoGra", dattri_logra),
    "dattri-factgrass": ("dattri", "FactGraSS", dattri_factgrass),
    "dattri-ekfac": ("dattri", "EK-FAC", dattri_ekfac),
    "dattri-datainf": ("dattri", "DataInf", dattri_datainf),
    "dattri-tracin": ("dattri", "TracIn", dattri_tracin),
    "kronfluence": ("kronfluence", "EK-FAC", kronfluence),
    "bergson-trackstar": ("bergson", "TrackStar", bergson_trackstar),
    "bergson-ekfac": ("bergson", "EK-FAC", bergson_ekfac),
    "bergson-magic": ("bergson", "MAGIC", bergson_magic),
}


def main() -> None:
    way, folder = sys.argv[1], Path(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the libraries print goes to stderr
    package, _, attribute = WAYS[way]
    try:
        job = Job.read(folder)
        scores = attribute(job).detach().float().cpu().contiguous()
        seconds = time.process_time() - job.started
    except Exception as error:
        print(json.dumps({"error": " ".join(f"{type(error).__name__}: {error}".split())[:200]}), file=answers)
        raise
    save_file({"scores": scores}, folder / f"{way}.safetensors")
    note = ", ".join(filter(None, (f"{package} {version(package)}", job.note)))
    print(json.dumps({"seconds": seconds, "note": note}), file=answers)


if __name__ == "__main__":
    main()
