"""The losses of image-caption pairs: of one beside fixed negatives, and of each of a batch's among the others."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor


class PairLoss(ABC):
    """A loss of the logits x = s⟨u, v⟩ + b of images u with captions v, with scale s and bias b."""

    @abstractmethod
    def against(self, own: Tensor, captions: Tensor, images: Tensor) -> Tensor:
        """(B,) a pair's loss beside fixed negatives.

        Args:
            own: (B, 1) the logits of the pairs.
            captions, images: (B, N) of each image with the negatives' captions, of each caption with their images; −∞
                for those that are none.
        """

    @abstractmethod
    def output(self, own: Tensor, captions: Tensor, images: Tensor) -> Tensor:
        """(B,) the log-odds that the pair is one, as this loss counts them; of the same logits."""

    @abstractmethod
    def shares(self, logits: Tensor, caption_of: Tensor) -> Tensor:
        """(B,) what each pair has of the batch's loss, which is their mean; equal captions are no negatives.

        Args:
            logits: (B, C) of each image with each distinct caption.
            caption_of: (B,) which one is its own.
        """

    def batch(self, logits: Tensor, caption_of: Tensor) -> Tensor:
        """The batch's loss, of the same logits."""
        return self.shares(logits, caption_of).mean()


class Contrastive(PairLoss):
    """CLIP's: to tell the own caption among all captions, and the own image among all images.

    Source: Radford et al. 2021, Learning transferable visual models from natural language supervision, section 2.3.
    """

    def against(self, own: Tensor, captions: Tensor, images: Tensor) -> Tensor:
        """½ Σ over both directions of −log e^x / (e^x + Σ_j e^{x_j})."""
        image_to_text, text_to_image = (
            torch.logsumexp(torch.cat([own, others], 1), 1) - own[:, 0] for others in (captions, images)
        )
        return (image_to_text + text_to_image) / 2

    def output(self, own: Tensor, captions: Tensor, images: Tensor) -> Tensor:
        """The mean over both directions of log p/(1 − p), p being the probability whose −log is in the loss.

        Source: Park et al. 2023, TRAK, section 5.1: there the sum of the two, without the logit scale.
        """
        image_to_text, text_to_image = (
            own[:, 0] - torch.logsumexp(others, 1) for others in (captions, images)
        )
        return (image_to_text + text_to_image) / 2

    def shares(self, logits: Tensor, caption_of: Tensor) -> Tensor:
        """Every pair of an equal caption is a positive.

        Each of the C distinct captions counts once, and its text-to-image loss is shared by its pairs: of n, each has
        B/(C n) of it. Source of several positives: Khosla et al. 2020, Supervised contrastive learning, the form with
        the sum inside the logarithm (equation 3).
        """
        positive = _positive(logits, caption_of)
        image_to_text = F.cross_entropy(logits, caption_of, reduction="none")
        shares = len(logits) / (positive.shape[1] * positive.sum(0))
        return (image_to_text + (shares * _text_to_image(logits, positive))[caption_of]) / 2

    def batch(self, logits: Tensor, caption_of: Tensor) -> Tensor:
        """Summed without sharing: a mean over pairs and one over distinct captions."""
        positive = _positive(logits, caption_of)
        return (F.cross_entropy(logits, caption_of) + _text_to_image(logits, positive).mean()) / 2


class Sigmoid(PairLoss):
    """SigLIP's: to say of each image and caption by themselves whether they are a pair.

    Source: Zhai et al. 2023, Sigmoid loss for language image pre-training, section 3.2 and algorithm 1.
    """

    def against(self, own: Tensor, captions: Tensor, images: Tensor) -> Tensor:
        """−log σ(x) − Σ_j log σ(−x_j), over both the own image's negatives and the own caption's.

        It is what the others' summed loss grows by when this pair joins them. Neither sum is halved: as the negatives
        are held constant, the gradients of a batch's pairs, each beside the rest, add up to that of its summed loss.
        """
        return -F.logsigmoid(own[:, 0]) + _absent(captions).sum(1) + _absent(images).sum(1)

    def output(self, own: Tensor, captions: Tensor, images: Tensor) -> Tensor:
        """x itself, as σ(x) is the probability."""
        return own[:, 0]

    def shares(self, logits: Tensor, caption_of: Tensor) -> Tensor:
        """Other pairs of an equal caption are left out; a negative's term is shared by its image's and its caption's
        pair, half each."""
        positive = _positive(logits, caption_of)
        own = logits.gather(1, caption_of[:, None])[:, 0]
        absent = _absent(logits.masked_fill(positive, -torch.inf))
        by_image, by_caption = absent @ positive.sum(0).to(absent), absent.sum(0)[caption_of]
        return -F.logsigmoid(own) + (by_image + by_caption) / 2


#: By name.
PAIR_LOSSES: dict[str, PairLoss] = {"contrastive": Contrastive(), "sigmoid": Sigmoid()}


def _absent(logits: Tensor) -> Tensor:
    """−log of the probability that each is no pair."""
    return -F.logsigmoid(-logits)


def _positive(logits: Tensor, caption_of: Tensor) -> Tensor:
    """(B, C) bool."""
    return F.one_hot(caption_of, logits.shape[1]).bool()


def _text_to_image(logits: Tensor, positive: Tensor) -> Tensor:
    """(C,) of logits (B, C): each caption's cross-entropy among the images, its own as one answer."""
    return torch.logsumexp(logits, 0) - torch.logsumexp(logits.masked_fill(~positive, -torch.inf), 0)
