"""Every type of module that can be tracked, against a loop of autograd over single examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attribution_cases import CLASSES, Classify, exact_gradients, llama, sketch_of
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from backcast.attribution.collect import tracked
from backcast.attribution.gradients.capture import GradientCapture, tracked_parts
from backcast.attribution.gradients.experts import OpenExperts
from backcast.attribution.gradients.opened import opened
from backcast.data import Example, Examples
from backcast.errors import InputError
from backcast.kernels import KINDS, SketchSpec
from backcast.kernels.embedding import embedding_sketch
from backcast.kernels.random import key
from backcast.kernels.sjlt import sjlt
from backcast.tasks import Batch, Task

VOCAB, PAD = 13, 3


class Everything(Classify):
    """Every module with parameters of its own is tracked, and its biases count."""

    biases = True

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        return {name: m for name, m in model.named_modules() if list(m.parameters(recurse=False))}


class Pool(nn.Module):
    """(B, ..., C) → (B, C): a sum in which positions do not count alike."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1, -2)
        return (x.tanh() * torch.linspace(-1, 1, x.shape[1], dtype=x.dtype)[:, None]).sum(1)


class ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1)


class ZeroCentred(nn.Module):
    """An RMSNorm whose gain is 1 + weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * (1 + self.weight)


class Flattened(nn.Module):
    """All tokens on one axis before a Linear, as mixture-of-experts blocks lay them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(0, 1)).view(*x.shape[:2], 6)


class Scaled(nn.Embedding):
    """A table that gives its rows at another length, as Gemma's."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * 3.0


class ByKeyword(nn.Module):
    """A layer whose input is given by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(input=x)


def over(*layers: nn.Module, width: int = 6) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers, Pool(), nn.Linear(width, CLASSES))


def batch_norm() -> nn.Module:
    norm = nn.BatchNorm2d(3)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return norm


#: what is tried → (model, an example's shape; of token ids where it is a single number)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (over(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 6)), (4, 7)),
    "linear, vectors": (lambda: nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, CLASSES)), (7,)),
    "linear, tokens on one axis": (over(Flattened()), (4, 7)),
    "linear, by keyword": (over(ByKeyword()), (4, 7)),
    "conv": (over(nn.Conv2d(3, 6, 3, padding=1), ChannelsLast()), (3, 5, 4)),
    "conv, groups": (over(nn.Conv2d(4, 6, 3, groups=2), ChannelsLast()), (4, 5, 4)),
    "conv, reflected": (over(nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"), ChannelsLast()), (3, 5, 4)),
    "conv of one axis": (over(nn.Conv1d(7, 6, 3), ChannelsLast()), (7, 5)),
    "conv, transposed": (over(nn.ConvTranspose2d(3, 6, 2), ChannelsLast()), (3, 4, 3)),
    "embedding": (over(nn.Embedding(VOCAB, 6)), (9,)),
    "embedding, padding": (over(nn.Embedding(VOCAB, 6, padding_idx=PAD)), (9,)),
    "embedding, scaled": (over(Scaled(VOCAB, 6)), (9,)),
    "layer norm": (over(nn.Linear(7, 6), nn.LayerNorm(6)), (4, 7)),
    "group norm": (over(nn.GroupNorm(3, 6), ChannelsLast()), (6, 4, 3)),
    "rms norm": (over(nn.RMSNorm(7), width=7), (4, 7)),
    "zero-centred rms norm": (over(ZeroCentred(7), width=7), (4, 7)),
    "batch norm": (over(batch_norm(), ChannelsLast(), width=3), (3, 5, 4)),
    "parametric relu": (over(nn.Linear(7, 6), nn.PReLU()), (4, 7)),
}  # fmt: skip


def build(case: str, n: int = 4, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Task, Examples]:
    torch.manual_seed(1)
    factory, shape = LAYERS[case]
    model = factory().to(dtype).eval()
    for parameter in model.parameters():  # norms begin at one and zero
        nn.init.normal_(parameter, 0.1, 0.7)
    if case.startswith("embedding"):
        x = torch.randint(VOCAB, (n, *shape))
        x[:, 1], x[:, -2:] = x[:, 0], PAD
    else:
        x = torch.randn(n, *shape, dtype=dtype)
    return model, Everything(), rows_of(x)


def rows_of(x: Tensor) -> Examples:
    fields = [{"text": f"{b}", "label": b % CLASSES, "x": x[b]} for b in range(len(x))]
    return Examples.from_fields(fields)


def captured(model: nn.Module, task: Task, rows: Examples, spec: SketchSpec) -> Tensor:
    with opened(model), GradientCapture(model, tracked(model, task), spec, task.biases) as capture:
        return capture.sketches(task.loss(model, task.collate(rows)))


def expected_sketch(model: nn.Module, task: Task, rows: Examples, spec: SketchSpec) -> Tensor:
    """The sum over the named modules of their operators, on gradients that are the loop's."""
    named = dict(model.named_parameters())
    exact = exact_gradients(model, task, rows, named)
    assert all(g.norm() > 0 for g in exact.values())
    total: Any = 0
    for name, module in task.modules(model).items():
        own = {p: exact[f"{name}.{p}"] for p, _ in module.named_parameters()}
        matrix = type(module) is nn.Linear or (
            type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros"
        )
        if matrix:
            total = total + sketch_of({name: own["weight"]}, spec)
            total = total + vector_sketch(f"{name}.bias", [own["bias"]], spec)
        elif type(module) is nn.Embedding:
            total = total + table_sketch(name, own["weight"], spec)
        else:
            total = total + vector_sketch(name, list(own.values()), spec)
    return total


def vector_sketch(name: str, gradients: Sequence[Tensor], spec: SketchSpec) -> Tensor:
    flat = torch.cat([g.flatten(1) for g in gradients], 1)
    return sjlt(flat, spec.dim, key(spec, name, "vector"))


def table_sketch(name: str, G: Tensor, spec: SketchSpec) -> Tensor:
    ids = torch.arange(G.shape[1]).expand(len(G), -1)
    return embedding_sketch(ids, G, spec.dim, key(spec, name, "embedding"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", LAYERS)
def test_sketches_are_those_of_the_loops_gradients(case, kind):
    model, task, rows = build(case)
    spec = SketchSpec(kind, 36)
    expected = expected_sketch(model, task, rows, spec)
    got = captured(model, task, rows, spec)
    assert (got - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize("case", LAYERS)
def test_biases_are_left_out_unless_asked_for(case):
    """Of matrix layers: a small module's own count as the rest of it."""
    model, task, rows = build(case)
    spec = SketchSpec("sjlt", 36)
    whole = captured(model, task, rows, spec)
    task.biases = False
    parts = tracked_parts(tracked(model, task))
    assert not any(part.name.endswith(".bias") for found in parts.values() for part in found)
    exact = exact_gradients(model, task, rows, dict(model.named_parameters()))
    matrices = [n for n, found in tracked_parts(tracked(model, task), True).items() if len(found) == 2]
    biases = sum(vector_sketch(f"{n}.bias", [exact[f"{n}.bias"]], spec) for n in matrices)
    torch.testing.assert_close(captured(model, task, rows, spec) + biases, whole, rtol=1e-9, atol=1e-10)


class Tied(nn.Module):
    """A language model in small: its table of tokens is its head's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, 6, padding_idx=PAD)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, VOCAB, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(Pool()(self.mix(self.tokens(ids))))[:, :CLASSES]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("named", [("tokens",), ("head",), ("tokens", "head")])
def test_a_table_that_is_the_heads_weight_too_adds_up(named, kind):
    """Whichever of the two a task names, the other comes with it."""

    class Chosen(Classify):
        def modules(self, model: nn.Module) -> dict[str, nn.Module]:
            return {name: model.get_submodule(name) for name in named}

    torch.manual_seed(0)
    model, task = Tied().double(), Chosen()
    ids = torch.randint(VOCAB, (4, 7))
    ids[:, -1] = PAD
    spec, rows = SketchSpec(kind, 36), rows_of(ids)
    exact = exact_gradients(model, task, rows, {named[0]: model.tokens.weight})
    expected = sketch_of(exact, spec)
    got = captured(model, task, rows, spec)
    assert (got - expected).norm() <= 1e-10 * expected.norm()


class Gated(nn.Module):
    """A norm of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(7))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return x * gate.sigmoid() * self.weight


@pytest.mark.parametrize("by_keyword", [False, True])
def test_a_small_module_of_two_inputs_is_refused(by_keyword):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = Gated(), nn.Linear(7, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x, gate=x) if by_keyword else self.norm(x, x))

    with pytest.raises(InputError, match="layer norm: a Gated of several inputs cannot be tracked"):
        captured(Model(), Everything(), rows_of(torch.randn(3, 7)), SketchSpec("sjlt", 8))


def test_a_small_module_of_two_outputs_is_refused():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory, self.head = nn.GRU(7, 6, batch_first=True), nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.memory(x)[0].sum(1))

    with pytest.raises(InputError, match="layer memory: a GRU of several outputs cannot be tracked"):
        captured(Model(), Everything(), rows_of(torch.randn(3, 4, 7)), SketchSpec("sjlt", 8))


def test_a_reparametrized_weight_is_no_matrix_of_its_own():
    """Its gradient is not D'X: such a layer cannot be tracked, rather than be tracked wrongly."""
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    assert tracked_parts({"normed": normed}, biases=True) == {}


class Tokens(Task):
    """The loss of a causal model over whole rows of ids."""

    biases = True

    def collate(self, examples: Sequence[Example]) -> Batch:
        return {"ids": torch.stack([e.fields["x"] for e in examples])}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(input_ids=batch["ids"]).logits[:, :-1]
        return F.cross_entropy(logits.mT, batch["ids"][:, 1:], reduction="none").sum(1)


def language_model(kind: str) -> nn.Module:
    sizes = {
        "vocab_size": VOCAB, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "num_experts_per_tok": 2,
        "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(0)
    model = {
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCAB, n_positions=16, n_embd=8, n_layer=2, n_head=2)
        ),
        "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=4)),
        "qwen3_moe": lambda: Qwen3MoeForCausalLM(
            Qwen3MoeConfig(**sizes, num_experts=4, moe_intermediate_size=6, norm_topk_prob=True)
        ),
        "gpt_oss": lambda: GptOssForCausalLM(
            GptOssConfig(**sizes, num_local_experts=4, layer_types=["full_attention"] * 2)
        ),
    }[kind]()
    for parameter in model.parameters():  # as it comes, biases are zero and everything else is small
        nn.init.normal_(parameter, std=0.5)
    if kind in MIXTURES:
        model.set_experts_implementation("eager")  # the others know no float64
    return model.double().eval()


def ids(n: int = 3, length: int = 6) -> Examples:
    return rows_of(torch.randint(VOCAB, (n, length), generator=torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("kind", KINDS)
def test_gpt2s_transposed_linear_layers(kind):
    model, task, rows, spec = language_model("gpt2"), Tokens(), ids(), SketchSpec(kind, 36)
    layers = {n: m for n, m in model.named_modules() if type(m).__name__ == "Conv1D"}
    assert len(layers) == 8
    weights = {n: m.weight for n, m in layers.items()}
    exact = exact_gradients(model, task, rows, weights | {f"{n}.bias": m.bias for n, m in layers.items()})
    expected = sketch_of({n: exact[n].mT for n in layers}, spec)
    for n in layers:
        expected = expected + vector_sketch(f"{n}.bias", [exact[f"{n}.bias"]], spec)
    task.modules = lambda model: layers
    got = captured(model, task, rows, spec)
    assert (got - expected).norm() <= 1e-10 * expected.norm()


MIXTURES = ["mixtral", "qwen3_moe", "gpt_oss"]


def expert_gradients(
    model: nn.Module, task: Task, rows: Examples
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of each expert, by the names of its opened modules: weights' gradients (B, O, I), and biases' (B, O)."""
    matrices, biases = {}, {}
    for place, fused in model.named_modules():
        if not hasattr(fused, "gate_up_proj"):
            continue
        exact = exact_gradients(model, task, rows, dict(fused.named_parameters()))
        for short, name in (("up", "gate_up_proj"), ("down", "down_proj")):
            for e in range(4):
                G = exact[name][:, e]
                matrices[f"{place}.{short}.{e}"] = G.mT if fused.is_transposed else G
                if f"{name}_bias" in exact:
                    biases[f"{place}.{short}.{e}.bias"] = exact[f"{name}_bias"][:, e]
    return matrices, biases


def experts(task: Task, model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in Task.modules(task, model).items() if "experts" in name}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mixture", MIXTURES)
def test_fused_experts_are_their_slices(mixture, kind):
    model, task, rows, spec = language_model(mixture), Tokens(), ids(), SketchSpec(kind, 36)
    matrices, biases = expert_gradients(model, task, rows)
    assert len(matrices) == 2 * 2 * 4
    assert bool(biases) == (mixture == "gpt_oss")
    expected = sketch_of(matrices, spec)
    for name, gradient in biases.items():
        expected = expected + vector_sketch(name, [gradient], spec)
    task.modules = partial(experts, task)
    got = captured(model, task, rows, spec)
    assert (got - expected).norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize("mixture", MIXTURES)
def test_an_opened_mixture_computes_the_same_function(mixture):
    model = language_model(mixture)
    parameters, batch = dict(model.named_parameters()), torch.stack([e.fields["x"] for e in ids()])
    before = model(batch).logits
    with opened(model):
        assert sum(isinstance(m, OpenExperts) for m in model.modules()) == 2
        torch.testing.assert_close(model(batch).logits, before, rtol=1e-10, atol=1e-10)
        assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in parameters.values())
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert all(p is parameters[name] for name, p in model.named_parameters())


def test_a_mixtures_rows_that_are_not_the_examples_are_refused():
    model, task, rows = language_model("mixtral"), Tokens(), ids(n=4, length=6)
    task.modules = partial(experts, task)
    with opened(model), GradientCapture(model, tracked(model, task), SketchSpec("kron", 16)) as capture:
        losses = task.loss(model, task.collate(rows))
        with pytest.raises(InputError, match=r"layer \S+experts\.down\.\d sees 24 rows for 5 examples"):
            capture.sketches(torch.cat([losses, losses[:1]]))


def adapted() -> nn.Module:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=3, target_modules=["q_proj", "v_proj", "up_proj"], lora_dropout=0.1)
    model = peft.get_peft_model(llama(VOCAB, width=8), config)
    # A second adapter begins at zero, and then the first has no gradient.
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_model_with_adapters_only_they_are_tracked(kind):
    model, task, rows, spec = adapted(), Tokens(), ids(), SketchSpec(kind, 36)
    trainable = {n.removesuffix(".weight"): p for n, p in model.named_parameters() if p.requires_grad}
    assert set(tracked(model, task)) == set(trainable)
    assert len(trainable) == 2 * 2 * 3
    exact = exact_gradients(model, task, rows, trainable)
    assert all(g.norm() > 0 for g in exact.values())
    expected = sketch_of(exact, spec)
    got = captured(model, task, rows, spec)
    assert (got - expected).norm() <= 1e-10 * expected.norm()
    assert {n.removesuffix(".weight") for n, p in model.named_parameters() if p.requires_grad} == set(
        trainable
    )
