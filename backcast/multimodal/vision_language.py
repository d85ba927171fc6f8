"""Vision-language causal language models through transformers: loading, and the loss of an answer given images."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from backcast.data import Example, conversation, open_image
from backcast.errors import InputError
from backcast.multimodal.task import Contents, MultimodalTask, answering, block_sums, no_word
from backcast.tasks import Batch, CausalLMTask, batches, on_device
from backcast.tasks.encoded import Encoded
from backcast.tasks.head import IGNORE, token_values
from backcast.tasks.loading import load_pretrained
from backcast.tasks.owners import Owners, belong

#: Bytes of tokens, and of preprocessed images, that a task keeps.
CACHE_BYTES = 2**28
#: What is added to an image that is zero everywhere: a model that pads with such images would drop it.
NOT_ZERO = 1e-6

#: Stands for the text of turn's part k, to find it in what a chat template writes.
STAND_IN = "\ue000{}\ue001"

Messages = Sequence[Mapping[str, Any]]


class _Row(NamedTuple):
    """An example's L tokens: ids, labels, which are players, and what else the processor says of each; all (L,)."""

    ids: Tensor
    labels: Tensor
    players: Tensor
    others: dict[str, Tensor]


class VisionLanguageTask(CausalLMTask, MultimodalTask):
    """Next-token cross-entropy over the assistant's turns of a conversation about images, or about none.

    What the model is called with is what its processor makes of each example, so image sizes may differ where the
    model allows it. Which of the processor's outputs have a row an image, a patch or an example is seen from two
    images of one example. Batches are padded on the right.

    Args:
        processor: a Hugging Face processor with a chat template and a fast tokenizer, as `load_vision_language`
            returns it.
        reduction: an example's loss is the ``mean`` or the ``sum`` over its response tokens.
        max_length: tokens kept of an example, those of its images included, which are never cut.

    Raises:
        InputError: a processor that lacks these.
    """

    metric = "answer accuracy"
    higher_is_better = True

    def __init__(
        self, processor: Any, reduction: Literal["mean", "sum"] = "mean", max_length: int = 4096
    ) -> None:
        _check(processor)
        super().__init__(processor.tokenizer, reduction, max_length)
        self.processor = processor
        self.writer = processor if processor.chat_template else processor.tokenizer
        self._begins = self.tokenizer("a")["input_ids"][:1] == [self.tokenizer.bos_token_id]
        self._encode = Encoded(self._tokens_of, CACHE_BYTES, _row_bytes)
        self._prepare = Encoded(self._prepared, CACHE_BYTES, _bytes)
        # What two images of one example become: shapes tell what a row of each output is.
        probe = self._process(processor.image_token * 2, [Image.new("RGB", (64, 64), "gray")] * 2)
        self._by_token = {n for n, x in probe.items() if x.shape == probe["input_ids"].shape}
        self._by_example = {n for n, x in probe.items() if len(x) == 1 and n not in self._by_token}
        self._none = {
            name: (x[0] if name in self._by_example else x)[:0]
            for name, x in probe.items()
            if name not in self._by_token
        }

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """Every Linear of the vision tower, the projector and the language model, but not the output head.

        Patch embeddings, which are convolutions, are left out: their gradient would drown the other layers' in a
        cosine.
        """
        return {
            name: module
            for name, module in super().modules(model).items()
            if not isinstance(module, nn.Conv2d)
        }

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Tokens (B, L), padded on the right: ``input_ids``, ``attention_mask``, ``labels``, ``players`` (bool), and
        what else the processor says of each; its outputs of images (B, M, ...), M being the most images or patches
        of an example, zeros where there are fewer; and of each of these how many there are, ``..._count`` (B,).
        """
        rows = [self._encode(example) for example in examples]
        prepared = [self._prepare(example) for example in examples]
        pad = partial(pad_sequence, batch_first=True)
        batch = {
            "input_ids": pad([row.ids for row in rows], padding_value=self.tokenizer.pad_token_id or 0),
            "attention_mask": pad([torch.ones_like(row.ids) for row in rows]),
            "labels": pad([row.labels for row in rows], padding_value=IGNORE),
            "players": pad([row.players for row in rows]),
            **{name: pad([row.others[name] for row in rows]) for name in rows[0].others},
        }
        for name in self._none:
            batch[name] = _stacked([own[name] for own in prepared])
            batch[f"{name}_count"] = torch.tensor([len(own[name]) for own in prepared])
        return batch

    @torch.no_grad()
    def evaluate(self, model: nn.Module, examples: Sequence[Example]) -> float:
        """The share of examples each of whose response tokens is the most probable one, given those before it."""
        right = partial(token_values, formula=lambda logits, labels: (logits.argmax(1) == labels).to(logits))
        shares = [
            self._over_tokens(right, model, on_device(self.collate(some), model), "mean")
            for some in batches(examples, 64)
        ]
        return (torch.cat(shares) == 1).double().mean().item()

    def contents(self, model: nn.Module, batch: Batch) -> Contents:
        """``image`` (B, M, ...), zeros where an example has fewer than M images or patches; ``text`` (B, L, H)."""
        return {"image": batch["pixel_values"], "text": self.token_embeddings(model)(batch["input_ids"])}

    def loss_at(self, model: nn.Module, batch: Batch, contents: Contents) -> Tensor:
        image, text = contents["image"], contents["text"]
        with answering(self.token_embeddings(model), text):
            losses = self.loss(model, {**batch, "pixel_values": image})
        return losses + 0 * image.flatten(1).sum(1)  # has a gradient where no example has an image

    def pixels(self, examples: Sequence[Example], alter: Callable[[Image.Image], Image.Image]) -> Tensor:
        return _stacked([self._prepared(example, alter)["pixel_values"] for example in examples])

    def players(self, batch: Batch) -> Tensor:
        """The tokens of what system and user wrote."""
        return batch["players"]

    def token_embeddings(self, model: nn.Module) -> nn.Module:
        return model.get_input_embeddings()  # type: ignore[operator]

    def filler(self) -> int:
        return no_word(self.tokenizer)

    def token_ids(self, batch: Batch) -> Tensor:
        return batch["input_ids"]

    def patches(self, pixels: np.ndarray, batch: Batch) -> list[np.ndarray]:
        """Of several images, or of an image's tiles, the patches side by side; (0, 0) of none."""
        counts = batch["pixel_values_count"].tolist()
        if "image_grid_thw" in batch:
            merged = self.processor.image_processor.merge_size
            grids = [g[g[:, 0] > 0] for g in batch["image_grid_thw"].cpu().numpy()]
            return [
                _side_by_side(_grids(own.sum(-1), g, merged)) for own, g in zip(pixels, grids, strict=True)
            ]
        marks = (batch["input_ids"] == self.processor.image_token_id).sum(1).tolist()
        maps = []
        for own, count, tokens in zip(pixels, counts, marks, strict=True):
            images = own[:count].reshape(-1, *own.shape[-3:]).sum(1)
            edge = getattr(self.processor, "patch_size", None) or round(
                math.sqrt(images[0].size / (tokens / len(images))) if count else 1
            )
            maps.append(_side_by_side([block_sums(image, edge) for image in images]))
        return maps

    def words(self, example: Example) -> list[str]:
        row = self._encode(example)
        return [self.tokenizer.decode([token]).strip() for token in row.ids[row.players].tolist()]

    def _inputs(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """What the model is called with: without padding, and without images where there is none at all."""
        inputs = {name: batch[name] for name in self._by_token} | {"use_cache": False}
        pixels, there = batch["pixel_values"], _there(batch, "pixel_values")
        belong(self._image_modules(model), self._owners(batch, there))
        if not there.any():
            return inputs
        if "pixel_values" in self._by_example:
            real = there.view(*there.shape, *[1] * (pixels.dim() - 2))
            zero = (pixels == 0).flatten(2).all(2).view_as(real)
            pixels = torch.where(real, pixels + NOT_ZERO * zero, 0)
        for name in self._none:
            value = pixels if name == "pixel_values" else batch[name]
            inputs[name] = value if name in self._by_example else value[_there(batch, name)]
        return inputs

    def _owners(self, batch: Batch, there: Tensor) -> Owners:
        """Whose the images or patches are that a vision tower sees; they are alike if all become as many tokens."""
        marks = (batch["input_ids"] == self.processor.image_token_id).sum(1)
        each = (marks / there.sum(1))[there[:, 0]]
        return Owners(there.nonzero()[:, 0], len(there), bool((each == each[:1]).all()))

    def _image_modules(self, model: nn.Module) -> list[nn.Module]:
        """All but those of the language model, which has the token embedding, and the output head."""
        embedding, head = self.token_embeddings(model), model.get_output_embeddings()  # type: ignore[operator]
        name = next(name for name, module in model.named_modules() if module is embedding)
        language = name.rpartition(".")[0]
        return [
            m for n, m in model.named_modules() if not f"{n}.".startswith(f"{language}.") and m is not head
        ]

    def _tokens_of(self, example: Example) -> _Row:  # type: ignore[override]
        messages, images = _conversation(example)
        mark = self.processor.image_token_id
        own, learnt_own = self._encode_messages(example, messages)
        if (marks := own.count(mark)) != len(images):
            raise InputError(
                f"{_where(example)}: the chat template writes {marks} image marks for {len(images)} images; "
                f"does its text hold {self.processor.image_token!r}?"
            )
        prepared = self._prepare(example)
        ids = prepared["input_ids"].tolist()
        if mark in ids[self.max_length :]:
            needed = len(ids) - ids[::-1].index(mark)
            raise InputError(
                f"{_where(example)}: its images end at token {needed} of at most {self.max_length}; make them smaller "
                "or raise the maximal length"
            )
        learnt, players = [False] * len(ids), [False] * len(ids)
        places = self._places(example, images, own, ids)
        for place, token, *said in zip(
            places, own, learnt_own, self._players_of(example, messages), strict=True
        ):
            if token != mark:
                learnt[place], players[place] = said
        _, labels = self._labelled(example, ids, learnt)
        L = len(labels)
        others = self._by_token - {"input_ids", "attention_mask"}
        return _Row(
            prepared["input_ids"][:L],
            torch.tensor(labels),
            torch.tensor(players[:L]),
            {name: prepared[name][:L] for name in sorted(others)},
        )

    def _places(
        self, example: Example, images: Sequence[str | bytes], own: list[int], ids: list[int]
    ) -> list[int]:
        """Where each token of the template is among the processor's, which writes several for each image's mark."""
        if len(images) == 1:
            lengths = [len(ids) - len(own) + 1]
        else:
            mark = self.processor.image_token
            alone = (self._process(mark, [open_image(image)], example) for image in images)
            lengths = [inputs["input_ids"].shape[1] for inputs in alone]
        after, places, place = iter(lengths), [], 0
        mark = self.processor.image_token_id
        for token in own:
            places.append(place)
            place += next(after) if token == mark else 1
        if place != len(ids) or any(ids[p] != t for p, t in zip(places, own, strict=True) if t != mark):
            raise InputError(
                f"{_where(example)}: {type(self.processor).__name__} changes the text around its images, so the "
                "response's tokens cannot be told"
            )
        return places

    def _players_of(self, example: Example, messages: Messages) -> list[bool]:
        """Which of the template's tokens are of texts that the assistant did not write."""
        spoken: list[str] = []

        def stand_in(part: Mapping[str, Any]) -> Mapping[str, Any]:
            if part["type"] != "text":
                return part
            spoken.append(part["text"])
            return {**part, "text": STAND_IN.format(len(spoken) - 1)}

        form = [
            m if m["role"] == "assistant" else {**m, "content": [stand_in(part) for part in m["content"]]}
            for m in messages
        ]
        text = self._written(example, messages)
        between = re.split(STAND_IN.format(r"(\d+)"), self._written(example, form))
        spans, place = [], len(between[0])
        for k, after in zip(between[1::2], between[2::2], strict=True):
            own = spoken[int(k)]
            given = next((x for x in (own, own.strip()) if text.startswith(x + after, place)), None)
            if given is None:
                raise InputError(
                    f"{_where(example)}: the chat template changes what its turns say, so their words cannot be told"
                )
            spans.append((place, place + len(given)))
            place += len(given) + len(after)
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        return [any(start < e and s < end for s, e in spans) for start, end in offsets]

    def _written(self, example: Example, messages: Messages, **options: bool) -> str:  # type: ignore[override]
        """As the chat template writes them, after the begin token of a tokenizer that has one."""
        text, begin = super()._written(example, messages, **options), self.tokenizer.bos_token  # type: ignore[arg-type]
        return begin + text if self._begins and not text.startswith(begin) else text

    def _prepared(
        self, example: Example, alter: Callable[[Image.Image], Image.Image] | None = None
    ) -> dict[str, Tensor]:
        """What the processor makes of an example: of its tokens (L,), and of its images (m, ...), m = 0 where none."""
        messages, given = _conversation(example)
        images = [open_image(image) for image in given]
        images = [alter(image) for image in images] if alter else images
        found = self._process(self._written(example, messages), images, example)
        one = self._by_token | self._by_example
        return self._none | {name: x[0] if name in one else x for name, x in found.items()}

    def _process(
        self, text: str, images: Sequence[Image.Image], example: Example | None = None
    ) -> dict[str, Tensor]:
        try:
            given = [list(images)] if images else None
            return dict(
                self.processor(text=[text], images=given, add_special_tokens=False, return_tensors="pt")
            )
        except ValueError as error:
            where = "two images in a row" if example is None else _where(example)
            reason = " ".join(str(error).split())
            raise InputError(f"{where}: {type(self.processor).__name__} refuses them ({reason})") from None


def _check(processor: Any) -> None:
    """Raise `InputError` where something is missing."""
    name = type(processor).__name__
    if getattr(processor, "image_processor", None) is None or not hasattr(processor, "image_token_id"):
        raise InputError(f"{name} reads no images; take the model's own AutoProcessor")
    if not (processor.chat_template or processor.tokenizer.chat_template):
        raise InputError(f"{name} has no chat template; set processor.chat_template")
    if not processor.tokenizer.is_fast:
        raise InputError(
            f"{name} has a slow tokenizer, which tells no places in a text; add its tokenizer.json"
        )


def _row_bytes(row: _Row) -> int:
    return _bytes({"ids": row.ids, "labels": row.labels, "players": row.players, **row.others})


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(x.nbytes for x in tensors.values())


def _where(example: Example) -> str:
    return f"row {example.row} of {example.source}"


def _conversation(example: Example) -> tuple[list[dict[str, Any]], list[str | bytes]]:
    """With each content as a list of parts, which is what chat templates for images read."""
    messages, images = conversation(example)
    return [
        {**m, "content": [{"type": "text", "text": m["content"]}]} if isinstance(m["content"], str) else m
        for m in messages
    ], images


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """(B, M, ...) of rows (m, ...), zeros after each; M is at least 1."""
    most = [max(sizes) for sizes in zip(*(row.shape for row in rows), strict=True)]
    stacked = rows[0].new_zeros(len(rows), max(1, most[0]), *most[1:])
    for own, row in zip(stacked, rows, strict=True):
        own[tuple(map(slice, row.shape))] = row
    return stacked


def _there(batch: Batch, name: str) -> Tensor:
    """(B, M) bool: which entries are no padding."""
    return torch.arange(batch[name].shape[1], device=batch[name].device) < batch[f"{name}_count"][:, None]


def _grids(patches: np.ndarray, grids: np.ndarray, merged: int) -> list[np.ndarray]:
    """(h, w) each, of the patches (S,) of images with these (t, h, w), in blocks of ``merged``² as Qwen2-VL's are."""
    ends = grids.prod(1).cumsum()
    return [
        own.reshape(t, h // merged, w // merged, merged, merged).sum(0).transpose(0, 2, 1, 3).reshape(h, w)
        for own, (t, h, w) in zip(np.split(patches, ends)[:-1], grids, strict=True)
    ]


def _side_by_side(maps: Sequence[np.ndarray]) -> np.ndarray:
    """(h, w) of maps of different heights, zeros below the lower ones."""
    if not maps:
        return np.zeros((0, 0))
    most = max(len(m) for m in maps)
    return np.concatenate([np.pad(m, ((0, most - len(m)), (0, 0))) for m in maps], axis=1)


def load_vision_language(path: str, trust_remote_code: bool = False) -> tuple[nn.Module, Any]:
    """A vision-language causal LM and its processor from a folder or a hub id, in float32.

    Raises `InputError` when the model or its processor cannot be loaded.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return load_pretrained(
        path,
        AutoModelForImageTextToText,
        AutoProcessor,
        "vision-language model",
        "a processor (processor_config.json or preprocessor_config.json, and a tokenizer)",
        trust_remote_code,
    )
