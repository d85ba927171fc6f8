"""What stands for a modality's absence. A new baseline is a function here and a line in its table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn

from backcast.data import Example, Examples, open_image
from backcast.errors import InputError
from backcast.multimodal.task import Contents, MultimodalTask
from backcast.tasks import Batch, batches, on_device

#: Edge, in pixels, of the mean image.
EDGE = 64
#: Of an image's longer edge: the blur's standard deviation.
BLUR = 1 / 8
#: Training examples that means are taken over.
SAMPLE = 256


class Reference:
    """A seeded sample of the training examples, for what is typical of them."""

    def __init__(self, task: MultimodalTask, pool: Examples) -> None:
        chosen = np.random.default_rng(0).permutation(len(pool))[:SAMPLE]
        self.task = task
        self.examples = pool[np.sort(chosen)]

    @cached_property
    def mean_image(self) -> Image.Image:
        """The pixelwise mean, at `EDGE` × `EDGE`."""
        small = [i.resize((EDGE, EDGE), Image.Resampling.BOX) for e in self.examples for i in images(e)]
        if not small:
            raise InputError(f"{self.examples.dataset}: no images in the training examples to take a mean of")
        return Image.fromarray(
            np.mean([np.asarray(i, np.float64) for i in small], 0).round().astype(np.uint8)
        )

    @cached_property
    def mean_colour(self) -> tuple[int, ...]:
        return tuple(np.asarray(self.mean_image, np.float64).mean((0, 1)).round().astype(int).tolist())

    @torch.no_grad()
    def mean_embedding(self, model: nn.Module) -> Tensor:
        """(H,) the mean over the examples' words, as the model embeds them now."""
        table = self.task.token_embeddings(model)
        found = []
        for some in batches(self.examples, 64):
            batch = on_device(self.task.collate(some), model)
            found.append(table(self.task.token_ids(batch))[self.task.players(batch)])
        return torch.cat(found).mean(0)


def colour(image: Image.Image, reference: Reference) -> Image.Image:
    """An even image of the training images' mean colour."""
    return Image.new("RGB", image.size, reference.mean_colour)


def blur(image: Image.Image, reference: Reference) -> Image.Image:
    """The image's own colours without its shapes."""
    return image.filter(ImageFilter.GaussianBlur(BLUR * max(image.size)))


def mean(image: Image.Image, reference: Reference) -> Image.Image:
    """The training images' mean, pixel by pixel."""
    return reference.mean_image.resize(image.size, Image.Resampling.BICUBIC)


def mean_word(model: nn.Module, reference: Reference) -> Tensor:
    """(H,) the mean of the training texts' token embeddings."""
    return reference.mean_embedding(model)


@torch.no_grad()
def mask(model: nn.Module, reference: Reference) -> Tensor:
    """(H,) the mask token's embedding; where there is none, the padding's."""
    table = reference.task.token_embeddings(model)
    return table(torch.tensor([reference.task.filler()], device=next(table.parameters()).device))[0]


IMAGES: dict[str, Callable[[Image.Image, Reference], Image.Image]] = {
    "colour": colour,
    "blur": blur,
    "mean": mean,
}
TEXTS: dict[str, Callable[[nn.Module, Reference], Tensor]] = {"mean": mean_word, "mask": mask}


class Baseline:
    """A named pair of baselines, e.g. ``colour+mean``: one of `IMAGES`, and one of `TEXTS` for each word.

    Raises `InputError` for a name of another form.
    """

    def __init__(self, name: str, reference: Reference) -> None:
        image, _, text = name.partition("+")
        if image not in IMAGES or text not in TEXTS:
            raise InputError(
                f"baseline {name!r} does not exist: write IMAGE+TEXT, one of {', '.join(IMAGES)} "
                f"and one of {', '.join(TEXTS)}"
            )
        self.name = name
        self.reference = reference
        self._image = IMAGES[image]
        self._text = TEXTS[text]

    def prepare(self, model: nn.Module) -> None:
        """Embed what stands for a word. Called whenever the weights have changed."""
        self._word = self._text(model, self.reference)

    @torch.no_grad()
    def contents(self, examples: Sequence[Example], batch: Batch, own: Contents) -> dict[str, Tensor]:
        """The absent image and text of each example, shaped like their ``own`` contents; template tokens stay."""
        task = self.reference.task
        image = task.pixels(examples, lambda image: self._image(image, self.reference)).to(own["image"])
        words = task.players(batch)[..., None]
        return {
            "image": image,
            "text": torch.where(words, self._word.to(own["text"]), own["text"]),
        }


def images(example: Example) -> list[Image.Image]:
    """An example's images, decoded; none where it has none."""
    fields = example.fields
    given = fields.get("images") or ([fields["image"]] if fields.get("image") is not None else [])
    return [open_image(image) for image in given]
