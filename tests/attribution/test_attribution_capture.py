"""Per-example gradients from hooks, against a loop of autograd over single examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attribution_cases import CLASSES, Classify, exact_gradients, examples, sketch_of
from torch import Tensor, nn

from backcast.attribution.gradients.attention import OpenAttention
from backcast.attribution.gradients.capture import GradientCapture, tracked_parts
from backcast.attribution.gradients.opened import opened
from backcast.data import Examples
from backcast.errors import InputError
from backcast.kernels import KINDS, SketchSpec
from backcast.tasks import Batch


class Pooled(nn.Module):
    """Some body, its output's mean over every axis between the first and the last, and a head."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.head(h.tanh().flatten(1, -2).mean(1) if h.dim() > 2 else h.tanh())


class Image(nn.Module):
    """A convolution of a (B, C, H, W) image whose positions do not count alike."""

    def __init__(self, *layers: nn.Module, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        ramp = torch.linspace(-1, 1, h[0, 0].numel(), dtype=h.dtype).view_as(h[0, 0])
        return self.head((h.tanh() * ramp).sum((2, 3)))


class Attention(nn.Module):
    """Self-attention under a given set of masks; sequences on the second axis of the input."""

    def __init__(self, batch_first: bool, mask: str, bias: bool = True) -> None:
        super().__init__()
        self.fused = nn.MultiheadAttention(8, 2, bias=bias, batch_first=batch_first)
        self.head = nn.Linear(8, CLASSES)
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        causal = torch.ones(T, T, dtype=torch.bool).triu(1)
        padding = torch.arange(T).expand(B, T) >= T - 2
        arguments = {
            "none": {},
            "boolean": {"attn_mask": causal},
            "causal": {"attn_mask": causal, "is_causal": True},
            "additive": {"attn_mask": torch.linspace(-2, 2, T * T, dtype=x.dtype).view(T, T)},
            "by head": {"attn_mask": torch.linspace(-2, 2, 2 * T * T, dtype=x.dtype).view(2, T, T).repeat(B, 1, 1)},
            "padding": {"key_padding_mask": padding},
            "padding and causal": {"key_padding_mask": padding, "attn_mask": causal},
        }[self.mask]  # fmt: skip
        x = x if self.fused.batch_first else x.transpose(0, 1)
        h, _ = self.fused(x, x, x, need_weights=False, **arguments)
        h = h if self.fused.batch_first else h.transpose(0, 1)
        return self.head((h * torch.linspace(-1, 1, T, dtype=h.dtype)[:, None]).sum(1))


class Twice(nn.Module):
    """One module called three times, on two lengths of sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(6, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shared(self.shared(x).tanh()).mean(1) * self.shared(x[:, 0]))


class Tied(nn.Module):
    """Two modules with one weight, of which the second is not the first's twin in bias."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.two.weight = self.one.weight
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x).tanh()).mean(1))


class Embedded(nn.Module):
    """Tokens: no input of the first tracked layers can have a gradient, and three of them share it."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        self.q, self.k, self.v = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens((x * 3).long() % 11)
        a = F.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h))
        return self.head((h + a).mean(1))


def conv(*sizes: Any, **options: Any) -> Any:
    return lambda: Image(nn.Conv2d(3, 6, *sizes, **options), width=6)


def attention(*arguments: Any) -> Any:
    return lambda: Attention(*arguments)


#: what is tried → (model, an example's shape)
LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear, vectors": (lambda: Pooled(nn.Linear(7, 6), 6), (7,)),
    "linear, sequences": (lambda: Pooled(nn.Linear(7, 6, bias=False), 6), (4, 7)),
    "linear, grids": (lambda: Pooled(nn.Linear(7, 6), 6), (3, 4, 7)),
    "conv": (conv(3), (3, 7, 8)),
    "conv, stride": (conv(3, stride=2), (3, 7, 8)),
    "conv, stride by axis": (conv((2, 3), stride=(1, 2), padding=(2, 1)), (3, 7, 8)),
    "conv, padding": (conv(3, padding=2), (3, 7, 8)),
    "conv, dilation": (conv(3, dilation=(2, 1), padding=1), (3, 7, 8)),
    "conv, same": (conv(3, padding="same"), (3, 7, 8)),
    "conv, same, even kernel": (conv((4, 2), padding="same", dilation=(1, 2)), (3, 7, 8)),
    "conv, valid": (conv(2, padding="valid", bias=False), (3, 7, 8)),
    "attention": (attention(True, "none"), (5, 8)),
    "attention, time first": (attention(False, "none"), (5, 8)),
    "attention, no bias": (attention(True, "none", False), (5, 8)),
    "attention, boolean mask": (attention(True, "boolean"), (5, 8)),
    "attention, causal": (attention(True, "causal"), (5, 8)),
    "attention, additive mask": (attention(False, "additive"), (5, 8)),
    "attention, a mask by head": (attention(True, "by head"), (5, 8)),
    "attention, padding": (attention(False, "padding"), (5, 8)),
    "attention, padding and causal": (attention(True, "padding and causal"), (5, 8)),
    "encoder layer": (
        lambda: Pooled(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True), 8), (5, 8)
    ),
    "called three times": (Twice, (4, 6)),
    "two modules, one weight": (Tied, (4, 6)),
    "embedding below": (Embedded, (6,)),
    "in-place activation": (
        lambda: nn.Sequential(nn.Linear(7, 6), nn.ReLU(True), nn.Linear(6, 6), nn.ReLU(True), nn.Linear(6, CLASSES)),
        (7,),
    ),
    "in-place activation of an image": (
        lambda: Image(nn.Conv2d(3, 4, 3), nn.ReLU(True), nn.Conv2d(4, 6, 3), nn.ReLU(True), width=6), (3, 7, 8)
    ),
}  # fmt: skip


def build(case: str, dtype: torch.dtype = torch.float64, n: int = 4) -> tuple[nn.Module, Classify, Examples]:
    torch.manual_seed(1)
    factory, shape = LAYERS[case]
    return factory().to(dtype).eval(), Classify(), examples(n, shape, dtype=dtype)


def captured(model: nn.Module, task: Classify, rows: Examples, spec: SketchSpec) -> Tensor:
    with opened(model), GradientCapture(model, task.modules(model), spec, task.biases) as capture:
        return capture.sketches(task.loss(model, task.collate(rows)))


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of Linear, Conv2d and attention by the names of the modules that hooks see; a shared one once."""
    named = {}
    for name, parameter in model.named_parameters():
        if name.endswith("in_proj_weight"):
            named[name.removesuffix("_weight")] = parameter
        elif name.endswith(".weight") and parameter.dim() > 1 and "tokens" not in name:
            named[name.removesuffix(".weight")] = parameter
    return named


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", LAYERS)
def test_sketches_are_those_of_the_loops_gradients(case, kind):
    model, task, rows = build(case)
    spec = SketchSpec(kind, 36)
    gradients = exact_gradients(model, task, rows, weights(model))
    assert all(g.norm() > 0 for g in gradients.values())
    expected = sketch_of(gradients, spec)
    got = captured(model, task, rows, spec)
    assert got.dtype == torch.float64
    assert (got - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize("case", LAYERS)
def test_float32_is_near_the_float64_loop(case):
    model, task, rows = build(case)
    expected = sketch_of(exact_gradients(model, task, rows, weights(model)), SketchSpec("sjlt", 64))
    model, task, rows = build(case, torch.float32)
    got = captured(model, task, rows, SketchSpec("sjlt", 64))
    assert got.dtype == torch.float32
    assert (got - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("case", ["attention", "encoder layer", "in-place activation of an image"])
def test_parameters_are_left_as_they_were(case):
    model, task, rows = build(case)
    parameters = dict(model.named_parameters())
    frozen = next(iter(parameters.values()))
    frozen.requires_grad_(False)
    for parameter in parameters.values():
        parameter.grad = torch.full_like(parameter, 3.0)
    values = {name: p.detach().clone() for name, p in parameters.items()}
    modules = list(model.modules())
    captured(model, task, rows, SketchSpec("kron", 16))
    assert list(model.modules()) == modules
    assert not any(m._forward_hooks for m in modules)
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
        assert parameter.requires_grad == (parameter is not frozen)
        assert torch.equal(parameter, values[name])
        assert torch.equal(parameter.grad, torch.full_like(parameter, 3.0))


def test_an_error_inside_restores_the_parameters_too():
    model, task, _ = build("attention")
    with (
        pytest.raises(RuntimeError, match="the user's"),
        opened(model),
        GradientCapture(model, task.modules(model), SketchSpec("kron", 16)),
    ):
        raise RuntimeError("the user's own")
    assert all(p.requires_grad for p in model.parameters())
    assert isinstance(model.fused, nn.MultiheadAttention)


def test_no_weight_gradient_is_computed():
    """The point of the hooks: nothing keeps a layer's input (16, 7), which only a weight gradient would need."""
    model, task, rows = build("linear, sequences")
    seen: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.shape) or t, lambda t: t):
        task.loss(model, task.collate(rows))
        assert (16, 7) in seen
        seen.clear()
        captured(model, task, rows, SketchSpec("kron", 16))
    assert (16, 7) not in seen
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", ["none", "causal", "additive", "by head", "padding", "padding and causal"])
def test_opened_attention_computes_the_same_function(mask, batch_first):
    torch.manual_seed(0)
    model = Attention(batch_first, mask).double()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    expected = model(x)
    with opened(model):
        assert isinstance(model.fused, OpenAttention)
        torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    assert isinstance(model.fused, nn.MultiheadAttention)


def test_attention_between_two_sequences_is_refused():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    model = nn.ModuleList([attention])
    x, y = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    with opened(model), pytest.raises(InputError, match="across two sequences"):
        model[0](x, y, y, need_weights=False)


def test_attention_with_its_own_key_width_is_left_as_it_is():
    model = nn.ModuleList([nn.MultiheadAttention(8, 2, kdim=5, vdim=5)])
    with opened(model):
        assert type(model[0]) is nn.MultiheadAttention


def test_rows_that_are_not_examples_are_refused_by_name():
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixed = nn.Linear(7, 6)
            self.head = nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.mixed(x.transpose(0, 1)).mean(0))

    model, task, rows = TimeFirst(), Classify(), examples(4, (3, 7))
    with pytest.raises(InputError, match=r"layer mixed sees 3 rows for 4 examples"):
        captured(model, task, rows, SketchSpec("kron", 16))


class Overwriting(nn.Module):
    """A layer whose input is overwritten once it has been used."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        y = self.head(x)
        x.mul_(2)
        return y


def test_an_input_overwritten_in_place_is_never_sketched_wrong():
    model, x = Overwriting(), torch.randn(3, 4)
    modules = {"head": model.head}
    with GradientCapture(model, modules, SketchSpec("kron", 16)) as capture:
        capture.sketches(model(x).square().sum(1))  # kron keeps a projection, which nothing overwrites
    with (
        GradientCapture(model, modules, SketchSpec("sjlt", 16)) as capture,
        pytest.raises(InputError, match="layer head: its input was overwritten in place"),
    ):
        capture.sketches(model(x).square().sum(1))


def test_a_loss_without_tracked_modules_is_refused():
    model, task, rows = build("linear, vectors")
    with GradientCapture(model, {"unused": nn.Linear(3, 3)}, SketchSpec("kron", 16)) as capture:
        losses = task.loss(model, task.collate(rows))
        with pytest.raises(InputError, match="none of the tracked modules"):
            capture.sketches(losses)


def test_a_forward_without_gradients_counts_for_nothing():
    """A loss may hold a constant that the same model computed, as a reference or a teacher."""

    class Relative(Classify):
        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            with torch.no_grad():
                reference = super().loss(model, batch)
            return super().loss(model, batch) - reference

    model, task, rows = build("linear, sequences")
    spec = SketchSpec("sjlt", 64)
    torch.testing.assert_close(captured(model, Relative(), rows, spec), captured(model, task, rows, spec))


@pytest.mark.parametrize(
    ("module", "can"),
    [
        (nn.Linear(2, 3), True),
        (nn.Conv2d(2, 4, 3), True),
        (nn.Conv2d(2, 4, 3, groups=2), True),
        (nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), True),
        (nn.ConvTranspose2d(2, 4, 3), True),
        (nn.Embedding(2, 3), True),
        (nn.Embedding(2, 3, scale_grad_by_freq=True), False),
        (nn.Bilinear(600, 600, 3), False),
        (nn.Sequential(nn.Linear(2, 3)), False),
    ],
)
def test_what_can_be_tracked(module, can):
    assert bool(tracked_parts({"module": module})) == can
