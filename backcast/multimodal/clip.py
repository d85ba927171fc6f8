"""CLIP and its kin through open_clip: loading, and the loss of one image with its caption."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn

from backcast.attribution.gradients.attention import is_fused_attention
from backcast.data import Example, Examples, open_image
from backcast.errors import InputError
from backcast.files import write_json
from backcast.multimodal.pair_losses import PAIR_LOSSES
from backcast.multimodal.task import Contents, MultimodalTask, answering, block_sums, no_word
from backcast.tasks import Batch, batches, on_device

log = logging.getLogger("backcast")

#: Bytes of preprocessed images that a task keeps.
CACHE_BYTES = 2**28
#: The smallest cell, in pixels, of an image's map: a tower that is no transformer has no patches.
SMALLEST = 8


class ClipTask(MultimodalTask):
    """Image-text pairs under a loss whose negatives are fixed: CLIP's or SigLIP's.

    Example b with image embedding u and caption embedding v (unit vectors), logit scale s and bias β, has the loss

        contrastive:  ℓ = ½ [−log e^{s⟨u,v⟩} / (e^{s⟨u,v⟩} + Σ_j e^{s⟨u,v_j⟩})
                              − log e^{s⟨u,v⟩} / (e^{s⟨u,v⟩} + Σ_j e^{s⟨u_j,v⟩})]
        sigmoid:      ℓ = −log σ(s⟨u,v⟩ + β) − Σ_j [log σ(−s⟨u,v_j⟩ − β) + log σ(−s⟨u_j,v⟩ − β)]

    where (u_j, v_j) is a seeded bank of pairs from the training data whose caption differs from b's, encoded once at
    the present weights and held constant. So an example's gradient does not depend on the batch that it stands in.
    Training uses the batch's own pairs (`training_losses`); in both, pairs of equal captions are never negatives.

    Args:
        preprocess: image → (3, H, W) tensor, as open_clip returns it.
        tokenizer: captions → (B, L) int64 tokens, as open_clip returns it.
        bank: the training examples to draw negatives from.
        bank_size: how many.
        seed: of that draw.
        loss: "contrastive" or "sigmoid"; `trained_with` tells a model's own.

    Raises:
        InputError: no such loss.

    Source: Radford et al. 2021, Learning transferable visual models from natural language supervision, section 2.3;
    Zhai et al. 2023, Sigmoid loss for language image pre-training, the loss of section 3.2 before its division by |B|.
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
        loss: str = "contrastive",
    ) -> None:
        if loss not in PAIR_LOSSES:
            raise InputError(f"loss {loss!r} does not exist; choose one of {', '.join(PAIR_LOSSES)}")
        self._loss, self._pairs = loss, PAIR_LOSSES[loss]
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        chosen = np.random.default_rng(seed).permutation(len(bank))[:bank_size]
        self.bank = bank[np.sort(chosen)]
        self._bank_captions = [example.fields["caption"] for example in self.bank]
        self._images: OrderedDict[str, Tensor] = OrderedDict()
        self._captions: dict[str, Tensor] = {}
        self._bank_embeddings: tuple[Tensor, Tensor] | None = None
        self._length: int | None = None

    def settings(self) -> dict[str, Any]:
        bank = {"bank": self.bank.index.fingerprint}
        return bank if self._loss == "contrastive" else {**bank, "loss": self._loss}

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """Every Linear and Conv2d that embeddings are made with but the first, the patch embedding, whose gradient
        would drown the other layers' in a cosine; and but those whose weights are taken without a call, which no hook
        sees."""
        left_out = {embedding_modules(model)["image"], *_never_called(model)}
        return {name: module for name, module in super().modules(model).items() if module not in left_out}

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
        stride = embedding_modules(model)["image"].stride[0]  # type: ignore[index]
        self._patch = max(int(stride), SMALLEST)
        with torch.no_grad():
            encoded = [self._encode(model, on_device(self.collate(b), model)) for b in batches(self.bank, 64)]
        self._bank_embeddings = (torch.cat([u for u, _ in encoded]), torch.cat([v for _, v in encoded]))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._pairs.against(*self._against_bank(model, batch))

    def output(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,) the log-odds log p/(1 − p) of the pair: of the contrastive loss the mean over both directions of the own
        caption's and image's, against the bank; of the sigmoid loss the logit s⟨u,v⟩ + β."""
        return self._pairs.output(*self._against_bank(model, batch))

    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, 2d) the unit embeddings of image and caption."""
        return torch.cat(self._encode(model, batch), 1)

    def training_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,) each pair's share of the batch's loss, see `PairLoss.shares`."""
        return self._pairs.shares(*self._in_batch(model, batch))

    def objective(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean of `training_losses`."""
        return self._pairs.batch(*self._in_batch(model, batch))

    def _in_batch(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (B, C) of each image with each distinct caption, encoded once, and each pair's caption (B,)."""
        distinct = {caption: i for i, caption in enumerate(dict.fromkeys(batch["captions"]))}
        caption_of = torch.tensor([distinct[c] for c in batch["captions"]], device=batch["images"].device)
        first = torch.tensor([batch["captions"].index(c) for c in distinct], device=caption_of.device)
        u = F.normalize(model.encode_image(batch["images"]), dim=1)  # type: ignore[operator]
        v = F.normalize(model.encode_text(batch["tokens"][first]), dim=1)  # type: ignore[operator]
        scale, bias = logit_parameters(model)
        return scale * u @ v.T + bias, caption_of

    def contents(self, model: nn.Module, batch: Batch) -> Contents:
        """``image`` (B, 3, H, W), ``text`` (B, L, H)."""
        return {"image": batch["images"], "text": self.token_embeddings(model)(batch["tokens"])}

    def loss_at(self, model: nn.Module, batch: Batch, contents: Contents) -> Tensor:
        with answering(self.token_embeddings(model), contents["text"]):
            return self.loss(model, {**batch, "images": contents["image"]})

    def pixels(self, examples: Sequence[Example], alter: Callable[[Image], Image]) -> Tensor:
        return torch.stack([self.preprocess(alter(open_image(e.fields["image"]))) for e in examples])

    def players(self, batch: Batch) -> Tensor:
        """A caption's words: all but the tokenizer's marks and padding."""
        return self._words(batch["tokens"])

    def token_embeddings(self, model: nn.Module) -> nn.Module:
        return embedding_modules(model)["text"]

    def filler(self) -> int:
        return no_word(self._vocabulary)

    def token_ids(self, batch: Batch) -> Tensor:
        return batch["tokens"]

    def patches(self, pixels: np.ndarray, batch: Batch) -> list[np.ndarray]:
        return list(block_sums(pixels.sum(1), self._patch))

    def words(self, example: Example) -> list[str]:
        tokens = self._tokens(example.fields["caption"])
        return [self._vocabulary.decode([token]).strip() for token in tokens[self._words(tokens)].tolist()]

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

    def _against_bank(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The logits of the own pair (B, 1), of its image with the bank's captions and of its caption with the bank's
        images (B, N); those of an equal caption are −∞."""
        if self._bank_embeddings is None:
            raise RuntimeError(
                "ClipTask.prepare(model) has not been called: the bank of negatives is not encoded"
            )
        bank_images, bank_texts = self._bank_embeddings
        u, v = self._encode(model, batch)
        scale, bias = logit_parameters(model)
        own = scale * (u * v).sum(1, keepdim=True) + bias
        same = torch.tensor(
            [[c == other for other in self._bank_captions] for c in batch["captions"]], device=own.device
        )
        captions, images = (
            (scale * x @ others.T + bias).masked_fill(same, -torch.inf)
            for x, others in ((u, bank_texts), (v, bank_images))
        )
        return own, captions, images

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

    def _words(self, tokens: Tensor) -> Tensor:
        """(..., L) bool. What follows CLIP's own end is padding, whose id 0 is also a word's."""
        ended = (tokens == getattr(self._vocabulary, "eot_token_id", -1)).cumsum(-1) > 0
        return ~ended & ~torch.isin(tokens, self._marks.to(tokens.device))

    @property
    def _vocabulary(self) -> Any:
        """What decodes tokens: of transformers, or CLIP's own."""
        return getattr(self.tokenizer, "tokenizer", self.tokenizer)

    @cached_property
    def _marks(self) -> Tensor:
        """The ids of the tokens that are no words; that of an unknown word is one, unless it also is a mark."""
        unknown, *marks = (
            getattr(self._vocabulary, f"{kind}_token_id", None) for kind in ("unk", "pad", "eos")
        )
        return torch.tensor(sorted({*self._vocabulary.all_special_ids} - {unknown} | {*marks} - {None}))


def logit_parameters(model: nn.Module) -> tuple[Tensor, Tensor | float]:
    """The logit scale s and the bias; of CLIP, which has none, 0, and a scale of at most 100, as it is trained."""
    scale = model.logit_scale.exp()  # type: ignore[union-attr, operator]
    bias: Any = getattr(model, "logit_bias", None)
    return (scale.clamp(max=100), 0.0) if bias is None else (scale, bias)


def trained_with(model: nn.Module) -> str:
    """The loss that a model was made for: "sigmoid" where its logits have a bias."""
    return "contrastive" if getattr(model, "logit_bias", None) is None else "sigmoid"


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


def _never_called(model: nn.Module) -> set[nn.Module]:
    """The layers in attention that hands their weights to a function, and in CoCa's decoder, which writes captions."""
    parents = [
        module
        for name, module in model.named_modules()
        if name == "text_decoder"
        or (isinstance(module, nn.MultiheadAttention) and not is_fused_attention(module))
        or _is_attention_pool(module)
    ]
    return {layer for parent in parents for layer in parent.modules()}


def _is_attention_pool(module: nn.Module) -> bool:
    """Whether it is the last layer of CLIP's ResNets; told by name, to import no open_clip."""
    return (type(module).__module__, type(module).__name__) == (
        "open_clip.modified_resnet",
        "AttentionPool2d",
    )


def load_clip(
    name: str, seed: int = 0
) -> tuple[nn.Module, Callable[[Any], Tensor], Callable[[list[str]], Tensor]]:
    """A CLIP or SigLIP model with its preprocessing and tokenizer, in float32 on the CPU.

    Args:
        name: a folder (``open_clip_config.json`` beside its weights), ``hf-hub:ORG/REPO``, or ``ARCHITECTURE/TAG`` with
            a pretrained tag that open_clip knows, e.g. ``ViT-B-32/openai``. With random weights, and a warning that
            says so: ``ARCHITECTURE`` alone, or a JSON file of open_clip's form (``model_cfg``, ``preprocess_cfg``),
            whose tokenizer lies beside it or is one of the hub.
        seed: of random weights.

    Raises:
        InputError: no such model, or a folder without configuration or weights, or a file of another form.
    """
    if Path(name).is_dir():
        _check_folder(Path(name))
        return _load(name, f"local-dir:{name}")
    if Path(name).suffix == ".json":
        return _from_configuration(Path(name), seed)
    if ":" in name:
        return _load(name, name)
    architecture, tag = _architecture_and_tag(name)
    return _load(name, architecture, tag, None if tag else seed)


def _load(
    name: str, identifier: str, tag: str | None = None, seed: int | None = None
) -> tuple[nn.Module, Callable[[Any], Tensor], Callable[[list[str]], Tensor]]:
    """What open_clip makes of its own ``identifier``; with random weights where a seed is given."""
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    pretrained = seed is None
    logging.disable(logging.ERROR)  # open_clip reports each step to the root logger; what matters it raises
    try:
        config = open_clip.get_model_config(identifier)
        # A configuration can ask for code of its own folder to be run; that is the user's to allow, not the file's.
        options = {"trust_remote_code": False} if config["text_cfg"].get("hf_tokenizer_name") else {}
        tokenizer = open_clip.get_tokenizer(identifier, **options)
        with torch.random.fork_rng():
            torch.manual_seed(seed or 0)
            model = open_clip.create_model(
                identifier,
                tag,
                load_weights=pretrained,
                require_pretrained=pretrained,
                pretrained_text=False,
                weights_only=True,
            )
    except Exception as error:  # open_clip raises whatever its loaders do
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name}: open_clip cannot load this model ({reason})") from None
    finally:
        logging.disable(logging.NOTSET)
    if not pretrained:
        log.warning(
            f"{name}: no weights are named, so these are random (seed {seed}); the model is untrained"
        )
    return model, image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False), tokenizer


def _from_configuration(
    path: Path, seed: int
) -> tuple[nn.Module, Callable[[Any], Tensor], Callable[[list[str]], Tensor]]:
    """A model of random weights, by way of a folder as open_clip reads it."""
    from transformers import AutoTokenizer

    try:
        given = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a JSON file that can be read ({error})") from None
    model = given.get("model_cfg", given) if isinstance(given, dict) else {}
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in model]
    if missing:
        raise InputError(
            f"{path}: not a configuration of open_clip; its model_cfg lacks {', '.join(missing)}"
        )
    with TemporaryDirectory() as folder:
        write_json(
            Path(folder) / "open_clip_config.json",
            {"model_cfg": model, "preprocess_cfg": given.get("preprocess_cfg", {})},
        )
        tokenizer = model["text_cfg"].get("hf_tokenizer_name")
        if tokenizer:
            beside = (path.parent / "tokenizer_config.json").is_file()
            source = str(path.parent) if beside else tokenizer
            try:
                AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)
            except (OSError, ValueError) as error:
                reason = " ".join(str(error).split())[:200]
                raise InputError(
                    f"{path}: its tokenizer {tokenizer} neither lies beside it nor can be had from the hub ({reason})"
                ) from None
        return _load(str(path), f"local-dir:{folder}", seed=seed)


def _architecture_and_tag(name: str) -> tuple[str, str | None]:
    """Of ARCHITECTURE or ARCHITECTURE/TAG, in open_clip's spelling; raises `InputError` with near matches."""
    import open_clip

    known = open_clip.list_models()
    head, _, tag = name.rpartition("/")
    if (whole := name.replace("/", "-")) in known:
        return whole, None
    if (architecture := head.replace("/", "-")) not in known:
        asked = head or name
        near = _near(asked, known, "list_models()")
        raise InputError(f"{name}: not a folder, and open_clip knows no architecture {asked!r}; {near}")
    if not open_clip.get_pretrained_cfg(architecture, tag):
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        raise InputError(
            f"{name}: open_clip knows no weights {tag!r} of {architecture}; {_near(tag, tags, 'list_pretrained()')}"
        )
    return architecture, tag


def _near(asked: str, known: Collection[str], listing: str) -> str:
    spelt = {name.lower(): name for name in known}
    near = [repr(spelt[name]) for name in get_close_matches(asked.lower(), spelt)]
    return f"is it {' or '.join(near)}?" if near else f"open_clip.{listing} names them"


def _check_folder(folder: Path) -> None:
    if not (folder / "open_clip_config.json").is_file():
        raise InputError(f"{folder}: no open_clip_config.json; this folder holds no CLIP model")
    if not any(path.suffix in (".safetensors", ".bin", ".pth") for path in folder.iterdir()):
        raise InputError(
            f"{folder}: a model folder without weights; add open_clip_model.safetensors, "
            "or name its open_clip_config.json for an untrained model"
        )
