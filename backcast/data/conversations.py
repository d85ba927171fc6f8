"""Conversations about images: several ways to write them down, one canonical form.

Canonical are ``messages``, whose contents are a text or, where there are images, a list of the parts
``{"type": "text", "text": ...}`` and ``{"type": "image"}``; and ``images``, in the order of the image parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from backcast.data.examples import Example, Image
from backcast.data.images import BrokenImage
from backcast.data.values import checked_text
from backcast.errors import InputError

Message = dict[str, Any]

#: Where a text shows an image. A newline beside it only sets it apart and belongs to it.
MARK = re.compile(r"\n?<image>\n?")

#: LLaVA's names of the roles.
ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class Slot:
    """An image's place in a content; what is shown there may be told elsewhere."""

    image: Image | None = None


@dataclass(frozen=True)
class Turn:
    """A message as it was read. ``where`` names its content in errors."""

    role: str
    content: Sequence[str | Slot]
    where: str


def conversation(example: Example) -> tuple[list[Message], list[Image]]:
    """An example's canonical messages and its images, in the order of their image parts.

    Of ``messages`` (with ``images``), ``prompt`` and ``response``, or ``image``, ``prompt`` and ``response``, where
    the image stands at the prompt's ``<image>``, else before the prompt.

    Raises:
        InputError: the example is no conversation, or not each of its images has one place.
    """
    fields = example.fields
    try:
        if "messages" in fields:
            messages, images = fields["messages"], list(fields.get("images") or ())
            places = sum(part["type"] == "image" for m in messages for part in _parts(m["content"]))
            if places != len(images):
                raise _mismatch(places, len(images))
            return messages, images
        if "prompt" in fields and "response" in fields:
            image = fields.get("image")
            turns = asked(fields["prompt"], fields["response"])
            return arranged(turns, None if image is None else [image])
        raise InputError(
            f"no conversation ({', '.join(sorted(fields))}); give messages, or prompt and response"
        )
    except InputError as error:
        raise InputError(f"row {example.row} of {example.source}: {error}") from None


def asked(prompt: str, response: str) -> list[Turn]:
    """The turns of one question and its answer."""
    return [Turn("user", [prompt], "prompt"), Turn("assistant", [response], "response")]


def read_turns(value: Any, own: str, read_image: Callable[[Any, str], Image]) -> list[Turn]:
    """The turns of a list of messages, ``{"role", "content"}`` or LLaVA's ``{"from", "value"}``.

    A content is a text or a list of parts: texts, and images that bear their image or only mark its place.

    Args:
        value: the messages as they were read.
        own: their column, which errors name.
        read_image: checks an image's path, bytes or data URL; given its name too.
    """
    if not isinstance(value, list):
        raise InputError(f"{own!r} must be a list of messages, not {type(value).__name__}")
    if not value:
        raise InputError(f"{own!r} is empty")
    return [_turn(message, f"{own}[{i}]", read_image) for i, message in enumerate(value)]


def _turn(message: Any, where: str, read_image: Callable[[Any, str], Image]) -> Turn:
    keys = set(message) if isinstance(message, dict) else set()
    if {"role", "content"} <= keys:
        role = checked_text(message["role"], f"{where}.role")
        content, where = message["content"], f"{where}.content"
    elif {"from", "value"} <= keys:
        content, where = message["value"], f"{where}.value"
        if message["from"] not in list(ROLES):
            raise InputError(f"'{where}' is from {message['from']!r}; it must be from human, gpt or system")
        role = ROLES[message["from"]]
    else:
        raise InputError(f"'{where}' must have a role and a content")
    if not isinstance(content, list):
        return Turn(role, [checked_text(content, where)], where)
    return Turn(role, [_piece(part, f"{where}[{i}]", read_image) for i, part in enumerate(content)], where)


def _piece(part: Any, where: str, read_image: Callable[[Any, str], Image]) -> str | Slot:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind == "text":
        return checked_text(part.get("text"), f"{where}.text", blank=True)
    if kind in ("image", "image_url"):
        shown = next(
            (part[key] for key in ("image", "path", "url", "image_url") if part.get(key) is not None), None
        )
        if kind == "image_url" and isinstance(shown, dict):
            shown = shown.get("url")
        return Slot(None if shown is None else read_image(shown, where))
    raise InputError(f"'{where}' must be a part of type text or image, not {kind}")


def arranged(turns: Sequence[Turn], images: Sequence[Image] | None) -> tuple[list[Message], list[Image]]:
    """Canonical messages and images.

    Args:
        turns: at least one.
        images: those told beside the turns: they fill the places that bear none, ``<image>`` marks among them, in
            order; where there is no place at all they stand before the first user's turn, as in LLaVA's data. None
            where a row cannot tell any: a mark is then text like any other.

    Raises:
        InputError: not as many images as places, or a content is blank. `BrokenImage` where there is none for a place.
    """
    beside = list(images or ())
    contents = [list(turn.content) if images is None else _split(turn.content) for turn in turns]
    if beside and not _slots(contents):
        first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
        if first is None:
            raise InputError("no place for its images: no <image>, and no user's turn to put them before")
        contents[first][:0] = [Slot() for _ in beside]
    slots = _slots(contents)
    places = sum(slot.image is None for slot in slots)
    if places != len(beside):
        raise _mismatch(places, len(beside))
    filling = iter(beside)
    shown = [next(filling) if slot.image is None else slot.image for slot in slots]
    messages = [
        {"role": turn.role, "content": _content(pieces, turn.where)}
        for turn, pieces in zip(turns, contents, strict=True)
    ]
    return messages, shown


def _slots(contents: Sequence[Sequence[str | Slot]]) -> list[Slot]:
    return [piece for content in contents for piece in content if isinstance(piece, Slot)]


def _split(pieces: Sequence[str | Slot]) -> list[str | Slot]:
    """The pieces, their texts cut at the marks."""
    cut: list[str | Slot] = []
    for piece in pieces:
        if isinstance(piece, Slot):
            cut.append(piece)
            continue
        first, *others = MARK.split(piece)
        cut += [first, *(p for text in others for p in (Slot(), text))]
    return cut


def _content(pieces: Sequence[str | Slot], where: str) -> str | list[Message]:
    """The canonical content: adjacent texts joined, blank ones between images left out."""
    parts: list[Message] = []
    for piece in pieces:
        if isinstance(piece, Slot):
            parts.append({"type": "image"})
        elif parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += piece
        else:
            parts.append({"type": "text", "text": piece})
    if all(part["type"] == "text" for part in parts):
        return checked_text("".join(part["text"] for part in parts), where)
    return [part for part in parts if part["type"] == "image" or part["text"].strip()]


def _parts(content: str | list[Message]) -> list[Message]:
    return content if isinstance(content, list) else []


def _mismatch(places: int, images: int) -> InputError:
    if not images:
        return BrokenImage(f"no image for its {places} <image> marks or image parts; name one for each")
    return InputError(
        f"{places} <image> marks or image parts for {images} images; every image needs one place"
    )
