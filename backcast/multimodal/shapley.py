"""The exact Shapley values of a game of two players, image and text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from backcast.multimodal.line import Line
from backcast.multimodal.task import Contents
from backcast.tasks import Batch


def coalitions(line: Line, batch: Batch, own: Contents, baseline: Contents) -> dict[str, Tensor]:
    """(B,) each: v of both players, of either one, and of none, the absent being at the baseline."""
    names = ("both", "image", "text", "none")
    given = (
        own,
        {**own, "text": baseline["text"]},
        {**own, "image": baseline["image"]},
        baseline,
    )
    return dict(zip(names, line.scores(batch, given), strict=True))


def shapley(v: Mapping[str, Any]) -> dict[str, Any]:
    """What each player adds, averaged over the two orders in which they can come:

        φ_image = ½ [(v(image) − v(none)) + (v(both) − v(text))],

    and likewise φ_text, so that φ_image + φ_text = v(both) − v(none).

    Source: Shapley 1953, A value for n-person games, for n = 2.
    """
    return {
        "image": ((v["image"] - v["none"]) + (v["both"] - v["text"])) / 2,
        "text": ((v["text"] - v["none"]) + (v["both"] - v["image"])) / 2,
    }


def interaction(v: Mapping[str, Any]) -> Any:
    """v(both) − v(image) − v(text) + v(none): what the two do together that neither does alone.

    Each Shapley value holds half of it. Source: Grabisch & Roubens 1999, An axiomatic approach to the concept of
    interaction among players, for n = 2.
    """
    return v["both"] - v["image"] - v["text"] + v["none"]
