"""CLIP and its kin through open_clip: loading, and the loss of one image with its caption."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backcast.data import Example, Examples, open_image
from backcast.errors import InputError
from backcast.tasks import Batch, Task, batches, on_device

#: Bytes of preprocessed images that a task keeps.
CACHE_BYTES = 2**28


class ClipTask(Task):
    """Image-text pairs under a contrastive loss whose negatives are fixed.

    Example b with image embedding u and caption embedding v (unit vectors), logit scale s, has the loss

        ℓ = ½ [−log e^{s⟨u,v⟩} / (e^{s⟨u,v⟩} + Σ_j e^{s⟨u,v_j⟩}) − log e^{s⟨u,v⟩} / (e^{s⟨u,v⟩} + Σ_j e^{s⟨u_j,v⟩})]

    where (u_j, v_j) is a seeded bank of pairs from the training data whose caption differs from b's, encoded once at
    the present weights and held constant. So an example's gradient does not depend on the batch that it stands in.
    Training uses the batch's own pairs (`training_losses`); in both, pairs of equal captions are never negatives.

    Args:
        preprocess: image → (3, H, W) tensor, as open_clip returns it.
        tokenizer: captions → (B, L) int64 tokens, as open_clip returns it.
        bank: the training examples to draw negatives from.
        bank_size: how many.
        seed: of that draw.

    Source: Radford et al. 2021, Learning transferable visual models from natural language supervision, section 2.3.
    """

    metric = "retrieval@1"
    higher_is_better = True

    def __init__(
        self,
        preprocess: Callable[[Any], Tensor],
        tokenizer: Callable[[list[str]], Tensor],
        bank: Examples,
        bank_size: int = 256,
        seed: int = 0,
    ) -> None:
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        chosen = np.random.default_rng(seed).permutation(len(bank))[:bank_size]
        self.bank = bank[np.sort(chosen)]
        self._images: OrderedDict[str, Tensor] = OrderedDict()
        self._captions: dict[str, Tensor] = {}
        self._bank_embeddings: tuple[Tensor, Tensor] | None = None
        self._length: int | None = None

    def settings(self) -> dict[str, Any]:
        return {"bank": self.bank.index.fingerprint}

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """Every Linear and Conv2d but the patch embedding, whose gradient would drown the other layers' in a cosine."""
        embedding = embedding_modules(model)["image"]
        return {name: module for name, module in super().modules(model).items() if module is not embedding}

    def length(self, example: Example) -> int:
        """Of all alike, as images and captions are brought to one size; patches are taken to be 16 pixels wide."""
        if self._length is None:
            tokens = self._tokens(example.fields["caption"])
            self._length = self._image(example)[0].numel() // 16**2 + len(tokens)
        return self._length

    def collate(self, examples: Sequence[Example]) -> Batch:
        """``images`` (B, 3, H, W), ``tokens`` (B, L), ``captions``: B strings."""
        captions = [example.fields["caption"] for example in examples]
        return {
            "images": torch.stack([self._image(example) for example in examples]),
            "tokens": torch.stack([self._tokens(caption) for caption in captions]),
            "captions": captions,
        }

    def prepare(self, model: nn.Module) -> None:
        with torch.no_grad():
            encoded = [self._encode(model, on_device(self.collate(b), model)) for b in batches(self.bank, 64)]
        self._bank_embeddings = (torch.cat([u for u, _ in encoded]), torch.cat([v for _, v in encoded]))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        image_to_text, text_to_image = (
            torch.logsumexp(torch.cat([own, others], 1), 1) - own[:, 0]
            for own, others in self._against_bank(model, batch)
        )
        return (image_to_text + text_to_image) / 2

    def output(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,) the mean over both directions of log p/(1 − p), p being the probability whose −log is in the loss.

        Source: Park et al. 2023, TRAK, section 5.1: there the sum of the two, without the logit scale.
        """
        image_to_text, text_to_image = (
            own[:, 0] - torch.logsumexp(others, 1) for own, others in self._against_bank(model, batch)
        )
        return (image_to_text + text_to_image) / 2

    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, 2d) the unit embeddings of image and caption."""
        return torch.cat(self._encode(model, batch), 1)

    def training_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,) shares of the batch's symmetric contrastive loss; every pair of an equal caption is a positive.

        Each of the C distinct captions is encoded once, and its text-to-image loss is shared by its pairs: of n, each
        has B/(C n) of it, so that the mean over the B pairs is the loss of the batch. Source of several positives:
        Khosla et al. 2020, Supervised contrastive learning, the form with the sum inside the logarithm (equation 3).
        """
        logits, caption_of, positive = self._in_batch(model, batch)
        image_to_text = F.cross_entropy(logits, caption_of, reduction="none")
        shares = len(logits) / (positive.shape[1] * positive.sum(0))
        return (image_to_text + (shares * _text_to_image(logits, positive))[caption_of]) / 2

    def objective(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean of `training_losses`, summed without sharing: a mean over pairs and one over distinct captions."""
        logits, caption_of, positive = self._in_batch(model, batch)
        return (F.cross_entropy(logits, caption_of) + _text_to_image(logits, positive).mean()) / 2

    def _in_batch(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, C) of each image with each distinct caption, each pair's caption (B,), and which are its own."""
        distinct = {caption: i for i, caption in enumerate(dict.fromkeys(batch["captions"]))}
        caption_of = torch.tensor([distinct[c] for c in batch["captions"]], device=batch["images"].device)
        first = torch.tensor([batch["captions"].index(c) for c in distinct], device=caption_of.device)
        u = F.normalize(model.encode_image(batch["images"]), dim=1)  # type: ignore[operator]
        v = F.normalize(model.encode_text(batch["tokens"][first]), dim=1)  # type: ignore[operator]
        scale, bias = logit_parameters(model)
        return scale * u @ v.T + bias, caption_of, F.one_hot(caption_of, len(distinct)).bool()

    def embeddings(self, model: nn.Module) -> dict[str, nn.Module]:
        """The patch embedding and the token embedding."""
        return embedding_modules(model)

    @torch.no_grad()
    def baselines(self, model: nn.Module, batch: Batch, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An image of the data's mean colour; a caption whose words are the bank's mean token embedding.

        The mean colour is zero after preprocessing. The caption keeps its first and last token and its padding: they
        are the template, not the text.
        """
        patches, tokens = embedding_modules(model).values()
        image = patches(torch.zeros_like(batch["images"][:1])).expand_as(values["image"])
        bank = self.collate(self.bank)["tokens"]
        mean = tokens(bank[_words(bank)].to(batch["tokens"].device)).mean(0)
        text = torch.where(_words(batch["tokens"])[..., None], mean, values["text"])
        return {"image": image.contiguous(), "text": text}

    def maps(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(B, h, w) by patch and (B, L) by token."""
        return {"image": values["image"].sum(1), "text": values["text"].sum(-1)}

    def words(self, caption: str) -> list[str]:
        """The caption's tokens as strings, for a text map's entries from the second on."""
        tokens = self._tokens(caption)
        tokenizer: Any = getattr(self.tokenizer, "tokenizer", self.tokenizer)
        return [tokenizer.decode([token]).strip() for token in tokens[_words(tokens)].tolist()]

    @torch.no_grad()
    def evaluate(self, model: nn.Module, examples: Sequence[Example]) -> float:
        """The share of images whose own caption is the nearest among the examples' distinct captions.

        Where captions are class names, this is zero-shot accuracy.
        """
        distinct = {c: i for i, c in enumerate(dict.fromkeys(e.fields["caption"] for e in examples))}
        first = {e.fields["caption"]: e for e in reversed(examples)}
        v = [
            self._encode(model, on_device(self.collate(b), model))[1]
            for b in batches([first[c] for c in distinct], 64)
        ]
        right = 0
        for batch in batches(examples, 64):
            collated = on_device(self.collate(batch), model)
            u = model.encode_image(collated["images"])  # type: ignore[operator]
            nearest = (u @ torch.cat(v).T).argmax(1).tolist()
            right += sum(n == distinct[c] for n, c in zip(nearest, collated["captions"], strict=True))
        return right / len(examples)

    def _against_bank(self, model: nn.Module, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """For image to text and text to image the logits of the own pair (B, 1) and of the bank's (B, N).

        Those of an equal caption are −∞.
        """
        if self._bank_embeddings is None:
            raise RuntimeError(
                "ClipTask.prepare(model) has not been called: the bank of negatives is not encoded"
            )
        bank_images, bank_texts = self._bank_embeddings
        u, v = self._encode(model, batch)
        scale, bias = logit_parameters(model)
        own = scale * (u * v).sum(1, keepdim=True) + bias
        bank = [example.fields["caption"] for example in self.bank]
        same = torch.tensor([[c == other for other in bank] for c in batch["captions"]], device=own.device)
        return [
            (own, (scale * x @ others.T + bias).masked_fill(same, -torch.inf))
            for x, others in ((u, bank_texts), (v, bank_images))
        ]

    def _encode(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        u = model.encode_image(batch["images"])  # type: ignore[operator]
        v = model.encode_text(batch["tokens"])  # type: ignore[operator]
        return F.normalize(u, dim=1), F.normalize(v, dim=1)

    def _image(self, example: Example) -> Tensor:
        """The preprocessed image, kept while there is room: epochs decode each image once."""
        if example.id not in self._images:
            image = self.preprocess(open_image(example.fields["image"]))
            if (len(self._images) + 1) * image.numel() * 4 > CACHE_BYTES:
                return image
            self._images[example.id] = image
        return self._images[example.id]

    def _tokens(self, caption: str) -> Tensor:
        if caption not in self._captions:
            self._captions[caption] = self.tokenizer([caption])[0]
        return self._captions[caption]


def _text_to_image(logits: Tensor, positive: Tensor) -> Tensor:
    """(C,) of logits (B, C): each caption's cross-entropy among the images, its own as one answer."""
    return torch.logsumexp(logits, 0) - torch.logsumexp(logits.masked_fill(~positive, -torch.inf), 0)


def _words(tokens: Tensor) -> Tensor:
    """(..., L) bool: the tokens between the first and the last one before the padding, which has id 0."""
    position = torch.arange(tokens.shape[-1], device=tokens.device)
    length = (tokens != 0).sum(-1, keepdim=True)
    return (position > 0) & (position < length - 1)


def logit_parameters(model: nn.Module) -> tuple[Tensor, Tensor | float]:
    """The logit scale s (at most 100, as CLIP trains it) and the bias, 0 where the model has none."""
    bias = getattr(model, "logit_bias", None)
    return model.logit_scale.exp().clamp(max=100), 0.0 if bias is None else bias  # type: ignore[union-attr, operator]


def embedding_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The module whose output is each modality's embeddings: of image patches, and of text tokens.

    Raises `InputError` for an architecture in which they cannot be found.
    """
    text = getattr(model, "text", model)
    tokens = getattr(text, "token_embedding", None) or next(
        (m for m in text.modules() if isinstance(m, nn.Embedding)), None
    )
    patches = next((m for m in model.visual.modules() if isinstance(m, nn.Conv2d)), None)  # type: ignore[union-attr]
    if tokens is None or patches is None:
        raise InputError(f"{type(model).__name__}: its patch or token embedding cannot be found")
    return {"image": patches, "text": tokens}


def load_clip(name: str) -> tuple[nn.Module, Callable[[Any], Tensor], Callable[[list[str]], Tensor]]:
    """A CLIP model with its preprocessing and tokenizer, in float32 on the CPU.

    Args:
        name: a folder (``open_clip_config.json`` beside its weights), ``hf-hub:ORG/REPO``, or ``ARCHITECTURE/TAG`` with
            a pretrained tag that open_clip knows, e.g. ``ViT-B-32/openai``.

    Raises:
        InputError: no such model, or a folder without configuration or weights.
    """
    import open_clip

    if Path(name).is_dir():
        _check_folder(Path(name))
        identifier, tag = f"local-dir:{name}", None
    elif ":" in name:
        identifier, tag = name, None
    else:
        identifier, _, tag = name.partition("/")
        if not tag:
            raise InputError(
                f"{name}: not a folder, and no pretrained tag is named; write e.g. 'ViT-B-32/openai'"
            )
    logging.disable(logging.ERROR)  # open_clip reports each step to the root logger; what matters it raises
    try:
        model, preprocess = open_clip.create_model_from_pretrained(identifier, tag)
        tokenizer = open_clip.get_tokenizer(identifier)
    except Exception as error:  # open_clip raises whatever its loaders do
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name}: open_clip cannot load this model ({reason})") from None
    finally:
        logging.disable(logging.NOTSET)
    return model, preprocess, tokenizer


def _check_folder(folder: Path) -> None:
    if not (folder / "open_clip_config.json").is_file():
        raise InputError(f"{folder}: no open_clip_config.json; this folder holds no CLIP model")
    if not any(path.suffix in (".safetensors", ".bin", ".pth") for path in folder.iterdir()):
        raise InputError(f"{folder}: a model folder without weights; add open_clip_model.safetensors")
