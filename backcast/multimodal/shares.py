"""Two published measures of how much a model's output owes to each modality, to compare a `split` with.

Both are of the model's output on an example, its loss, and not of the example's score: they tell whether the model
reads the image of a row, and not whether learning from that image helps or harms a target. They know no target, and a
share has no sign.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from captum.attr import ShapleyValueSampling
from torch import Tensor, nn

from backcast.attribution.collect import batches_of, evaluation_mode, uncompiled
from backcast.data import Example, Examples, conversation
from backcast.errors import InputError
from backcast.multimodal.baselines import Baseline, Reference
from backcast.multimodal.parts import shares
from backcast.multimodal.task import Contents, MultimodalTask
from backcast.progress import progress
from backcast.tasks import Batch, on_device

MODALITIES = ("image", "text")
#: Players along an image's height, and along its width.
GRID = 4


def mm_shap(
    model: nn.Module,
    task: MultimodalTask,
    examples: Examples,
    pool: Examples,
    *,
    baseline: str = "colour+mean",
    samples: int = 10,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """MM-SHAP: each modality's share of the absolute Shapley values of patches and words.

    The game's value is −ℓ with some players present, the log-probability of the answer; a player is a word of the text
    (`MultimodalTask.players`) or a cell of an image, and shows the baseline when absent. With φ their Shapley values,

        image = Σ_cells |φ| / (Σ_cells |φ| + Σ_words |φ|),    text = 1 − image.

    The cells are `GRID` × `GRID` of each image; where pixels come as a list of patches, as Qwen2-VL's, as many runs of
    those that are not the baseline's. (The paper has about as many patches as the text has words.) φ is estimated over
    ``samples`` random orders of all players by Captum's `ShapleyValueSampling`, which takes
    samples × players + 1 forward passes; that estimate's noise adds to |φ|, so that few samples favour the modality
    of more players.

    Args:
        model: at the weights to measure.
        task: whose loss ℓ is.
        examples: the r examples.
        pool: the training examples, for the baselines' means.
        baseline: what stands for absence, IMAGE+TEXT as for `split`.
        samples: orders of the players.
        seed: of these. Examples that go through the model together share them.

    Returns:
        ``image`` and ``text``, (r,) float64 each, adding up to 1; both 0 where no player changes the loss.

    Raises:
        InputError: no examples or samples, or an unknown baseline.

    Source: Parcalabescu & Frank 2023, MM-SHAP: a performance-agnostic metric for measuring multimodal contributions in
    vision and language models and tasks, section 3. Sampling: Castro et al. 2009.
    """
    _check(examples, samples, "samples")
    absence = Baseline(baseline, Reference(task, pool))
    absence.prepare(model)
    found = {m: np.zeros(len(examples)) for m in MODALITIES}
    with (
        evaluation_mode(model),
        uncompiled(model),
        torch.no_grad(),
        progress("MM-SHAP", len(examples)) as done,
    ):
        task.prepare(model)
        for pack, batch in _packs(model, task, examples):
            own = task.contents(model, batch)
            absent = absence.contents(examples[pack], batch, own)
            for modality, values in _shapley(model, task, batch, own, absent, samples, seed).items():
                found[modality][pack] = values.abs().double().sum(1).cpu().numpy()
            done(len(pack))
    return shares(found)


def perceptual_score(
    model: nn.Module, task: MultimodalTask, examples: Examples, *, permutations: int = 5, seed: int = 0
) -> dict[str, np.ndarray]:
    """The perceptual score, by example: how much worse the model does with another example's image, or text.

        image_b = mean over permutations π of ℓ(image of π(b), text of b, answer of b) − ℓ(b),

    and likewise text_b with the words of π(b) and b's own image. The words are captions, or the users' turns, the
    answers staying; of several images or texts each is replaced, by the other example's in their order. A permutation
    is one random cycle through all examples that have the modality, so none keeps its own content. Examples without an
    image have an image score of 0. Costs 1 + 2 × permutations forward passes.

    The paper's score is the mean over a data set, of an accuracy, and is normalised by it; of the loss it is defined
    for each example and not bounded. Of captions, which are both the text and what is predicted, either permutation
    makes a pair that does not match, so that the two means over a data set tell nothing apart.

    Args:
        model: at the weights to measure.
        task: whose loss ℓ is.
        examples: the r examples, with captions or conversations; they exchange contents among themselves.
        permutations: how many.
        seed: of these.

    Returns:
        ``image`` and ``text``, (r,) float64 each, in the loss's unit: positive where the own content helps. `shares`
        makes them comparable with MM-SHAP's.

    Raises:
        InputError: no examples or permutations, or a single example that has a modality.

    Source: Gat, Schwartz & Schwing 2021, Perceptual score: what data modalities does your model perceive?, section 3.
    """
    _check(examples, permutations, "permutations")
    generator = np.random.default_rng(seed)
    exchanged = [(m, exchange(examples, m, generator)) for m in MODALITIES for _ in range(permutations)]
    drops = {m: np.zeros(len(examples)) for m in MODALITIES}
    with evaluation_mode(model), progress("perceptual score", 1 + len(exchanged)) as done:
        task.prepare(model)
        own = _losses(model, task, examples)
        done(1)
        for modality, others in exchanged:
            drops[modality] += (_losses(model, task, others) - own) / permutations
            done(1)
    return drops


def exchange(examples: Examples, modality: str, generator: np.random.Generator) -> Examples:
    """The examples, each with another's images or text, along one random cycle of those that have any.

    Raises `InputError` where a single one has.
    """
    contents = [_own(example, modality) for example in examples]
    order = generator.permutation([i for i, own in enumerate(contents) if own])
    if len(order) == 1:
        raise InputError(f"a single example has {modality}: there is no other to exchange it with")
    exchanged = list(examples)
    for i, other in zip(order, np.roll(order, 1), strict=True):
        theirs = contents[other]
        given = [theirs[k % len(theirs)] for k in range(len(contents[i]))]
        exchanged[i] = _given(examples[i], modality, given)
    return Examples(exchanged, examples.dataset, examples.columns)


def _own(example: Example, modality: str) -> list[Any]:
    """An example's images, or the texts of its caption or its users' turns."""
    if "caption" in example.fields:
        return [example.fields["image" if modality == "image" else "caption"]]
    messages, images = conversation(example)
    if modality == "image":
        return images
    contents = [message["content"] for message in messages if message["role"] == "user"]
    return [text for content in contents for text in _texts(content)]


def _texts(content: str | list[dict[str, str]]) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if part["type"] == "text"]


def _given(example: Example, modality: str, contents: list[Any]) -> Example:
    """The example with these in place of its `_own`."""
    if "caption" in example.fields:
        name = "image" if modality == "image" else "caption"
        return replace(example, fields={**example.fields, name: contents[0]}, id="")
    messages, images = conversation(example)
    if modality == "image":
        images = contents
    else:
        following = iter(contents)
        messages = [
            {**m, "content": _spoken(m["content"], following)} if m["role"] == "user" else m for m in messages
        ]
    rest = {name: x for name, x in example.fields.items() if name not in ("image", "prompt", "response")}
    return replace(example, fields={**rest, "messages": messages, "images": images}, id="")


def _spoken(content: str | list[dict[str, str]], texts: Iterator[str]) -> str | list[dict[str, str]]:
    """The content with the next texts in place of its own."""
    if isinstance(content, str):
        return next(texts)
    return [{**part, "text": next(texts)} if part["type"] == "text" else part for part in content]


def _shapley(
    model: nn.Module,
    task: MultimodalTask,
    batch: Batch,
    own: Contents,
    absent: Contents,
    samples: int,
    seed: int,
) -> dict[str, Tensor]:
    """(B, cells) and (B, words): the players' Shapley values, 0 of those that an example does not have."""
    cells, words = _cells(own["image"], absent["image"]), _counted(task.players(batch))
    count = int(cells.max()) + 1
    player = {"image": cells, "text": (words + count)[..., None]}
    everyone = torch.ones(len(words), count + int(words.max()) + 1, device=words.device)

    def value(present: Tensor) -> Tensor:
        shown = {
            m: torch.where(present.gather(1, who.flatten(1)).view_as(who) > 0, own[m], absent[m])
            for m, who in player.items()
        }
        return -task.loss_at(model, batch, shown).double()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        values = ShapleyValueSampling(value).attribute(
            everyone, torch.zeros_like(everyone), n_samples=samples
        )
    return {"image": values[:, :count], "text": values[:, count:]}


def _cells(own: Tensor, absent: Tensor) -> Tensor:
    """The player that each pixel is of, in a shape that broadcasts to (B, ...)."""
    if own.dim() < 4:
        place = _counted((own != absent).any(-1))
        return (place * GRID**2 // (place.amax(1, keepdim=True) + 1))[..., None]
    rows, columns = (torch.arange(size, device=own.device) * GRID // size for size in own.shape[-2:])
    grid = rows[:, None] * GRID + columns
    if own.dim() > 4:
        grid = torch.arange(own.shape[1], device=own.device).view(-1, 1, 1, 1) * GRID**2 + grid
    return grid.expand(len(own), *[1] * (own.dim() - 1 - grid.dim()), *grid.shape)


def _counted(chosen: Tensor) -> Tensor:
    """(B, L) of a (B, L) bool: how many are chosen before each that is; of the others anything that is in range."""
    return (chosen.cumsum(1) - 1).clamp(min=0)


def _losses(model: nn.Module, task: MultimodalTask, examples: Examples) -> np.ndarray:
    losses = np.zeros(len(examples))
    with torch.no_grad():
        for pack, batch in _packs(model, task, examples):
            losses[pack] = task.loss(model, batch).double().cpu().numpy()
    return losses


def _packs(model: nn.Module, task: MultimodalTask, examples: Examples) -> Iterator[tuple[list[int], Batch]]:
    """The places of the examples that go through the model together, and their batch."""
    for pack in batches_of(model, task, examples, 32):
        yield pack, on_device(task.collate(examples[pack]), model)


def _check(examples: Examples, count: int, what: str) -> None:
    if len(examples) == 0:
        raise InputError("no examples to measure")
    if count < 1:
        raise InputError(f"{what} must be at least 1, not {count}")
