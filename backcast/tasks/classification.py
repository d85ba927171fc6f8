"""Classifiers of texts and images: cross-entropy of the right class."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backcast.data import Example, open_image
from backcast.errors import InputError
from backcast.tasks.encoded import Encoded
from backcast.tasks.loading import load_pretrained
from backcast.tasks.logits import drawn, error_norms, margins
from backcast.tasks.task import Batch, Task, batches, on_device

#: Bytes of preprocessed images that a task keeps.
CACHE_BYTES = 2**28

Label = str | int | float


class ClassificationTask(Task):
    """Cross-entropy between a model's logits (B, C) and the examples' ``label``.

    Args:
        classes: the label of each class, in the order of the logits; without it labels are the classes' numbers.
    """

    metric = "accuracy"
    higher_is_better = True

    def __init__(self, classes: Sequence[Label] | None = None) -> None:
        self.classes = None if classes is None else list(classes)
        self._number = {label: c for c, label in enumerate(self.classes or ())}

    @abstractmethod
    def inputs(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """The batch without its labels."""

    @abstractmethod
    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, C)"""

    def settings(self) -> dict[str, Any]:
        return {"classes": self.classes}

    def collate(self, examples: Sequence[Example]) -> Batch:
        """The model's inputs, and ``labels`` (B,) int64."""
        return self.inputs(examples) | {"labels": torch.tensor([self._class(e) for e in examples])}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(self.logits(model, batch), batch["labels"], reduction="none")

    def output(self, model: nn.Module, batch: Batch) -> Tensor:
        return margins(self.logits(model, batch), batch["labels"])

    def errors(self, model: nn.Module, batch: Batch) -> Tensor:
        return error_norms(self.logits(model, batch), batch["labels"])

    @torch.no_grad()
    def sampled(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        return {**batch, "labels": drawn(self.logits(model, batch), generator)}

    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, d) what the model's last Linear is given; where that has positions, its mean over them (not padding)."""
        seen: list[Tensor] = []

        def see(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen[:] = arguments[:1]

        linear = (module for module in model.modules() if isinstance(module, nn.Linear))
        handles = [module.register_forward_pre_hook(see) for module in linear]
        try:
            self.logits(model, batch)
        finally:
            for handle in handles:
                handle.remove()
        if not seen:
            raise self._lacks("features", "no representation of a model without Linear layers")
        x = seen[0]
        if x.dim() == 2:
            return x
        x = x.flatten(1, -2)
        mask = batch.get("attention_mask", torch.ones(x.shape[:2], device=x.device)).to(x.dtype)[..., None]
        return (x * mask).sum(1) / mask.sum(1)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, examples: Sequence[Example]) -> float:
        """The share of examples whose class has the greatest logit."""
        right = 0
        for part in batches(examples, 64):
            batch = on_device(self.collate(part), model)
            right += int((self.logits(model, batch).argmax(1) == batch["labels"]).sum())
        return right / len(examples)

    def _class(self, example: Example) -> int:
        label = example.fields.get("label")
        if label is None:
            raise InputError(
                f"row {example.row} of {example.source}: no label; a classifier needs one in every row"
            )
        if self.classes is None:
            if isinstance(label, str) or label != int(label) or label < 0:
                raise InputError(
                    f"row {example.row} of {example.source}: the label {label!r} is no class's number; "
                    "give the task classes=, the label of each"
                )
            return int(label)
        if label not in self._number:
            known = ", ".join(map(repr, self.classes[:5])) + (", ..." if len(self.classes) > 5 else "")
            raise InputError(
                f"row {example.row} of {example.source}: the label {label!r} is none of the model's classes ({known})"
            )
        return self._number[label]


class SequenceClassificationTask(ClassificationTask):
    """Classes of texts, for models such as transformers' ``AutoModelForSequenceClassification``.

    A row's text is its ``text``, or its ``prompt`` with its ``response``, where it has one, as the second sequence.

    Args:
        tokenizer: a Hugging Face tokenizer with a padding token.
        classes: as for `ClassificationTask`.
        max_length: tokens kept of an example.
    """

    def __init__(self, tokenizer: Any, classes: Sequence[Label] | None = None, max_length: int = 512) -> None:
        if tokenizer.pad_token is None:
            raise InputError(
                f"tokenizer {tokenizer.name_or_path!r} has no padding token; "
                "set its pad_token, and the pad_token_id of the model's config"
            )
        super().__init__(classes)
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._encode = Encoded(self._tokens_of)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "max_length": self.max_length}

    def length(self, example: Example) -> int:
        return len(self._encode(example)["input_ids"])

    def inputs(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """What the tokenizer gives, padded."""
        return dict(self.tokenizer.pad([self._encode(e) for e in examples], return_tensors="pt"))

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(**{name: value for name, value in batch.items() if name != "labels"}).logits

    def _tokens_of(self, example: Example) -> dict[str, list[int]]:
        names = ("text",) if "text" in example.fields else ("prompt", "response")
        texts = [example.fields[name] for name in names if name in example.fields]
        if not texts:
            raise InputError(
                f"row {example.row} of {example.source}: no text to classify "
                f"({', '.join(sorted(example.fields))}); a text classifier needs text or prompt"
            )
        return dict(self.tokenizer(*texts, truncation=True, max_length=self.max_length))


class ImageClassificationTask(ClassificationTask):
    """Classes of images, for any module that maps images (B, ...) to logits (B, C), or to an object with ``logits``.

    Args:
        preprocess: image → tensor, all of one shape, e.g. a torchvision transform.
        classes: as for `ClassificationTask`.
    """

    def __init__(self, preprocess: Callable[[Any], Tensor], classes: Sequence[Label] | None = None) -> None:
        super().__init__(classes)
        self.preprocess = preprocess
        self._images: dict[str, Tensor] = {}

    def inputs(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """``images`` (B, ...)."""
        return {"images": torch.stack([self._image(e) for e in examples])}

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        output = model(batch["images"])
        return getattr(output, "logits", output)

    def _image(self, example: Example) -> Tensor:
        """The preprocessed image, kept while there is room: epochs decode each image once."""
        if example.id in self._images:
            return self._images[example.id]
        if "image" not in example.fields:
            raise InputError(
                f"row {example.row} of {example.source}: no image; an image classifier needs one in every row"
            )
        image = self.preprocess(open_image(example.fields["image"]))
        if (len(self._images) + 1) * image.nbytes <= CACHE_BYTES:
            self._images[example.id] = image
        return image


def load_sequence_classifier(path: str, trust_remote_code: bool = False) -> tuple[nn.Module, Any]:
    """A text classifier and its tokenizer from a folder or a hub id, in float32.

    A tokenizer without a padding token gets its end-of-sequence token for one. Raises `InputError` when the model or
    its tokenizer cannot be loaded.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = load_pretrained(
        path,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        "text classifier",
        "a tokenizer",
        trust_remote_code,
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id  # type: ignore[union-attr]
    return model, tokenizer


def load_image_classifier(
    path: str, trust_remote_code: bool = False
) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """An image classifier of transformers, in float32, and its preprocessing, from a folder or a hub id.

    Raises `InputError` when the model or its image processor cannot be loaded.
    """
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model, processor = load_pretrained(
        path,
        AutoModelForImageClassification,
        AutoImageProcessor,
        "image classifier",
        "preprocessor_config.json",
        trust_remote_code,
    )
    return model, partial(_pixels, processor)


def class_labels(model: nn.Module, example: Example) -> list[Label]:
    """The labels of a transformers classifier's classes as ``example`` writes its own: by name, or by number."""
    names: dict[int, str] = model.config.id2label  # type: ignore[union-attr, assignment]
    return [names[c] if isinstance(example.fields["label"], str) else c for c in range(len(names))]


def _pixels(processor: Any, image: Any) -> Tensor:
    return processor(image, return_tensors="pt")["pixel_values"][0]
