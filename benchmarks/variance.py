"""How far do inner products of sketches stray from those of the gradients, by kind and k?

The spread is the standard deviation over seeds of ⟨Sx, Sy⟩ as a multiple of the Johnson-Lindenstrauss bound
√((‖x‖²‖y‖² + ⟨x, y⟩²) / k), for the gradients x and y of two examples (*product*) and for y = x (*norm*). All are
gradients of a linear layer of 256 × 128 weights, four times the largest k:

- *gaussian*, *rank one* (a single token), *heavy-tailed* (cubes of Gaussians), *outlier channels* (three inputs thirty
  times as large)
- real ones, after a short training: of the first and last blocks' first MLP layers of a small CLIP on digits and of a
  small Llama on docstrings

``--data DIR`` trains on ``emoji.parquet`` (captioned images) and ``gsm8k_train.jsonl.gz`` (text) instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import open_clip
import torch
from common import DEVICE, Row, arguments, write
from tokenizers import ByteLevelBPETokenizer
from torch import Generator, Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from backcast.data import Examples, read_examples
from backcast.data.corpora import digits_corpus
from backcast.data.corpora.docstrings import installed_packages, read_docstrings
from backcast.finetune import FinetuneConfig, finetune
from backcast.kernels import KINDS, SketchSpec, sketcher
from backcast.multimodal import ClipTask
from backcast.multimodal.mini_clip import MODEL
from backcast.tasks import CausalLMTask, Task, on_device

OUT, IN, TOKENS = 256, 128, 24
CAPTION, WORDS = 16, 1024
SHOWN = [kind for kind in ("tile", "sjlt", "dense", "kron") if kind in KINDS]
#: Packages whose docstrings the Llama reads: three that every installation of this one has.
READ = ("pydantic", "rich", "jinja2")

#: Two examples: X (2, T, IN) and D (2, T, OUT), with gradients D_bᵀ X_b.
Pair = tuple[Tensor, Tensor]


def synthetic() -> dict[str, Pair]:
    """Two examples of each kind of distribution; the second's first tokens are the first's."""
    draw = Generator().manual_seed(0)

    def gaussian(tokens: int) -> Pair:
        X, D = torch.randn(2, tokens, IN, generator=draw), torch.randn(2, tokens, OUT, generator=draw)
        half = max(1, tokens // 2)
        X[1, :half], D[1, :half] = X[0, :half], D[0, :half]
        return X, D

    heavy, (X, D) = gaussian(TOKENS), gaussian(TOKENS)
    X[..., [3, 17, 40]] *= 30
    return {
        "gaussian": gaussian(TOKENS),
        "rank one": gaussian(1),
        "heavy-tailed": (heavy[0] ** 3, heavy[1] ** 3),
        "outlier channels": (X, D),
    }


def clip(data: Path | None, steps: int) -> dict[str, Pair]:
    """From the image tower of a CLIP as small as the demo's, with twice its width."""
    pairs = (read_examples(data / "emoji.parquet") if data else digits_corpus().pool)[:512]
    wider = {"width": IN, "mlp_ratio": OUT / IN}
    vision = MODEL["vision_cfg"] | wider
    model = open_clip.CLIP(
        embed_dim=64,
        vision_cfg=vision,
        text_cfg=MODEL["text_cfg"] | wider | {"context_length": CAPTION, "vocab_size": WORDS},
    )
    task = ClipTask(open_clip.image_transform(vision["image_size"], is_train=False), word_tokens, pairs)
    blocks = model.visual.transformer.resblocks
    layers = {"CLIP, first block": blocks[0].mlp.c_fc, "CLIP, last block": blocks[-1].mlp.c_fc}
    return trained(model, task, pairs, layers, steps)


def word_tokens(captions: Sequence[str]) -> Tensor:
    """(B, `CAPTION`) int64: a token a word, then the largest id, where open_clip looks for the end."""
    rows = ([sum(word.encode()) % (WORDS - 2) + 1 for word in c.split()[: CAPTION - 1]] for c in captions)
    return torch.tensor([[*row, WORDS - 1] + [0] * (CAPTION - 1 - len(row)) for row in rows])


def llama(data: Path | None, steps: int) -> dict[str, Pair]:
    """From a Llama as small as the demo's."""
    if data:
        texts = read_examples(data / "gsm8k_train.jsonl.gz")[:2000]
    else:
        packages = installed_packages()
        found = read_docstrings({name: packages[name] for name in READ})
        texts = Examples.from_fields([pair._asdict() for pair in found])
    bpe = ByteLevelBPETokenizer()
    pieces = (example.fields["prompt"] + example.fields["response"] for example in texts)
    bpe.train_from_iterator(pieces, 1024, show_progress=False)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=IN, intermediate_size=OUT, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM(config)
    task = CausalLMTask(PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer), max_length=512)
    blocks = model.model.layers
    layers = {"Llama, first block": blocks[0].mlp.gate_proj, "Llama, last block": blocks[-1].mlp.gate_proj}
    return trained(model, task, texts, layers, steps)


def trained(
    model: nn.Module, task: Task, examples: Examples, layers: dict[str, nn.Module], steps: int
) -> dict[str, Pair]:
    """Two examples' inputs and output gradients of each layer, after a short training."""
    finetune(model, task, examples, FinetuneConfig(steps=steps, batch_size=16, learning_rate=1e-3), seed=0)
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str, layer: nn.Module) -> None:
        def remember(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            output.retain_grad()
            seen[name] = inputs[0].detach(), output

        layer.register_forward_hook(remember)

    task.prepare(model)
    for name, layer in layers.items():
        watch(name, layer)
    task.loss(model, on_device(task.collate(examples[:2]), model)).sum().backward()
    return {name: (X, output.grad) for name, (X, output) in seen.items()}


def gradients(data: Path | None = None, steps: int = 40) -> dict[str, Pair]:
    """Every pair of examples, by name; the real ones after so many steps of training."""
    torch.manual_seed(0)
    return synthetic() | clip(data, steps) | llama(data, steps)


def stacked(pairs: Sequence[Pair]) -> Pair:
    """X (2P, T, IN) and D (2P, T, OUT) on `DEVICE`: the pairs one after the other, padded to the longest."""
    X, D = (pad_sequence([x for pair in pairs for x in pair[side]], batch_first=True) for side in (0, 1))
    return X.to(DEVICE), D.to(DEVICE)


def spread(kind: str, k: int, X: Tensor, D: Tensor, seeds: int) -> Tensor:
    """(P, 2): of each of P stacked pairs, the spread of the first example's norm and of its product with the second."""
    products = []
    for seed in range(seeds):
        layer = sketcher(SketchSpec(kind, k, seed), "layer", D.shape[2], X.shape[2], X.device)
        products.append(with_first(layer.sketch(layer.keep(X), D).double()))
    G = (D.double().mT @ X.double()).flatten(1)
    exact, norms = with_first(G), G.square().sum(1).view(-1, 2)
    bound = ((norms[:, :1] * norms + exact**2) / k).sqrt()
    return (torch.stack(products).std(0) / bound).cpu()


def with_first(G: Tensor) -> Tensor:
    """(P, 2): ⟨g, g⟩ and ⟨g, h⟩ for the pairs (g, h) among the rows of G (2P, n)."""
    g = G.unflatten(0, (-1, 2))
    return (g[:, :1] * g).sum(2)


def main() -> None:
    chosen = arguments(__doc__.splitlines()[0])
    dims, seeds = ((256, 1024, 8192), 50) if chosen.quick else ([256 << i for i in range(6)], 200)
    pairs = gradients(chosen.data)
    X, D = stacked(list(pairs.values()))
    found = {(kind, k): spread(kind, k, X, D, seeds) for kind in SHOWN for k in dims}
    rows: list[Row] = [
        {
            "gradient": name,
            "of": measure,
            "k": k,
            **{kind: float(found[kind, k][pair, place]) for kind in SHOWN},
            "out_features": OUT,
            "in_features": IN,
            "seeds": seeds,
        }
        for pair, name in enumerate(pairs)
        for place, measure in enumerate(("norm", "product"))
        for k in dims
    ]
    write("variance", rows, chosen.json)


if __name__ == "__main__":
    main()
