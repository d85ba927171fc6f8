"""What the split of a score asks of an image-text task."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL.Image import Image
from torch import Tensor, nn

from backcast.data import Example
from backcast.tasks import Batch, Task

#: What a task's loss is a function of, by modality: each (B, ...), zero-padded where examples differ in size.
Contents = Mapping[str, Tensor]


class MultimodalTask(Task):
    """A task whose loss is a function of an image's pixels and a text's token embeddings.

    Pixels and not the embeddings of patches, so that no weight lies before them: a score is then a function of these
    contents through all of the tracked weights. A batch's tensors have a row an example, so that rows can be repeated.
    """

    @abstractmethod
    def contents(self, model: nn.Module, batch: Batch) -> Contents:
        """``image`` (B, ...), the preprocessed pixels, and ``text`` (B, L, H), the tokens' embeddings."""

    @abstractmethod
    def loss_at(self, model: nn.Module, batch: Batch, contents: Contents) -> Tensor:
        """(B,) the losses with ``contents`` in place of the batch's own; differentiable by them."""

    @abstractmethod
    def pixels(self, examples: Sequence[Example], alter: Callable[[Image], Image]) -> Tensor:
        """(B, ...) the examples' ``contents["image"]``, were their images ``alter(image)``, which keeps the size."""

    @abstractmethod
    def players(self, batch: Batch) -> Tensor:
        """(B, L) bool: the text's own tokens, which can be absent; not answers, template, image marks and padding."""

    @abstractmethod
    def token_embeddings(self, model: nn.Module) -> nn.Module:
        """The module that turns token ids into embeddings."""

    @abstractmethod
    def filler(self) -> int:
        """The token that stands for no word: the mask's, else the padding's."""

    @abstractmethod
    def token_ids(self, batch: Batch) -> Tensor:
        """(B, L) int64."""

    @abstractmethod
    def patches(self, pixels: np.ndarray, batch: Batch) -> list[np.ndarray]:
        """For each of the B examples (h, w): the values of ``pixels`` (B, ...), summed over each patch's."""

    @abstractmethod
    def words(self, example: Example) -> list[str]:
        """The players of an example's text as strings, in their order."""


def no_word(tokenizer: Any) -> int:
    """The token that stands for no word: the mask's, else the padding's, else that of an end; 0 where none is named, as
    CLIP's own tokenizer pads."""
    ids = (getattr(tokenizer, f"{kind}_token_id", None) for kind in ("mask", "pad", "eos"))
    return next((token for token in ids if token is not None), 0)


def block_sums(image: np.ndarray, edge: int) -> np.ndarray:
    """(..., h, w) the sums over squares of ``edge`` pixels of images (..., H, W); the last ones may be smaller."""
    for axis in (-2, -1):
        image = np.add.reduceat(image, range(0, image.shape[axis], edge), axis=axis)
    return image


def take(batch: Batch, rows: Tensor) -> dict[str, Any]:
    """The batch's rows, repeated and reordered as ``rows`` says."""
    chosen = rows.tolist()
    return {
        key: value[rows.to(value.device)] if isinstance(value, Tensor) else [value[i] for i in chosen]
        for key, value in batch.items()
    }


@contextmanager
def answering(module: nn.Module, output: Tensor) -> Iterator[None]:
    """A module that answers with ``output`` instead of its own."""
    handle = module.register_forward_hook(lambda *_: output)
    try:
        yield
    finally:
        handle.remove()
